"""The journal: the one place where what happened to the cluster is kept, as entries of opaque bytes and snapshots.

A folder holds `journal.db` (SQLite in WAL mode, synchronous=FULL), `journal.mark` and `journal.lock`. Three promises:

1. **Durable is durable.** One thread commits whatever has queued up (group commit) and only then says so. Its first
   error is its last act: nothing is retried and nothing more is written, since after a failed fsync nobody knows what
   the disk holds. What an earlier process wrote but did not sync is synced at opening, before anything builds on it.
2. **Nothing acknowledged is lost in silence.** SQLite drops everything behind a damaged frame of its write-ahead log
   without a word, which is right for a torn tail and wrong for entries that somebody was told are safe. So each commit
   also writes the position that it reached to the mark, outside SQLite, and a journal that ends before its mark is
   refused.
3. **Damage is named, never served.** Every entry has a CRC and a rolling hash over all before it; opening reads them
   all. A refused journal is left byte for byte as it was found, for whoever repairs it.

The rolling hash makes (index, hash) a position: two journals with the same position hold the same entries.
"""

import functools
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Literal

from beo import lockfile
from beo.entries import BEGINNING, Entry, Position, Snapshot, crc_of, hash_of, is_whole
from beo.errors import BeoError, DamagedJournal
from beo.mark import CURE_DAMAGE, Mark

__all__ = ["Entry", "Journal", "Position", "Snapshot"]

FORMAT: Final = 1  # of the tables and of the bytes under hash and CRC; kept in SQLite's user_version

ENTRY_LIMIT_BYTES: Final = 16 << 20  # a submission of a large array with its scripts fits; a misdirected file does not
SNAPSHOT_LIMIT_BYTES: Final = 256 << 20  # entries behind a snapshot wait for its commit: seconds at most
BACKLOG_LIMIT_BYTES: Final = (
    64 << 20
)  # a second of a good disk; more waiting in memory only hides that the disk is slow
READ_LIMIT_BYTES: Final = 8 << 20  # of one `entries` call, so that catching up a standby never fills the memory
CHECKPOINT_BYTES: Final = 8 << 20  # bounds the write-ahead log, and with it the time of a recovery
ROWS_LIMIT: Final = 512  # in one INSERT; beyond it a row costs the same and the statement only gets bigger
LOAD_ROWS: Final = (
    1000  # read in one go while loading: no long read transaction, which would keep the log from restarting
)
RECENT: Final = 1024  # positions kept in memory, of durable entries: what a standby that is in step asks about

_PAGE_BYTES: Final = 4096  # larger pages stream no faster and make a commit of one entry write more
_ROW_BYTES: Final = 64  # index, epoch, hash, CRC and SQLite's own, besides the data
_COLUMNS: Final = "idx INTEGER PRIMARY KEY, epoch INTEGER, hash BLOB, crc INTEGER"
_SCHEMA: Final = {
    "entry": f"CREATE TABLE entry ({_COLUMNS}, data BLOB) STRICT",
    "snapshot": f"CREATE TABLE snapshot ({_COLUMNS}, state BLOB) STRICT",
}
_CURE_WRITE: Final = "free space or replace the disk, then start the head again: what it acknowledged is safe"


