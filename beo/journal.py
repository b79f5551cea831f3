"""The journal: the one place where what happened to the cluster is kept, as entries of opaque bytes and snapshots.

A folder holds `journal.db` (SQLite in WAL mode, synchronous=FULL), `journal.mark`, `journal.lock`, and the files of one
or two snapshots (snapshots.py). Three promises:

1. **Durable is durable.** One thread commits whatever has queued up (group commit) and only then says so. Its first
   error is its last act: nothing is retried and nothing more is written, since after a failed fsync nobody knows what
   the disk holds. What an earlier process wrote but did not sync is synced at opening, before anything builds on it.
2. **Nothing acknowledged is lost in silence.** SQLite drops everything behind a damaged frame of its write-ahead log
   without a word, which is right for a torn tail and wrong for entries that somebody was told are safe. So each commit
   also writes the position that it reached to the mark, outside SQLite, and a journal that ends before its mark is
   refused.
3. **Damage is named, never served.** Every entry has a CRC and a rolling hash over all before it; opening reads them
   all (reader.py). A refused journal is left byte for byte as it was found, for whoever repairs it.

The rolling hash makes (index, hash) a position: two journals with the same position hold the same entries.
"""

import functools
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Literal

from beo import lockfile, snapshots
from beo.entries import BEGINNING, Entry, Position, Snapshot, crc_of, hash_of
from beo.errors import BeoError, DamagedJournal
from beo.mark import CURE_DAMAGE, Mark
from beo.reader import Reader, connect
from beo.snapshots import Stamp, sync_folder
from beo.upgrade import upgrade

__all__ = ["Entry", "Journal", "Position", "Snapshot"]

ENTRY_LIMIT_BYTES: Final = 16 << 20  # a submission of a large array with its scripts fits; a misdirected file does not
BACKLOG_LIMIT_BYTES: Final = (
    64 << 20
)  # a second of a good disk; more waiting in memory only hides that the disk is slow
CHECKPOINT_BYTES: Final = 8 << 20  # bounds the write-ahead log, and with it the time of a recovery
ROWS_LIMIT: Final = 512  # in one INSERT; beyond it a row costs the same and the statement only gets bigger
CUT_ROWS: Final = 500  # deleted with one commit, which takes a millisecond longer for it
CUT_BYTES: Final = 256 << 10  # of entries, as above: every page that is set free passes through the log
RECENT: Final = 1024  # positions kept in memory, of durable entries: what a standby that is in step asks about

_PAGE_BYTES: Final = 4096  # larger pages stream no faster and make a commit of one entry write more
_ROW_BYTES: Final = 64  # index, epoch, hash, CRC and SQLite's own, besides the data
_CURE_WRITE: Final = "free space or replace the disk, then start the head again: what it acknowledged is safe"
# As many of the oldest entries up to an index as may go at once, and always one. One statement: see _insert.
_CUT: Final = """
    DELETE FROM entry WHERE idx <= (
        SELECT max(idx) FROM (
            SELECT idx, row_number() OVER up AS place, sum(size) OVER up AS total FROM (
                SELECT idx, length(data) AS size FROM entry WHERE idx <= ? ORDER BY idx LIMIT ?
            ) WINDOW up AS (ORDER BY idx)
        ) WHERE place = 1 OR total <= ?
    )"""


