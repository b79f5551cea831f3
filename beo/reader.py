"""Reading a journal and judging whether it is whole: for the head that writes it, and beside it for other processes.

A reader changes nothing, not even when it closes, and no transaction of it outlives a call or holds more than a few
entries: so it never holds up a commit, nor for long the moment at which the write-ahead log begins anew.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple

from beo import snapshots
from beo.entries import BEGINNING, Entry, Position, Snapshot, hash_of, is_whole
from beo.errors import BeoError, DamagedJournal
from beo.mark import CURE_DAMAGE
from beo.snapshots import Stamp

READ_LIMIT_BYTES: Final = 8 << 20  # of one `entries` call, so that catching up a standby never fills the memory
LOAD_ROWS: Final = 1000  # read in one go: no long read transaction, which would keep the log from restarting

COLUMNS: Final = "idx INTEGER PRIMARY KEY, epoch INTEGER, hash BLOB, crc INTEGER"


class Contents(NamedTuple):
    """What a journal holds: from the cut to the tip, the snapshots, and whether there is something left to cut."""

    tip: Position
    cut: Position
    stamps: list[Stamp]
    has_rest: bool


class Reader:
    """The journal in a folder, to be read only."""

    FORMAT: ClassVar = 2  # of tables, snapshots and the bytes under hash and CRC; it is SQLite's user_version
    SCHEMA: ClassVar = {
        "entry": f"CREATE TABLE entry ({COLUMNS}, data BLOB) STRICT",
        "snapshot": f"CREATE TABLE snapshot ({COLUMNS}) STRICT",  # of the files that count, see snapshots.py
        "cut": f"CREATE TABLE cut ({COLUMNS}) STRICT",  # one row: what is not behind it is cut, or is about to be
    }

    def __init__(self, folder: Path) -> None:
        """Open it; raises sqlite3.Error where that is not possible."""
        self.folder = folder
        self.database = folder / "journal.db"
        # While the last connection to close is a read-only one, SQLite leaves all files alone. So a refusal changes
        # nothing, and after a failure no checkpoint sneaks in by way of closing.
        self._connection = connect(self.database, "ro")

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()

    # Judging

    def verify(self, mark: tuple[int, bytes] | None) -> Contents:
        """Read everything and return what is there; raises DamagedJournal if it isn't whole or ends before the mark."""
        tip = BEGINNING
        try:
            self.check_format()
            cut, stamps = self._anchors()
            tip = cut
            marks = {mark[0]: mark[1]} if mark else {}
            if marks.get(tip.idx, tip.hash) != tip.hash:
                raise self.damaged(f"entry {tip.idx}, to which it is cut, differs from what was acknowledged")
            positions = {stamp.position.idx: stamp.position for stamp in stamps}
            select = "SELECT idx, epoch, hash, crc, data FROM entry WHERE idx > ? ORDER BY idx"
            for row in self._connection.execute(select, (cut.idx,)):
                tip = self._following(tip, row)
                if positions.get(tip.idx, tip) != tip:
                    raise self.damaged(f"the snapshot at entry {tip.idx} is of another history", "its hash is wrong")
                if marks.get(tip.idx, tip.hash) != tip.hash:
                    raise self.damaged(f"entry {tip.idx} differs from what was acknowledged", "its hash is wrong")
            has_rest = bool(self._connection.execute("SELECT 1 FROM entry WHERE idx <= ?", (cut.idx,)).fetchone())
            for (verdict,) in self._connection.execute("PRAGMA quick_check(1)"):  # free pages and those cut, too
                if verdict != "ok":
                    raise self.damaged("its pages are damaged", verdict)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter: SQLite quotes what it cannot read
            raise self.damaged(f"it is unreadable behind entry {tip.idx}", str(error)) from error
        lowest = max([mark[0] if mark else 0, *positions])
        if tip.idx < lowest:
            why = "its write-ahead log is damaged, cut or missing"
            cure = f"{CURE_DAMAGE}; to accept the loss of entries {tip.idx + 1} to {lowest}, move journal.mark aside"
            raise self.damaged(f"it ends at entry {tip.idx}, but entry {lowest} was acknowledged", why, cure)
        self._check_snapshots(stamps)  # last: a lost log may have named others, and is the greater loss
        return Contents(tip, cut, stamps, has_rest)

    def check_format(self) -> None:
        """Raise DamagedJournal unless the tables are those that this beo makes."""
        if (found := self.format()) != self.FORMAT:
            why = f"its format is {found}, this beo reads {self.FORMAT}"
            raise self.damaged("it cannot be read", why, f"start the beo that wrote it, or {CURE_DAMAGE}")
        if dict(self._connection.execute("SELECT name, sql FROM sqlite_schema")) != self.SCHEMA:
            raise self.damaged("its tables are damaged", "they are not the ones that beo makes")

    def format(self) -> int:
        """Return the number of its format, as it says itself."""
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _anchors(self) -> tuple[Position, list[Stamp]]:
        """Return where it is cut, and the snapshots, oldest first."""
        rows = self._connection.execute("SELECT idx, epoch, hash, crc FROM cut").fetchall()
        if len(rows) != 1 or not is_whole((*rows[0], b"")):
            raise self.damaged("where it is cut is damaged", "its CRC is wrong")
        cut = Position(*rows[0][:3])
        stamps = self._stamps()
        if cut != BEGINNING and cut not in [stamp.position for stamp in stamps]:
            raise self.damaged(f"the snapshot at entry {cut.idx} is missing", "the entries up to it are cut")
        return cut, stamps

    def _stamps(self) -> list[Stamp]:
        rows = self._connection.execute("SELECT idx, epoch, hash, crc FROM snapshot ORDER BY idx").fetchall()
        return [Stamp(Position(*row[:3]), row[3]) for row in rows]

    def _check_snapshots(self, stamps: list[Stamp]) -> None:
        try:
            for stamp in stamps:
                snapshots.check(self.folder / stamp.name, stamp)
        except (TypeError, ValueError) as error:  # a flipped bit can change a value's type, too
            raise self.damaged("what it says of its snapshots is damaged", str(error)) from error

    def _following(self, tip: Position, row: tuple[int, int, bytes, int, bytes]) -> Position:
        index, epoch, hash, _, data = row
        if index != tip.idx + 1:
            raise self.damaged(f"entry {tip.idx + 1} is missing", f"entry {index} follows {tip.idx}")
        if not is_whole(row):
            raise self.damaged(f"entry {index} is damaged", "its CRC is wrong")
        if hash != hash_of(tip.hash, index, epoch, data) or epoch < tip.epoch:
            raise self.damaged(f"entry {index} does not follow from those before", "its hash is wrong")
        return Position(index, epoch, hash)

    def damaged(self, what: str, why: str = "", cure: str = CURE_DAMAGE) -> DamagedJournal:
        """Return the error that names this journal and what is wrong with it."""
        return DamagedJournal(f"{self.database}: {what}", why, cure)

    # Reading

    def load(self, last: int) -> tuple[Snapshot | None, Iterator[Entry]]:
        """Return the newest snapshot up to entry `last` (None: there is none) and the entries behind it up to there.

        The entries are read as you go; each is checked to follow the one before, whatever is written meanwhile. Both
        raise DamagedJournal.
        """
        stamps = [stamp for stamp in self._stamps() if stamp.position.idx <= last]
        if not stamps:
            return None, self._chain(BEGINNING, last)
        newest = stamps[-1]
        return snapshots.read(self.folder / newest.name, newest), self._chain(newest.position, last)

    def _chain(self, tip: Position, last: int) -> Iterator[Entry]:
        while tip.idx < last and (batch := self.entries(tip.idx + 1, last, LOAD_ROWS)):
            for entry in batch:
                if entry.hash != hash_of(tip.hash, entry.index, entry.epoch, entry.data):
                    raise self.damaged(f"entry {entry.index} does not follow from those before", "its hash is wrong")
                tip = Position(entry.index, entry.epoch, entry.hash)
                yield entry

    def entries(self, first: int, last: int, limit: int) -> list[Entry]:
        """Return up to `limit` entries from index `first` to `last`, fewer if they exceed `READ_LIMIT_BYTES`.

        Raises BeoError if `first` is cut already, and DamagedJournal if an entry is not whole.
        """
        found: list[Entry] = []
        size_bytes = 0
        select = "SELECT idx, epoch, hash, crc, data FROM entry WHERE idx BETWEEN ? AND ? ORDER BY idx"
        rows = self._connection.execute(select, (first, min(first + limit - 1, last)))
        try:
            for row in rows:
                index, epoch, hash, _, data = row
                if index != first and not found:
                    raise BeoError(f"entry {first} is cut", f"the journal begins at {index}", "take the snapshot first")
                if index != first + len(found) or not is_whole(row):
                    raise self.damaged(f"entry {first + len(found)} is damaged", "it was whole at opening")
                found.append(Entry(index, epoch, hash, data))
                size_bytes += len(data)
                if size_bytes > READ_LIMIT_BYTES:
                    break
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self.damaged(f"entry {first + len(found)} is unreadable", str(error)) from error
        finally:
            rows.close()  # ends the read transaction
        return found

    def cut(self) -> Position:
        """Return the position in front of the oldest entry that is kept; raises DamagedJournal."""
        return self._anchors()[0]

    def position(self, index: int) -> Position | None:
        """Return the position of an entry that is there."""
        select = "SELECT idx, epoch, hash FROM entry WHERE idx = ?"
        found = self._connection.execute(select, (index,)).fetchone()
        return Position(*found) if found else None


def connect(database: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    """Open a journal's database; who writes begins and commits by himself."""
    uri = f"{database.as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
