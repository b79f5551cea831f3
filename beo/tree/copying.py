"""How the tree's log gets from the head that leads to the other one: words, and how much may be under way. Pure.

The entries go as the journal's do (ha/sending.py, ha/taking.py). What belongs to an entry beside it goes before it; a
head that no longer has it says so, and the inode is then fetched as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from beo.entries import Entry, Position
from beo.ha.log import Log
from beo.votes import Append, Appended, Part, Parted

UNDER_WAY_BYTES = 8 << 20  # of entries and their data, unanswered: a network of 1 Gbit/s takes it in 70 ms
MESSAGE_BYTES = 1 << 20
FETCHED_MAX = 8  # pieces of stale inodes that are asked for at a time
FETCHED_BYTES = 256 << 10  # in one piece


class _Word(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Data(_Word, frozen=True):
    """What belongs to entry `index` beside it. None: it is no longer here."""

    epoch: int
    index: int
    data: bytes | None


class Piece(_Word, frozen=True):
    """Bytes of an inode as it is in the giver's store after entry `applied`.

    size: in all; GONE where the inode is, LOST where it is stale there, too.
    """

    epoch: int
    ino: int
    offset: int
    size: int
    data: bytes
    applied: int


class Want(_Word, frozen=True):
    """Bytes of an inode are wanted as they are after entry `applied`, or later."""

    epoch: int
    ino: int
    offset: int
    applied: int


class Received(_Word, frozen=True):
    """Everything up to an entry has come, in this life of the head that follows, though it may not be durable."""

    epoch: int
    life: str
    index: int


class Condition(_Word, frozen=True):
    """How a head that follows fares besides, as of entry `match`: how many inodes are stale, what room it has left."""

    epoch: int
    stale: int
    free_bytes: int
    total_bytes: int
    match: int
    trouble: str = ""


GONE, LOST = -1, -2

ToFollower = Data | Piece | Append | Part | Want
ToLeader = Appended | Parted | Want | Condition | Received | Piece

encode = msgspec.msgpack.Encoder().encode
to_follower: msgspec.msgpack.Decoder[ToFollower] = msgspec.msgpack.Decoder(ToFollower)
to_leader: msgspec.msgpack.Decoder[ToLeader] = msgspec.msgpack.Decoder(ToLeader)


class Window(Log):
    """A log for a `Sender`, of which no more is under way than may be."""

    def __init__(self, log: Log, size_of: Callable[[int], int]) -> None:
        """Look at this log. size_of(index): bytes of what belongs to an entry beside it."""
        self._whole = log
        self._size_of = size_of
        self._sent: dict[int, int] = {}  # entry -> bytes, of those that are under way
        self.under_way_bytes = 0

    @property
    def cut(self) -> Position:  # type: ignore[override]
        """Where it begins."""
        return self._whole.cut

    @property
    def last(self) -> Position:  # type: ignore[override]
        """Where it ends."""
        return self._whole.last

    def position(self, index: int) -> Position | None:
        """Return where an entry stands."""
        return self._whole.position(index)

    def matched(self, index: int) -> None:
        """Everything up to an entry has arrived."""
        for number in [number for number in self._sent if number <= index]:
            self.under_way_bytes -= self._sent.pop(number)

    def again(self, index: int) -> None:
        """Everything behind an entry is to be sent again."""
        for number in [number for number in self._sent if number > index]:
            self.under_way_bytes -= self._sent.pop(number)

    def entries(self, first: int, limit: int, limit_bytes: int) -> list[Entry]:
        """Return entries as `Log` does, but none while too much is under way."""
        found: list[Entry] = []
        if self.under_way_bytes >= UNDER_WAY_BYTES:
            return found
        size = 0
        for entry in self._whole.entries(first, limit, limit_bytes):
            takes = len(entry.data) + self._size_of(entry.index)
            size += takes
            if found and size > MESSAGE_BYTES:
                break
            found.append(entry)
            self.under_way_bytes += takes - self._sent.get(entry.index, 0)
            self._sent[entry.index] = takes
        return found