class Journal:
    """The journal in folder `path`, open for one head.

    `on_durable(index)` is called from the commit thread after each commit, with the last durable index (never lower
    than before, unless the tail was cut); `on_failure(error)` is called from there once, after which nothing is ever
    written again and the process should end. Both must return quickly and not close the journal. `before()` is called
    from there before each commit: what belongs to these entries and is not in them is made durable by it.

    Opening reads and checks everything. It raises `DamagedJournal` if something acknowledged is missing or changed, and
    `BeoError` if another process has the folder open or it cannot be written. All methods but the two callbacks' are
    for one thread.

    `last_index`, `last_epoch` and `last_hash` describe the newest entry appended, durable or not (0, 0 and zeros when
    there is none); `durable_index` what is on the disk. `unmarked` is true if the mark was missing: then the end of
    the journal rests on SQLite's word alone, which is worth a line in the log.
    """

    def __init__(
        self,
        path: Path,
        on_durable: Callable[[int], None],
        on_failure: Callable[[BaseException], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the journal in folder `path`, creating it if there is none; see the class for errors."""
        self._folder = path.resolve()
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._before = before
        self._wake = threading.Condition()  # guards the six below
        self._queue: list[Entry | Stamp] = []
        self._committing = False
        self._is_awaited = False
        self._backlog_bytes = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._wal_bytes = 0  # an estimate: SQLite tells the log's length only with a checkpoint
        self._adopting: Stamp | None = None  # queued, and not durable yet
        self._sweeper = threading.Thread()

        with ExitStack() as files:
            self._open(files)
            self._files = files.pop_all()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    # Opening

    def _open(self, files: ExitStack) -> None:
        mark_path, database = self._folder / "journal.mark", self._folder / "journal.db"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.callback(os.close, lockfile.hold(self._folder / "journal.lock"))
            exists = database.exists()
            mark = self._read_mark(mark_path, database)
            if not exists:
                _create(database, mark_path)
            self._reader = Reader(self._folder)  # before the upgrade: then no connection of that is the last to close
            files.callback(self._reader.close)
            if exists:
                upgrade(self._folder, mark)
            tip, self._cut, self._stamps, self._has_rest = self._reader.verify(mark)
            self._writer = connect(database, "rw")
            files.callback(self._writer.close)
            _prepare_writing(self._writer)
            if not self._checkpoint("TRUNCATE"):  # syncs what an earlier process wrote and perhaps never synced
                raise sqlite3.OperationalError("another program has the database open")
            self._mark = Mark(mark_path)
            files.callback(self._mark.close)
            self._mark.settle(tip.idx, tip.hash)
            sync_folder(self._folder)
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_READONLY and os.access(database, os.W_OK):
                raise self._reader.damaged("its header is damaged", "it claims a format that only reads") from error
            raise BeoError(f"{database} cannot be written", str(error), _CURE_WRITE) from error
        self.unmarked = exists and mark is None
        self.last_index, self.last_epoch, self.last_hash = tip
        self.durable_index = tip.idx
        self._recent = deque([tip])
        self.sweep()

    def _read_mark(self, path: Path, database: Path) -> tuple[int, bytes] | None:
        if database.exists():
            return Mark.read(path)
        wal = database.with_name("journal.db-wal")
        try:
            mark = Mark.read(path)
        except DamagedJournal:
            return None  # a power cut during the very first start: the database comes after a synced mark
        if (mark and mark[0]) or (wal.exists() and wal.stat().st_size):
            why = f"entries up to {mark[0]} were acknowledged" if mark else f"{wal.name} is there"
            raise DamagedJournal(f"{database} is missing", why, CURE_DAMAGE)
        return mark

    # Reading

    @property
    def oldest_index(self) -> int:
        """The first entry that is still kept."""
        return self._cut.idx + 1

    @property
    def snapshot_index(self) -> int:
        """The entry of the newest durable snapshot; 0: there is none."""
        stamps = self._stamps
        return stamps[-1].position.idx if stamps else 0

    @property
    def is_adopting(self) -> bool:
        """Whether a snapshot has been adopted and is not durable yet."""
        return self._adopting is not None

    def newest_snapshot(self) -> tuple[Stamp, Path] | None:
        """Return the newest durable snapshot's stamp and file, for a thread that reads it; None: there is none.

        The file goes when there are two newer ones.
        """
        stamps = self._stamps
        return (stamps[-1], self._folder / stamps[-1].name) if stamps else None

    def load(self) -> tuple[Snapshot | None, Iterator[Entry]]:
        """Return the newest durable snapshot (None: there is none) and the durable entries after it, read as you go."""
        return self._reader.load(self.durable_index)

    def entries(self, first: int, limit: int) -> list[Entry]:
        """Return up to `limit` durable entries from index `first` on, fewer if they exceed `reader.READ_LIMIT_BYTES`.

        Nothing is returned past `durable_index`. Raises BeoError if `first` is cut already (see `oldest_index`), and
        DamagedJournal if an entry went bad since the journal was opened.
        """
        if first < self.oldest_index:
            what, why = f"entry {first} is cut", f"the journal begins at {self.oldest_index}"
            raise BeoError(what, why, "take the snapshot first")
        return self._reader.entries(first, self.durable_index, limit)

    def position(self, index: int) -> Position | None:
        """Return the position of entry `index`, durable or not; None if that is cut already or past the last entry.

        The place in front of the oldest entry that is kept has one, too: that of a snapshot, or the beginning.
        """
        cut = self._cut
        if index == cut.idx:
            return cut
        if not cut.idx < index <= self.last_index:
            return None
        if index >= self._recent[0].idx:
            return self._recent[index - self._recent[0].idx]
        return self._reader.position(index)

    def tail(self, index: int) -> list[Entry]:
        """Return every entry after `index` that is kept, durable or not: what cutting the journal there would drop."""
        with self._wake:
            self._until_written()
        index = max(index, self._cut.idx)
        found: list[Entry] = []
        while batch := self.entries(index + len(found) + 1, self.durable_index):
            found += batch
        return found

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
            what = f"the entry {_place(Position(entry.index, entry.epoch, entry.hash))} is of another history"
            why = f"this journal ends at {_place(Position(self.last_index, self.last_epoch, self.last_hash))}"
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

    def adopt_snapshot(self, index: int) -> None:
        """Let the file that another process has made for the durable entry `index` be the newest snapshot from now on.

        Once that is durable, `snapshot_index` says so and `on_durable` is called. Then whatever is older than the
        snapshot before is cut, little by little, so two snapshots and the entries since the older one are kept: a
        standby that lags a little needs no snapshot. Raises BeoError if `index` is not behind the newest snapshot or
        not durable, if there is no file for it or only one of another history, or as `append` does.
        """
        if not self.snapshot_index < index <= self.durable_index:
            why = f"the newest snapshot is at {self.snapshot_index}, the newest durable entry is {self.durable_index}"
            raise BeoError(f"there can be no snapshot at entry {index}", why, "take it at a durable entry")
        self._sweeper_ended()
        position = self.position(index)
        found = [file for file in snapshots.files(self._folder) if file.name.startswith(f"snapshot-{index}-")]
        stamps = [snapshots.stamp_of(file) for file in found if not file.suffix]
        right = [stamp for stamp in stamps if stamp.position == position]
        if not right:
            why = "that one is of another history" if stamps else "no process has finished one"
            raise BeoError(f"there is no snapshot for entry {index}", why, "take another one")
        with self._wake:
            self._check_open()
            if self._adopting:
                raise BeoError("a snapshot is still being adopted", cure="take the next one when it is durable")
            self._adopting = right[0]
            self._queue.append(right[0])
            self._wake.notify_all()

    def sweep(self) -> None:
        """Remove the files of snapshots that don't count: those of before, and what a failed process has left.

        No process may be making one. It takes a thread, since setting free the blocks of a large file takes a while.
        """
        self._sweeper_ended()
        kept = {stamp.name for stamp in (*self._stamps, self._adopting) if stamp}
        stale = []
        with suppress(OSError):  # then they go another time
            stale = [file for file in snapshots.files(self._folder) if file.name not in kept]
        if stale:
            self._sweeper = threading.Thread(target=_remove, args=(stale,), name="sweep", daemon=True)
            self._sweeper.start()

    def _sweeper_ended(self) -> None:
        if self._sweeper.ident:
            self._sweeper.join()

    def truncate_after(self, index: int) -> None:
        """Drop every entry after `index`, and wait until that is durable: for a standby whose tail was never committed.

        Copy what should be kept first, see `tail`. A snapshot behind `index` goes, too, and the one before is the
        newest again. Raises BeoError if the entry `index` is cut already or past the last one, or after a failure.
        """
        with self._wake:
            self._until_written()
            tip = self.position(index)
            if not tip:
                why = f"the journal holds entries {self.oldest_index} to {self.last_index}"
                raise BeoError(f"the journal cannot be cut after entry {index}", why, "rebuild it from a snapshot")
            stamps = [stamp for stamp in self._stamps if stamp.position.idx <= index]
            try:
                self._mark.settle(tip.idx, tip.hash)  # first: a mark beyond the end would look like a loss
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute("DELETE FROM snapshot WHERE idx > ?", (index,))
                self._writer.execute("DELETE FROM entry WHERE idx > ?", (index,))
                self._writer.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._fail(error)
                raise self._failed() from error
            self._begin_at(tip, self._cut, stamps)
        self.sweep()

    def install(self, position: Position, state: bytes | Path) -> None:
        """Replace everything by the snapshot of another journal: for a standby that is behind what the primary keeps.

        `state`: the bytes, or the file of the snapshot as it is there (on this file system: it is moved in, which is
        quick where another thread has written it). Waits until it is durable; a crash at any point leaves the journal
        as it was or as it should be. Raises BeoError, with nothing changed, if the file is not the snapshot of
        `position` or the bytes find no room; or after a failure.
        """
        with self._wake:
            self._until_written()  # so that what is queued can't sweep away the new file
        if isinstance(state, bytes):
            try:
                stamp = snapshots.write(self._folder, Snapshot(*position, state))
            except OSError as error:
                raise BeoError(f"no snapshot can be written in {self._folder}", str(error), _CURE_WRITE) from error
        else:
            stamp = self._move_in(position, state)
        with self._wake:
            self._until_written()
            try:
                self._mark.settle(*BEGINNING[::2])  # promises nothing: true before and after
                self._writer.execute("BEGIN IMMEDIATE")
                self._writer.execute("DELETE FROM entry WHERE idx > ?", (position.idx,))  # the others are cut by and by
                self._writer.execute("DELETE FROM snapshot")
                self._writer.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?)", (*position, stamp.crc))
                self._move_cut(position)
                self._writer.execute("COMMIT")
                self._mark.settle(position.idx, position.hash)
            except (sqlite3.Error, OSError) as error:
                self._fail(error)
                raise self._failed() from error
            self._begin_at(position, position, [stamp])
            self._has_rest = True
        self.sweep()

    def _move_in(self, position: Position, file: Path) -> Stamp:
        try:
            stamp = snapshots.stamp_of(file)
            if stamp.position != position:
                what, why = f"{file} is of entry {_place(stamp.position)}", f"{_place(position)} is needed"
                raise BeoError(what, why, "take it from the other head again")
            snapshots.check(file, stamp)
            file.rename(self._folder / stamp.name)
            sync_folder(self._folder)
        except OSError as error:
            raise BeoError(f"{file} cannot be moved into {self._folder}", str(error), "look at both") from error
        return stamp

    def _begin_at(self, tip: Position, cut: Position, stamps: list[Stamp]) -> None:
        self.last_index, self.last_epoch, self.last_hash = tip
        self.durable_index = tip.idx
        self._recent = deque([tip])
        self._cut, self._stamps = cut, stamps

    def close(self) -> None:
        """Commit what is queued, fold the write-ahead log into the database, and release the folder; safe to repeat."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self._sweeper_ended()
        self._files.close()

    def _until_written(self) -> None:
        """Wait until nothing is queued or being committed, and what is to be cut waits, too; needs `_wake`."""
        self._is_awaited = True
        self._wake.wait_for(lambda: self._failure or not (self._queue or self._committing))
        self._is_awaited = False
        self._wake.notify_all()  # heard when the caller is done
        self._check_open()

    def _check_open(self) -> None:
        if self._failure:
            raise self._failed()
        if self._closing:
            raise BeoError("the journal is closed", cure="start the head again")

    def _failed(self) -> BeoError:
        return BeoError(f"{self._reader.database} cannot be written", str(self._failure), _CURE_WRITE)

    # The commit thread

    def _run(self) -> None:
        try:
            while (batch := self._take()) is not None:
                self._before()
                self._commit(batch)
                if batch:
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

    def _take(self) -> list[Entry | Stamp] | None:
        """Wait for work and take all of it, an empty list if there is only something to cut.

        Returns None when the journal is closing or has failed.
        """
        with self._wake:
            self._wake.wait_for(self._has_work)
            if self._failure or (self._closing and not self._queue):
                return None
            batch, self._queue = self._queue, []
            self._committing = True
            return batch

    def _has_work(self) -> bool:
        may_cut = self._has_rest and not self._is_awaited
        return bool(self._queue or may_cut or self._closing or self._failure)

    def _release(self, batch: list[Entry | Stamp]) -> None:
        with self._wake:
            self._backlog_bytes -= sum(len(item.data) + _ROW_BYTES for item in batch if isinstance(item, Entry))
            self._committing = False
            self._wake.notify_all()

    def _commit(self, batch: list[Entry | Stamp]) -> None:
        """Make `batch` durable in one transaction, cut a little of what is to be cut, and move the mark."""
        entries = [item for item in batch if isinstance(item, Entry)]
        stamps = [item for item in batch if isinstance(item, Stamp)]  # at most one, see adopt_snapshot()
        if len(entries) <= ROWS_LIMIT and not stamps and not self._has_rest:
            self._insert(entries)  # a statement is a transaction: BEGIN and COMMIT would hand over the GIL twice more
        else:
            self._writer.execute("BEGIN IMMEDIATE")
            for start in range(0, len(entries), ROWS_LIMIT):
                self._insert(entries[start : start + ROWS_LIMIT])
            if self._has_rest:
                self._has_rest = self._cut_some() > 0
            for stamp in stamps:
                self._insert_snapshot(stamp)
            self._writer.execute("COMMIT")
        if entries:
            self._mark.write(entries[-1].index, entries[-1].hash)
            self.durable_index = entries[-1].index
        for stamp in stamps:
            if self._stamps:
                self._cut, self._has_rest = self._stamps[-1].position, True
            self._stamps, self._adopting = [*self._stamps[-1:], stamp], None
            self.sweep()
        self._wal_bytes += sum(len(entry.data) + _ROW_BYTES for entry in entries) + 2 * _PAGE_BYTES

    def _insert(self, entries: list[Entry]) -> None:
        # One statement, not executemany: each step lets go of the GIL and, next to a busy thread, waits 5 ms for it.
        rows = 1 << (len(entries) - 1).bit_length()
        values: list[object] = []
        for e in entries:
            values += (e.index, e.epoch, e.hash, crc_of(e.index, e.epoch, e.hash, e.data), e.data)
        values += [None] * (5 * (rows - len(entries)))
        self._writer.execute(_insert_sql(rows), values)

    def _insert_snapshot(self, stamp: Stamp) -> None:
        self._writer.execute("INSERT INTO snapshot VALUES (?, ?, ?, ?)", (*stamp.position, stamp.crc))
        if self._stamps:
            before = self._stamps[-1].position
            self._writer.execute("DELETE FROM snapshot WHERE idx < ?", (before.idx,))
            self._move_cut(before)

    def _cut_some(self) -> int:
        """Delete some of what is to be cut; return how many entries those were."""
        rows = self._writer.execute(_CUT, (self._cut.idx, CUT_ROWS, CUT_BYTES)).rowcount
        self._wal_bytes += CUT_BYTES + CUT_ROWS * _ROW_BYTES if rows else 0
        return rows

    def _move_cut(self, position: Position) -> None:
        self._writer.execute("UPDATE cut SET idx = ?, epoch = ?, hash = ?, crc = ?", _row(position))

    def _checkpoint(self, mode: Literal["PASSIVE", "TRUNCATE"]) -> bool:
        """Move what the write-ahead log holds into the database, synced; false if another connection was in the way."""
        # SQLite's automatic checkpoint ignores its own errors, a failed fsync among them; an explicit one raises them.
        _, pages, moved = self._writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self._wal_bytes = 0
        return bool(moved == pages)


def _place(position: Position) -> str:
    return f"{position.idx} (epoch {position.epoch}, hash {position.hash.hex()})"


def _row(position: Position) -> tuple[int, int, bytes, int]:
    return (*position, crc_of(*position, b""))


def _remove(files: list[Path]) -> None:
    for file in files:
        with suppress(OSError):
            file.unlink()


@functools.cache
def _insert_sql(rows: int) -> str:
    """Return an INSERT of up to `rows` entries; powers of two, filled up with NULLs, keep the prepared ones few."""
    values = ",".join(["(?,?,?,?,?)"] * rows)
    return f"INSERT INTO entry SELECT * FROM (VALUES {values}) WHERE column1 IS NOT NULL"


def _create(database: Path, mark_path: Path) -> None:
    """Make an empty database under another name, then rename it: under its own name it is always complete."""
    new = database.with_name("journal.new")
    for stale in database.parent.glob("journal.new*"):
        stale.unlink()
    connection = connect(new, "rwc")
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {Reader.FORMAT}")
        for statement in Reader.SCHEMA.values():
            connection.execute(statement)
        connection.execute("INSERT INTO cut VALUES (?, ?, ?, ?)", _row(BEGINNING))
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
    sync_folder(database.parent)
    new.rename(database)
    sync_folder(database.parent)


def _prepare_writing(connection: sqlite3.Connection) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError("its file system has no shared memory, which a write-ahead log needs")
    connection.execute("DELETE FROM entry WHERE idx < 1")  # there is none; fails if a damaged header forbids writing
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")  # see Journal._checkpoint
    connection.execute(f"PRAGMA journal_size_limit = {2 * CHECKPOINT_BYTES}")  # a snapshot leaves no long log behind
    connection.execute("PRAGMA secure_delete = OFF")  # wiping what is cut would be written through the log
