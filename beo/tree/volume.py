"""One head's copy of the tree, on its disk: journal, segments and store, and the tree that they come to.

An entry is appended (or copied from the other head), becomes durable, and is *committed* once it is durable on every
head that is in step. Only then its bytes go to their places in the store, so a tail that the other head never had can
be taken back. What is appended and not yet in the store is kept in memory, too.

An inode is *stale* while its bytes here are not what the log says: this head lagged so far behind that the other one
no longer had the data of all entries, and has to fetch the inode as a whole. Which ones are is written down first.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from beo.compaction import Compaction
from beo.config import write_durably
from beo.entries import Entry, Position
from beo.errors import BeoError, DamagedJournal, reason
from beo.ha.log import Log
from beo.journal import Journal
from beo.tree import changes, orphans
from beo.tree.changes import INLINE_MAX_BYTES, Change, Changed, Reaped, Wrote, bytes_of, digest_of
from beo.tree.replay import replay
from beo.tree.segments import Segments
from beo.tree.state import State
from beo.tree.store import COPY_MAX_BYTES as COPY_BYTES
from beo.tree.store import Store, redo

SYNC_EVERY_S = 5.0  # what isn't synced has to be written again after a crash
SYNC_OBJECTS_MAX = 200  # then it is synced sooner, as each costs the disk a turn
RETRY_S = 0.5  # after the store's disk was full
RESERVE_BYTES = 64 << 20  # kept free: what was taken must find its place in the store, and the head needs its journal

log = logging.getLogger("beo.tree")


class Volume:
    """The tree in one folder. For one thread, but for the callbacks, which come from another."""

    def __init__(
        self, folder: Path, on_durable: Callable[[int], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        """Open it, or make it; raises BeoError where it is damaged or can't be."""
        self._folder = folder
        self.segments = Segments(folder / "data")
        self.journal = Journal(folder / "log", on_durable, on_failure, self.segments.sync)
        self.segments.truncate_after(self.journal.last_index)  # what follows never became an entry
        self.store = Store(folder / "objects")
        self._stale_path = folder / "stale"
        self._installing_path = folder / "installing"
        self.stale = self._read_stale()
        self.state = self._replay()
        cut = self.journal.position(self.journal.oldest_index - 1)
        last = self.journal.position(self.journal.last_index)
        assert cut and last
        self.log = Log(cut, last, self._entries, self.journal.position)
        self._go_on_installing(cut.idx)
        self.committed = self.store.applied
        if self.store.applied < cut.idx or self.store.applied > last.idx:
            what = f"the objects in {folder} are as of entry {self.store.applied}"
            why = f"the log there holds entries {cut.idx + 1} to {last.idx}"
            raise DamagedJournal(what, why, "restore both, or let this head begin anew with 'beo ha rejoin --wipe'")
        self._pending: deque[tuple[int, Change]] = deque()  # behind what is in the store; data and all
        self.pending_bytes = 0
        self._load_pending()
        self._found = last.idx  # what was in the log as it was opened
        self._compaction = Compaction(self.journal, folder / "log", "beo.tree.compactor")
        self._sync_s = self._retry_s = 0.0
        self.full = False  # the store's disk is: what is committed waits for room
        self.was_whole = False  # in this life, it had all that was acknowledged

    # ---- growing

    def append(self, epoch: int, change: Change) -> Entry:
        """Make a change, which the tree has already, the next entry. Raises BeoError or OSError: end then."""
        lean, data = _divided(change)
        if data:
            self.segments.put(self.log.last.idx + 1, data)
        entry = self.log.append(epoch, changes.encode(lean))
        self.journal.append_copy(entry)
        self._wait_for_store(entry.index, change)
        return entry

    def copy(self, entries: Sequence[Entry], data: dict[int, bytes | None]) -> list[int]:
        """Take entries of the other head, which the log has already; return the inodes that are stale by that.

        data: what belongs to them, by index; None where the other head no longer has it, and the inode is marked stale.
        """
        found = [(entry, changes.decode(entry.data)) for entry in entries]
        gone = [
            change.ino
            for entry, change in found
            if isinstance(change, Wrote) and change.digest and data[entry.index] is None
        ]
        assert all(ino in self.stale for ino in gone)
        for entry, change in found:
            if isinstance(change, Wrote) and change.digest:
                piece = data[entry.index]
                if piece is not None:
                    self.segments.put(entry.index, piece)
                    change = msgspec.structs.replace(change, data=piece)
            self.state.apply(change)
            self.journal.append_copy(entry)
            self._wait_for_store(entry.index, change)
        return gone

    def back(self, position: Position, was_acknowledged: bool = False) -> None:
        """Take back everything behind a position, which the log has done already; it is put aside before.

        Bytes that are in the store already can't be taken back: such inodes are stale then. was_acknowledged: this head
        may have acknowledged any of it alone, so that it may be in the store, also by an earlier life.
        """
        self.put_aside(position.idx, max(self.committed, self._found if was_acknowledged else 0))
        done = max(self.store.applied, self._found if was_acknowledged else 0)
        if position.idx < done:
            tail = [entry for entry in self.journal.tail(position.idx) if entry.index <= done]
            self._write_stale([ino for entry in tail for ino in bytes_of(changes.decode(entry.data))])
            self.store.sync_objects()
            self.store.mark(min(position.idx, self.store.applied))  # killed here, it does again what follows
        self.committed = min(self.committed, position.idx)
        self.journal.truncate_after(position.idx)
        self.segments.truncate_after(position.idx)
        self.state = self._replay()
        while self._pending and self._pending[-1][0] > position.idx:
            self.pending_bytes -= _size(self._pending.pop()[1])
        gone = [ino for ino in self.stale if ino not in self.state.inodes]
        for ino in gone:
            self.store.drop(ino)
        self._fresh(gone)

    def put_aside(self, index: int, acknowledged: int, folder: Path | None = None, sure: bool = True) -> None:
        """Keep what is behind an entry where `beo ha orphans` finds it: the changes, and the files they were about.

        acknowledged: up to this entry it may have been. sure: the cluster has nothing of it.
        """
        tail = self.journal.tail(index)
        if tail:
            log.warning("changes of the tree are put aside: entries %d to %d", tail[0].index, tail[-1].index)
            folder = folder or self._folder / "orphans"
            orphans.put_aside(folder, tail, self.state, acknowledged, self.content, time.time_ns() / 1e9, sure)

    def content(self, ino: int, upto: int, path: Path) -> bool:
        """Write an inode's bytes to a file, with all that is not in the store yet; return whether that is all of them.

        upto: no more bytes than these. Raises OSError.
        """
        with path.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            size = min(self.store.size(ino), upto)
            for offset in range(0, size, COPY_BYTES):
                file.write(self.store.read(ino, offset, COPY_BYTES, size))
            for _, change in self._pending:
                if ino in bytes_of(change):
                    redo(file.fileno(), change, upto)
            whole = self.state.inodes[ino].size
            os.ftruncate(file.fileno(), min(whole, upto))
            os.fsync(file.fileno())
        return whole <= upto and ino not in self.stale

    def install(self, position: Position, snapshot: bytes, trusted: int) -> bool:
        """Let the other head's tree stand for all; what differs of the bytes is stale. False: there is no room for it.

        trusted: up to this entry, what is in the store here is what the other head has, too.
        """
        new, old, here = State.decode(snapshot), self.state, trusted
        stale = [
            ino
            for ino, found in new.inodes.items()
            if found.is_file
            and found.version
            and (ino not in old.inodes or old.inodes[ino].version != found.version or found.version > here)
        ]
        try:
            write_durably(self._installing_path, msgspec.json.encode((position.idx, stale)), 0o600)
        except OSError as error:
            self.wait_for_room(error)
            return False
        if here < self.store.applied:
            self.put_aside(here, self.journal.last_index)
        self.journal.install(position, snapshot)
        self.log.install(position)
        self._pending.clear()
        self.pending_bytes = 0
        self.state = new
        self._installed(position.idx, stale)
        self.committed = position.idx
        return True

    def _installed(self, index: int, stale: list[int]) -> None:
        """The journal is a snapshot of entry `index` now: let the store follow."""
        self.segments.truncate_after(0)
        self._write_stale(stale)
        gone = [ino for ino in (*self.store.inos(), *self.stale) if ino not in self.state.inodes]
        for ino in gone:
            self.store.drop(ino)
        self.store.sync_objects()
        self.store.mark(index)
        self._fresh(gone)
        self._installing_path.unlink(missing_ok=True)

    def _go_on_installing(self, cut: int) -> None:
        """A process that ended while it installed a snapshot has left word of what is to be done, if it came so far."""
        try:
            index, stale = msgspec.json.decode(self._installing_path.read_bytes(), type=tuple[int, list[int]])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            why = reason(error)
            raise DamagedJournal(f"{self._installing_path} is damaged", why, "let this head begin anew") from None
        if cut == index > self.store.applied:
            self._installed(index, stale)
        self._installing_path.unlink(missing_ok=True)

    def commit(self, index: int) -> None:
        """Everything up to an entry is durable wherever it has to be: its bytes go to the store."""
        self.committed = max(self.committed, min(index, self.journal.durable_index))
        if self.full and time.monotonic() < self._retry_s:
            return
        while self._pending and self._pending[0][0] <= self.committed:
            number, change = self._pending[0]
            try:
                self._do(number, change)
            except OSError as error:  # to do it again is harmless
                self.wait_for_room(error)
                return
            self._pending.popleft()
            self.pending_bytes -= _size(change)
        self.full = False
        if not self._pending:
            self.store.applied = self.committed

    def _do(self, number: int, change: Change) -> None:
        """Let the store do what a committed entry says."""
        if isinstance(change, Wrote) and change.digest and not change.data:
            self.store.applied = number  # stale: the bytes are fetched
            return
        self.store.apply(number, change)
        known = [ino for ino in _known_by(change) if ino in self.stale and not self._is_to_be_fetched(ino)]
        if known:
            self.store.sync()  # so that nothing of them, which may never have come, is done again
            self._fresh(known)

    def _is_to_be_fetched(self, ino: int) -> bool:
        """Whether what a later entry has written is not here."""
        return any(
            isinstance(one, Wrote) and one.ino == ino and one.digest and not one.data for _, one in self._pending
        )

    def tick(self, now_s: float) -> None:
        """Let time pass: sync the store, forget what it has, have snapshots made."""
        if now_s >= self._sync_s or self.store.unsynced > SYNC_OBJECTS_MAX:
            self._sync_s = now_s + SYNC_EVERY_S
            try:
                self.store.sync()
            except OSError as error:
                self.wait_for_room(error)
                self._sync_s = now_s + RETRY_S
            self.segments.forget(self.store.marked)
        self._compaction.tick(min(self.store.marked, self.committed), len(self.state.inodes), now_s)
        if self.journal.oldest_index != self.log.cut.idx + 1:
            cut = self.journal.position(self.journal.oldest_index - 1)
            if cut:
                self.log.cut = cut

    def room_bytes(self) -> int:
        """Return how much more this head can take."""
        _, free, _, files = self.store.space()
        return max(0, free - RESERVE_BYTES - 2 * self.pending_bytes) if files > 1_000 else 0

    def data(self, index: int) -> bytes | None:
        """Return what belongs to an entry beside it; None where it is forgotten, or spoilt."""
        if not self.segments.size(index):
            return None
        data = self.segments.get(index)
        return data if digest_of(data) == self._digest(index) else None

    def has_data(self, index: int) -> bool:
        """Whether something belongs to an entry beside it, be it here or forgotten."""
        return bool(self._digest(index))

    def _digest(self, index: int) -> bytes:
        for entry in self.log.entries(index, 1, 1):
            change = changes.decode(entry.data)
            return change.digest if isinstance(change, Wrote) else b""
        return b""

    # ---- stale inodes

    def mark_stale(self, inos: Sequence[int]) -> bool:
        """Write down that these inodes have to be fetched; False: there is no room for that, so nothing is done."""
        try:
            self._write_stale(inos)
        except OSError as error:
            self.wait_for_room(error)
            return False
        return True

    def fetched(self, inos: Sequence[int], gone: bool = False) -> None:
        """These inodes are as they should be: here whole, or gone. Raises OSError: they are stale as before."""
        if gone:
            for ino in inos:
                self.store.drop(ino)
        self.store.sync_objects()
        self.store.sync()  # so that what came without its data is behind the mark
        self._fresh(inos)

    def _fresh(self, inos: Sequence[int]) -> None:
        self._write_stale((), inos)

    def _write_stale(self, more: Sequence[int], less: Sequence[int] = ()) -> None:
        """Let more be stale, or less. Raises OSError, and nothing has changed."""
        stale = {**self.stale, **dict.fromkeys(more, True)}
        for ino in less:
            stale.pop(ino, None)
        if stale != self.stale:
            write_durably(self._stale_path, msgspec.json.encode(list(stale)), 0o600)
            self.stale = stale

    def _read_stale(self) -> dict[int, bool]:
        try:
            return dict.fromkeys(msgspec.json.decode(self._stale_path.read_bytes(), type=list[int]), True)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            why = reason(error)
            raise DamagedJournal(f"{self._stale_path} is damaged", why, "let this head begin anew") from None

    def close(self) -> None:
        """End cleanly."""
        self._compaction.stop()
        self.store.sync()
        self.journal.close()
        self.store.close()
        self.segments.close()

    # ----

    def _replay(self) -> State:
        return replay(*self.journal.load())

    def _entries(self, first: int, limit: int) -> Sequence[Entry]:
        try:
            return self.journal.entries(first, limit)
        except BeoError:
            if first >= self.journal.oldest_index:
                raise
            return []  # cut a moment ago, by the journal's own thread

    def _load_pending(self) -> None:
        """Find again what is not in the store yet."""
        index = self.store.applied + 1
        while index <= self.journal.last_index:
            for entry in self.journal.entries(index, 1_000):
                change = changes.decode(entry.data)
                if isinstance(change, Wrote) and change.digest and change.ino not in self.stale:
                    data = self.segments.get(entry.index)
                    if digest_of(data) != change.digest:
                        what = f"the data of entry {entry.index} in {self._folder / 'data'} is not what was written"
                        raise DamagedJournal(what, "", "restore it, or let this head begin anew")
                    change = msgspec.structs.replace(change, data=data)
                self._wait_for_store(entry.index, change)
                index = entry.index + 1

    def _wait_for_store(self, index: int, change: Change) -> None:
        self._pending.append((index, change))
        self.pending_bytes += _size(change)

    def wait_for_room(self, error: OSError) -> None:
        """Go on when the disk has room again, which this error says it has not. Raises what is another error."""
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise error
        if not self.full:
            log.error("files wait for room: %s", BeoError("the tree's disk is full", reason(error), "free space there"))
        self.full = True
        self._retry_s = time.monotonic() + RETRY_S


def _known_by(change: Change) -> tuple[int, ...]:
    """Inodes whose bytes are what they should be after this change, whatever they were."""
    if isinstance(change, Reaped):
        return change.inos
    return (change.ino,) if isinstance(change, Changed) and change.size == 0 else ()


def _divided(change: Change) -> tuple[Change, bytes]:
    """Return a change as the journal keeps it, and the data that goes beside it."""
    if not isinstance(change, Wrote) or len(change.data) <= INLINE_MAX_BYTES:
        return change, b""
    return msgspec.structs.replace(change, data=b"", digest=digest_of(change.data)), change.data


def _size(change: Change) -> int:
    return 100 + len(change.data) if isinstance(change, Wrote) else 100