class Journal:
    """The journal in folder `path`, open for one head.

    `on_durable(index)` is called from the commit thread after each commit, with the last durable index (never lower
    than before); `on_failure(error)` is called from there once, after which nothing is ever written again and the
    process should end. Both must return quickly and not close the journal.

    Opening reads and checks everything. It raises `DamagedJournal` if something acknowledged is missing or changed, and
    `BeoError` if another process has the folder open or it cannot be written. All methods but the two callbacks' are
    for one thread.

    `last_index`, `last_epoch` and `last_hash` describe the newest entry appended, durable or not (0, 0 and zeros when
    there is none); `durable_index` what is on the disk; `oldest_index` the first entry that is still kept and
    `snapshot_index` the newest durable snapshot (0: none). `unmarked` is true if the mark was missing: then the end of
    the journal rests on SQLite's word alone, which is worth a line in the log.
    """

    def __init__(
        self, path: Path, on_durable: Callable[[int], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        """Open the journal in folder `path`, creating it if there is none; see the class for errors."""
        self._folder = path.resolve()
        self._database = self._folder / "journal.db"
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._wake = threading.Condition()  # guards the five below
        self._queue: list[Entry | tuple[int, bytes]] = []  # entries, and (index, state) of a snapshot
        self._committing = False
        self._backlog_bytes = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._wal_bytes = 0  # an estimate: SQLite tells the log's length only with a checkpoint

        with ExitStack() as files:
            self._open(files)
            self._files = files.pop_all()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # Opening

    def _open(self, files: ExitStack) -> None:
        mark_path = self._folder / "journal.mark"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.callback(os.close, lockfile.hold(self._folder / "journal.lock"))
            exists = self._database.exists()
            mark = self._read_mark(mark_path, exists)
            if not exists:
                _create(self._database, mark_path)
            # While the last connection to close is a read-only one, SQLite leaves all files alone. So a refusal changes
            # nothing, and after a failure no checkpoint sneaks in by way of closing.
            self._reader = _connect(self._database, "ro")
            files.callback(self._reader.close)
            tip = self._verify(mark)
            self._writer = _connect(self._database, "rw")
            files.callback(self._writer.close)
            _prepare_writing(self._writer)
            if not self._checkpoint("TRUNCATE"):  # syncs what an earlier process wrote and perhaps never synced
                raise sqlite3.OperationalError("another program has the database open")
            self._mark = Mark(mark_path)
            files.callback(self._mark.close)
            self._mark.settle(tip.idx, tip.hash)
            _sync_folder(self._folder)
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY and os.access(self._database, os.W_OK):
                raise self._damaged("its header is damaged", "it claims a format that only reads") from error
            raise BeoError(f"{self._database} cannot be written", str(error), _CURE_WRITE) from error
        self.unmarked = exists and mark is None
        self.last_index, self.last_epoch, self.last_hash = tip
        self.durable_index = tip.idx
        self._snapshot_queued = self.snapshot_index
        self._recent = deque([tip])

    def _read_mark(self, path: Path, exists: bool) -> tuple[int, bytes] | None:
        if exists:
            return Mark.read(path)
        wal = self._database.with_name("journal.db-wal")
        try:
            mark = Mark.read(path)
        except DamagedJournal:
            return None  # a power cut during the very first start: the database comes after a synced mark
        if (mark and mark[0]) or (wal.exists() and wal.stat().st_size):
            why = f"entries up to {mark[0]} were acknowledged" if mark else f"{wal.name} is there"
            raise DamagedJournal(f"{self._database} is missing", why, CURE_DAMAGE)
        return mark

    def _verify(self, mark: tuple[int, bytes] | None) -> Position:
        """Read everything, set the oldest and the snapshot's index, and return the newest entry's position."""
        tip = BEGINNING
        try:
            self._check_format()
            snapshots: dict[int, Position] = {}
            for row in self._reader.execute("SELECT idx, epoch, hash, crc, state FROM snapshot ORDER BY idx"):
                if not is_whole(row):
                    raise self._damaged(f"the snapshot at entry {row[0]} is damaged", "its CRC is wrong")
                snapshots[row[0]] = Position(*row[:3])
            if len(snapshots) > 1:  # entries are cut behind the snapshot before the newest
                tip = snapshots[min(snapshots)]
            self.oldest_index = tip.idx + 1
            self.snapshot_index = max(snapshots, default=0)
            marks = {mark[0]: mark[1]} if mark else {}
            if marks.get(tip.idx, tip.hash) != tip.hash:
                raise self._damaged(f"the snapshot at entry {tip.idx} differs from what was acknowledged")
            for row in self._reader.execute("SELECT idx, epoch, hash, crc, data FROM entry ORDER BY idx"):
                index, epoch, hash, _, data = row
                if index != tip.idx + 1:
                    raise self._damaged(f"entry {tip.idx + 1} is missing", f"entry {index} follows {tip.idx}")
                if not is_whole(row):
                    raise self._damaged(f"entry {index} is damaged", "its CRC is wrong")
                if hash != hash_of(tip.hash, index, epoch, data) or epoch < tip.epoch:
                    raise self._damaged(f"entry {index} does not follow from those before", "its hash is wrong")
                tip = Position(index, epoch, hash)
                if snapshots.get(index, tip) != tip:
                    raise self._damaged(f"the snapshot at entry {index} is of another history", "its hash is wrong")
                if marks.get(index, hash) != hash:
                    raise self._damaged(f"entry {index} differs from what was acknowledged", "its hash is wrong")
            for (verdict,) in self._reader.execute("PRAGMA quick_check(1)"):  # pages outside the entries, free ones too
                if verdict != "ok":
                    raise self._damaged("its pages are damaged", verdict)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the latter: SQLite quotes what it cannot read
            raise self._damaged(f"it is unreadable behind entry {tip.idx}", str(error)) from error
        lowest = max(mark[0] if mark else 0, self.snapshot_index)
        if tip.idx < lowest:
            why = "its write-ahead log is damaged, cut or missing"
            cure = f"{CURE_DAMAGE}; to accept the loss of entries {tip.idx + 1} to {lowest}, move journal.mark aside"
            raise self._damaged(f"it ends at entry {tip.idx}, but entry {lowest} was acknowledged", why, cure)
        return tip

    def _check_format(self) -> None:
        (version,) = self._reader.execute("PRAGMA user_version").fetchone()
        if version != FORMAT:
            why = f"its format is {version}, this beo reads {FORMAT}"
            raise self._damaged("it cannot be read", why, f"start the beo that wrote it, or {CURE_DAMAGE}")
        if dict(self._reader.execute("SELECT name, sql FROM sqlite_schema")) != _SCHEMA:
            raise self._damaged("its tables are damaged", "they are not the ones that beo makes")

    def _damaged(self, what: str, why: str = "", cure: str = CURE_DAMAGE) -> DamagedJournal:
        return DamagedJournal(f"{self._database}: {what}", why, cure)

    # Reading

    def load(self) -> tuple[Snapshot | None, Iterator[Entry]]:
        """Return the newest durable snapshot (None: there is none) and the durable entries after it, read as you go."""
        cursor = self._reader.execute("SELECT idx, epoch, hash, crc, state FROM snapshot ORDER BY idx DESC LIMIT 1")
        rows = cursor.fetchall()
        if not rows:
            return None, self._entries_after(0)
        if not is_whole(rows[0]):
            raise self._damaged(f"the snapshot at entry {rows[0][0]} is damaged", "its CRC is wrong")
        index, epoch, hash, _, state = rows[0]
        return Snapshot(index, epoch, hash, state), self._entries_after(index)

    def _entries_after(self, index: int) -> Iterator[Entry]:
        while batch := self.entries(index + 1, LOAD_ROWS):
            yield from batch
            index = batch[-1].index

    def entries(self, first: int, limit: int) -> list[Entry]:
        """Return up to `limit` durable entries from index `first` on, fewer if they exceed `READ_LIMIT_BYTES`.

        Nothing is returned past `durable_index`. Raises BeoError if `first` is cut already (see `oldest_index`), and
        DamagedJournal if an entry went bad since the journal was opened.
        """
        found: list[Entry] = []
        size_bytes = 0
        rows = self._reader.execute(
            "SELECT idx, epoch, hash, crc, data FROM entry WHERE idx BETWEEN ? AND ? ORDER BY idx",
            (first, min(first + limit - 1, self.durable_index)),
        )
        try:
            for row in rows:
                index, epoch, hash, _, data = row
                if index != first and not found:
                    raise BeoError(f"entry {first} is cut", f"the journal begins at {index}", "take the snapshot first")
                if index != first + len(found) or not is_whole(row):
                    raise self._damaged(f"entry {first + len(found)} is damaged", "it was whole at opening")
                found.append(Entry(index, epoch, hash, data))
                size_bytes += len(data)
                if size_bytes > READ_LIMIT_BYTES:
                    break
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise self._damaged(f"entry {first + len(found)} is unreadable", str(error)) from error
        finally:
            rows.close()  # ends the read transaction
        return found

    def position(self, index: int) -> Position | None:
        """Return the position of entry `index`, durable or not; None if that is cut already or past the last entry.

        The place in front of the oldest entry that is kept has one, too: that of a snapshot, or the beginning.
        """
        if not self.oldest_index - 1 <= index <= self.last_index:
            return None
        if index >= self._recent[0].idx:
            return self._recent[index - self._recent[0].idx]
        if index == 0:
            return BEGINNING
        for table in ("entry", "snapshot"):
            found = self._reader.execute(f"SELECT idx, epoch, hash FROM {table} WHERE idx = ?", (index,)).fetchone()
            if found:
                return Position(*found)
        return None

    def tail(self, index: int) -> list[Entry]:
        """Return every entry after `index`, those not durable yet included: what `truncate_after` would drop."""
        with self._wake:
            self._until_written()
        return [*self._entries_after(index)]

    # Writing

    def append(self, epoch: int, data: bytes) -> int:
        """Queue `data` as the next entry and return its index at once; it is durable when `on_durable` says so.

        Raises BeoError, and appends nothing, if `data` is over `ENTRY_LIMIT_BYTES`, if `epoch` is lower than the last
        one, if the disk is more than `BACKLOG_LIMIT_BYTES` behind, or after a failure or `close`.
        """
        index = self.last_index + 1
        self._append(Entry(index, epoch, hash_of(self.last_hash, index, epoch, data), data))
        return index

    def append_copy(self, entry: Entry) -> None:
        """Queue an entry as another head made it: for a standby. It must follow the last one here, as it did there.

        Raises BeoError, and appends nothing, if it doesn't (then the two journals differ), or as `append` does.
        """
        index, follows = self.last_index + 1, False
        if entry.index == index:
            follows = entry.hash == hash_of(self.last_hash, index, entry.epoch, entry.data)
        if not follows:
            what = f"the entry {_place(entry.index, entry.epoch, entry.hash)} is of another history"
            why = f"this journal ends at {_place(self.last_index, self.last_epoch, self.last_hash)}"
            raise BeoError(what, why, "go back to where both heads agree, and copy from there")
        self._append(entry)

    def _append(self, entry: Entry) -> None:
        data, epoch = entry.data, entry.epoch
        if len(data) > ENTRY_LIMIT_BYTES:
            what = f"an entry of {len(data) >> 20} MiB is too large for the journal"
            raise BeoError(what, f"the limit is {ENTRY_LIMIT_BYTES >> 20} MiB", "divide the request")
        if epoch < self.last_epoch:
            why = f"the journal is at epoch {self.last_epoch}"
            raise BeoError(f"an entry of epoch {epoch} comes too late", why, "let this head step down")
        with self._wake:
            self._check_open()
            if self._backlog_bytes >= BACKLOG_LIMIT_BYTES:
                what = f"the journal is {self._backlog_bytes >> 20} MiB behind"
                raise BeoError(what, "its disk is too slow for what is asked", "try again a little later")
            self._backlog_bytes += len(data) + _ROW_BYTES
            self._queue.append(entry)
            if len(self._queue) == 1 and not self._committing:  # else it is awake, or has been woken
                self._wake.notify_all()
        self.last_index, self.last_epoch, self.last_hash = entry.index, epoch, entry.hash
        self._recent.append(Position(entry.index, epoch, entry.hash))
        while len(self._recent) > RECENT and self._recent[0].idx < self.durable_index:
            self._recent.popleft()

    def snapshot(self, index: int, state: bytes) -> None:
        """Queue the `state` after entry `index`; once durable, `snapshot_index` says so and `on_durable` is called.

        The same transaction cuts whatever is older than the snapshot before, so two snapshots and the entries since the
        older one are kept: a standby that lags a little needs no snapshot. Raises BeoError if `index` is not behind
        the newest snapshot or not appended yet, if the last snapshot is still being written, or as `append` does.
        """
        if len(state) > SNAPSHOT_LIMIT_BYTES:
            what = f"a snapshot of {len(state) >> 20} MiB is too large for the journal"
            raise BeoError(what, f"the limit is {SNAPSHOT_LIMIT_BYTES >> 20} MiB", "purge old jobs")
        if not self.snapshot_index < index <= self.last_index:
            why = f"the newest snapshot is at {self.snapshot_index}, the newest entry is {self.last_index}"
            raise BeoError(f"there can be no snapshot at entry {index}", why, "take it at the newest entry")
        with self._wake:
            self._check_open()
            if self._snapshot_queued != self.snapshot_index:
                raise BeoError("a snapshot is still being written", cure="take the next one when it is durable")
            self._snapshot_queued = index
            self._queue.append((index, state))
            self._wake.notify_all()

    def truncate_after(self, index: int) -> None:
        """Drop every entry after `index`, and wait until that is durable: for a standby whose tail was never committed.

        Copy what should be kept first. Raises BeoError if `index` lies before the newest snapshot or past the last
        entry, or after a failure.
        """
        with self._wake:
            self._until_written()
            if not self.snapshot_index <= index <= self.last_index:
                why = f"the newest snapshot is at {self.snapshot_index}, the newest entry is {self.last_index}"
                raise BeoError(f"the journal cannot be cut after entry {index}", why, "rebuild it from a snapshot")
            select = "SELECT idx, epoch, hash FROM entry WHERE idx = ?"
            tip = Position(*(self._writer.execute(select, (index,)).fetchone() or BEGINNING))
            try:
                self._mark.settle(tip.idx, tip.hash)  # first: a mark beyond the end would look like a loss
                self._writer.execute("DELETE FROM entry WHERE idx > ?", (index,))
            except (sqlite3.Error, OSError) as error:
                self._fail(error)
                raise self._failed() from error
            self.last_index, self.last_epoch, self.last_hash = tip
            self.durable_index = index
            self._recent = deque([tip])

    def close(self) -> None:
        """Commit what is queued, fold the write-ahead log into the database, and release the folder; safe to repeat."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self._files.close()

    def _until_written(self) -> None:
        """Wait until nothing is queued or being committed; needs `_wake`."""
        self._wake.wait_for(lambda: self._failure or not (self._queue or self._committing))
        self._check_open()

    def _check_open(self) -> None:
        if self._failure:
            raise self._failed()
        if self._closing:
            raise BeoError("the journal is closed", cure="start the head again")

    def _failed(self) -> BeoError:
        return BeoError(f"{self._database} cannot be written", str(self._failure), _CURE_WRITE)

    # The commit thread

    def _run(self) -> None:
        try:
            while batch := self._take():
                self._commit(batch)
                self._on_durable(self.durable_index)
                if self._wal_bytes > CHECKPOINT_BYTES:
                    self._checkpoint("PASSIVE")
                    self._mark.sync()  # so that a power cut costs the mark little
                self._release(batch)
            if not self._failure:
                self._checkpoint("TRUNCATE")
                self._mark.sync()
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        with self._wake:
            self._failure = error
            self._wake.notify_all()
        self._on_failure(error)

    def _take(self) -> list[Entry | tuple[int, bytes]]:
        """Wait for work and take all of it; an empty list means that the journal is closing or has failed."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._closing or self._failure)
            if self._failure:
                return []
            batch, self._queue = self._queue, []
            self._committing = bool(batch)
            return batch

    def _release(self, batch: list[Entry | tuple[int, bytes]]) -> None:
        with self._wake:
            self._backlog_bytes -= sum(len(item.data) + _ROW_BYTES for item in batch if isinstance(item, Entry))
            self._committing = False
            self._wake.notify_all()

    def _commit(self, batch: list[Entry | tuple[int, bytes]]) -> None:
        """Make `batch` durable in one transaction, then move the mark."""
        entries = [item for item in batch if isinstance(item, Entry)]
        snapshots = [item for item in batch if not isinstance(item, Entry)]  # at most one, see snapshot()
        if len(entries) <= ROWS_LIMIT and not snapshots:
            self._insert(entries)  # a statement is a transaction: BEGIN and COMMIT would hand over the GIL twice more
        else:
            self._writer.execute("BEGIN IMMEDIATE")
            for start in range(0, len(entries), ROWS_LIMIT):
                self._insert(entries[start : start + ROWS_LIMIT])
            for index, state in snapshots:
                self._insert_snapshot(index, state)
            self._writer.execute("COMMIT")
        if entries:
            self._mark.write(entries[-1].index, entries[-1].hash)
            self.durable_index = entries[-1].index
        for index, _ in snapshots:
            self.oldest_index, self.snapshot_index = self.snapshot_index + 1, index
        written = sum(len(item.data) + _ROW_BYTES if isinstance(item, Entry) else len(item[1]) for item in batch)
        self._wal_bytes += written + 2 * _PAGE_BYTES

    def _insert(self, entries: list[Entry]) -> None:
        # One statement, not executemany: each step lets go of the GIL and, next to a busy thread, waits 5 ms for it.
        rows = 1 << (len(entries) - 1).bit_length()
        values: list[object] = []
        for e in entries:
            values += (e.index, e.epoch, e.hash, crc_of(e.index, e.epoch, e.hash, e.data), e.data)
        values += [None] * (5 * (rows - len(entries)))
        self._writer.execute(_insert_sql(rows), values)

    def _insert_snapshot(self, index: int, state: bytes) -> None:
        epoch, hash = self._writer.execute("SELECT epoch, hash FROM entry WHERE idx = ?", (index,)).fetchone()
        row = (index, epoch, hash, crc_of(index, epoch, hash, state), state)
        self._writer.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?, ?)", row)
        self._writer.execute("DELETE FROM snapshot WHERE idx < ?", (self.snapshot_index,))
        self._writer.execute("DELETE FROM entry WHERE idx <= ?", (self.snapshot_index,))

    def _checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"]) -> bool:
        """Move what the write-ahead log holds into the database, synced; false if another connection was in the way."""
        # SQLite's automatic checkpoint ignores its own errors, a failed fsync among them; an explicit one raises them.
        _, pages, moved = self._writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self._wal_bytes = 0
        return bool(moved == pages)


def _place(index: int, epoch: int, hash: bytes) -> str:
    return f"{index} (epoch {epoch}, hash {hash.hex()})"


@functools.cache
def _insert_sql(rows: int) -> str:
    """Return an INSERT of up to `rows` entries; powers of two, filled up with NULLs, keep the prepared ones few."""
    values = ",".join(["(?,?,?,?,?)"] * rows)
    return f"INSERT INTO entry SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL"


def _connect(database: Path, mode: Literal["ro", "rw", "rwc"]) -> sqlite3.Connection:
    uri = f"{database.as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def _create(database: Path, mark_path: Path) -> None:
    """Make an empty database under another name, then rename it: under its own name it is always complete."""
    new = database.with_name("journal.new")
    for stale in database.parent.glob("journal.new*"):
        stale.unlink()
    connection = _connect(new, "rwc")
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        for statement in _SCHEMA.values():
            connection.execute(statement)
    finally:
        connection.close()
    new.chmod(0o600)  # scripts and environments of users are inside; the write-ahead log inherits it
    fd = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(fd)
    os.close(fd)
    mark_path.unlink(missing_ok=True)
    mark = Mark(mark_path)
    mark.settle(0, BEGINNING.hash)  # before the database, so that a database without a mark has lost it
    mark.close()
    _sync_folder(database.parent)
    new.rename(database)
    _sync_folder(database.parent)


def _prepare_writing(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError("its file system has no shared memory, which a write-ahead log needs")
    connection.execute("DELETE FROM entry WHERE idx < 1")  # there is none; fails if a damaged header forbids writing
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # see Journal._checkpoint
    connection.execute(f"PRAGMA journal_size_limit = {2 * CHECKPOINT_BYTES}")  # a snapshot leaves no long log behind
    connection.execute("PRAGMA secure_delete = OFF")  # wiping what is cut would be written through the log


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
