"""A head's disk: a journal that becomes durable a little later, a register file, snapshots, and what can befall them.

A crash keeps all that was fsynced and any part of the rest, the last of it torn. At the next start what is there is
read, verified and fsynced, as the real journal does; what went bad before the durable end is damage, and then a head
does not start.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from random import Random

from beo import events as ev
from beo.entries import BEGINNING, Entry, Position, Snapshot, hash_of
from beo.ha.acts import Kept
from beo.headnode.state import State
from tests.sim.clock import Clock

FSYNC_S = (0.001, 0.01)


class DiskError(Exception):
    """The process ends: its disk failed, or is full."""


class Disk:
    """One head's. `told_*` are called when something is durable, `ended` when the process must end."""

    def __init__(self, clock: Clock, random: Random, kept: Kept) -> None:
        self._clock = clock
        self._random = random
        self._life = 0
        self.told_durable: Callable[[int], None] = lambda index: None
        self.told_stored: Callable[[int], None] = lambda serial: None
        self.ended: Callable[[str], None] = lambda why: None
        self.stall_until_s = 0.0
        self.fails = ""  # "EIO": the next fsync fails; "ENOSPC", "register": the next write, of the register
        self.orphans: list[Entry] = []
        self.format(kept)

    def format(self, kept: Kept) -> None:
        """Begin anew, with nothing but this register."""
        self._life += 1
        self.kept = kept
        self.cut: Position = BEGINNING
        self.snapshots: list[Snapshot] = []
        self.entries: list[Entry] = []
        self.durable = 0
        self.damaged = False
        self._began()

    def _began(self) -> None:
        self._syncing = False
        self._undurable: deque[tuple[int, float]] = deque()
        self._stores: list[tuple[int, Kept]] = []
        self._storing: Kept | None = None  # what is being written

    # ---- reading

    @property
    def last(self) -> Position:
        """Where the journal ends."""
        if not self.entries:
            return self.cut
        entry = self.entries[-1]
        return Position(entry.index, entry.epoch, entry.hash)

    def entry(self, index: int) -> Entry | None:
        """The entry at an index, if it is there and not cut off."""
        place = index - self.cut.idx - 1
        return self.entries[place] if 0 <= place < len(self.entries) else None

    def locate(self, index: int) -> Position | None:
        """The position of an entry."""
        if index == self.cut.idx:
            return self.cut
        found = self.entry(index)
        return Position(found.index, found.epoch, found.hash) if found else None

    def read(self, first: int, limit: int) -> list[Entry]:
        """Durable entries from first on."""
        place = first - self.cut.idx - 1
        return self.entries[place : min(place + limit, self.durable - self.cut.idx)]

    def replay(self) -> State:
        """The state after the last entry."""
        state = State.decode(self.snapshots[-1].state) if self.snapshots else State()
        for entry in self.entries[state.index - self.cut.idx :]:
            state.apply(ev.decode(entry.data))
        state.changed.clear()
        return state

    def waiting_s(self) -> float:
        """For how long the oldest entry that isn't durable has waited."""
        return self._clock.s - self._undurable[0][1] if self._undurable else 0.0

    # ---- writing

    def append(self, entry: Entry) -> None:
        """Append to the journal; raises DiskError where that is full."""
        if self.fails == "ENOSPC":
            raise DiskError("ENOSPC")
        last = self.last
        assert entry.index == last.idx + 1, f"entry {entry.index} behind {last.idx}"
        assert entry.hash == hash_of(last.hash, entry.index, entry.epoch, entry.data), "it is of another history"
        self.entries.append(entry)
        self._undurable.append((entry.index, self._clock.s))
        self._sync()

    def _sync(self) -> None:
        if self._syncing or self.durable >= self.last.idx:
            return
        self._syncing = True
        life, upto = self._life, self.last.idx
        self._clock.after(self._random.uniform(*FSYNC_S), lambda: self._synced(life, upto))

    def _synced(self, life: int, upto: int) -> None:
        if life != self._life:
            return
        if self._clock.s < self.stall_until_s:
            self._clock.after(self.stall_until_s - self._clock.s, lambda: self._synced(life, upto))
            return
        if self.fails == "EIO":
            self.ended("EIO")
            return
        self._syncing = False
        self.durable = max(self.durable, upto)
        while self._undurable and self._undurable[0][0] <= upto:
            self._undurable.popleft()
        self._sync()
        self.told_durable(upto)

    def store(self, serial: int, kept: Kept) -> None:
        """Write the register file: a new one beside it, fsynced, renamed. The newest wish is written next."""
        if self.fails == "register":
            raise DiskError("ENOSPC")
        self._stores.append((serial, kept))
        self._store()

    def _store(self) -> None:
        if not self._storing and self._stores:
            life, (serial, kept) = self._life, self._stores[-1]
            self._storing = kept
            self._clock.after(self._random.uniform(*FSYNC_S), lambda: self._stored(life, serial, kept))

    def _stored(self, life: int, serial: int, kept: Kept) -> None:
        if life != self._life:
            return
        if self._clock.s < self.stall_until_s:
            self._clock.after(self.stall_until_s - self._clock.s, lambda: self._stored(life, serial, kept))
            return
        if self.fails == "EIO":
            self.ended("EIO")
            return
        self.kept = kept
        self._stores = [wish for wish in self._stores if wish[0] > serial]
        self._storing = None
        self._store()
        self.told_stored(serial)

    def snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot of something committed, cut what lies before the one before it."""
        if self.snapshots:
            older = self.snapshots[-1]
            del self.entries[: older.index - self.cut.idx]
            self.cut = Position(older.index, older.epoch, older.hash)
        self.snapshots = [*self.snapshots[-1:], snapshot]

    def truncate(self, position: Position) -> None:
        """Copy what lies behind a position to the orphans, drop it, and be durable. A snapshot behind it goes, too."""
        place = position.idx - self.cut.idx
        assert place >= 0, "it is cut off already"
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot.index <= position.idx]
        self.orphans += self.entries[place:]
        del self.entries[place:]
        self._settle()

    def install(self, position: Position, state: bytes) -> None:
        """Replace everything by a snapshot, durably."""
        self.orphans += self.entries
        self.entries, self.cut = [], position
        self.snapshots = [Snapshot(position.idx, position.epoch, position.hash, state)]
        self._settle()

    def _settle(self) -> None:
        self._syncing = False
        self._life += 1
        self._undurable.clear()
        self.durable = self.last.idx
        self._storing = None
        self._store()

    # ---- what befalls it

    def crash(self, power: bool) -> list[Entry]:
        """The process or the machine has died; returns the entries that are lost."""
        random = self._random
        self._life += 1
        if self._storing and random.random() < 0.5:
            self.kept = self._storing
        keep = random.randint(self.durable, self.last.idx)
        if power and random.random() < 0.5:
            keep = self.durable
        lost = self.entries[keep - self.cut.idx :]
        del self.entries[keep - self.cut.idx :]
        if power and lost and random.random() < 0.5:
            self.entries.append(dataclasses.replace(lost[0], data=lost[0].data[: len(lost[0].data) // 2]))
        self.fails = ""
        self._began()
        return lost

    def flip(self) -> None:
        """A bit of the journal or of a snapshot is not what was written."""
        random = self._random
        if self.snapshots and (not self.durable > self.cut.idx or random.random() < 0.3):
            old = self.snapshots[-1]
            self.snapshots[-1] = dataclasses.replace(old, state=_flipped(old.state, random), hash=bytes(16))
        elif self.durable > self.cut.idx:
            place = random.randrange(self.durable - self.cut.idx)
            old_entry = self.entries[place]
            self.entries[place] = dataclasses.replace(old_entry, data=_flipped(old_entry.data, random))

    def load(self) -> State | None:
        """Verify all, cut a torn end, be durable, and return the state; None where there is damage."""
        before = self.cut.hash
        for place, entry in enumerate(self.entries):
            if hash_of(before, entry.index, entry.epoch, entry.data) != entry.hash:
                if entry.index <= self.durable:
                    self.damaged = True
                    return None
                del self.entries[place:]
                break
            before = entry.hash
        for snapshot in self.snapshots:
            place_of = self.locate(snapshot.index)
            if place_of is None or place_of.hash != snapshot.hash:
                self.damaged = True
                return None
        self.durable = self.last.idx
        return self.replay()


def _flipped(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << random.randrange(8))]) + data[place + 1 :]
