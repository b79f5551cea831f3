"""What comes to the pair's core and what it wants done: its inputs and effects, as values."""

from __future__ import annotations

from typing import Union

import msgspec

from beo.entries import Entry, Position
from beo.votes import Ballot, Cfg, HeadQuestion, PairMessage, Present


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a head must never forget: the epoch it has promised, the register's value, and whether that was chosen."""

    epoch: int = 0
    acc: Cfg | None = None
    chosen: bool = False


# ---- inputs


class Begin(msgspec.Struct, frozen=True):
    """The head has started, with what it had kept."""


class Tick(msgspec.Struct, frozen=True):
    """Time has passed.

    disk_s: how long the disk has taken for something that the core doesn't see. output_lag_bytes: what the other head
    lacks of the output, and output_stuck_s: for how long it has taken none of it. lacks: what this head itself is known
    to lack of the files that were acknowledged, where it follows.
    """

    disk_s: float = 0.0
    output_lag_bytes: int = 0
    output_stuck_s: float = 0.0
    lacks: int = 0


class Stored(msgspec.Struct, frozen=True):
    """What `Store` of this serial asked for is durable."""

    serial: int


class Durable(msgspec.Struct, frozen=True):
    """Every entry of this head's journal up to index is fsynced."""

    index: int


class Grown(msgspec.Struct, frozen=True):
    """This head, the primary, has appended to the log."""


class FromHead(msgspec.Struct, frozen=True):
    """The other head says something."""

    message: PairMessage


class FromVoter(msgspec.Struct, frozen=True):
    """A voter, or who could be one, says something in its own name."""

    message: Union[Present, Ballot]  # noqa: UP007


class Wish(msgspec.Struct, frozen=True):
    """An operator's: switchover, takeover or force."""

    word: str


Input = Union[Begin, Tick, Stored, Durable, Grown, FromHead, FromVoter, Wish]  # noqa: UP007

# ---- effects


class ToHead(msgspec.Struct, frozen=True):
    """Send to the other head."""

    message: PairMessage


class ToVoter(msgspec.Struct, frozen=True):
    """Send to a voter."""

    voter: str
    message: HeadQuestion


class Store(msgspec.Struct, frozen=True):
    """Make this durable, then say `Stored`."""

    serial: int
    kept: Kept


class Became(msgspec.Struct, frozen=True):
    """This head's role is another: 'primary' may act, from this epoch on; 'idle' may not any more.

    down_s: for so long nobody was heard to act, as far as this head knows.
    """

    role: str
    epoch: int
    down_s: float = 0.0


class Copied(msgspec.Struct, frozen=True):
    """These entries of the primary stand in the log now: write and apply them."""

    entries: tuple[Entry, ...]


class Back(msgspec.Struct, frozen=True):
    """Everything behind this position is void: keep a copy of it, cut it off, and have the state as it was there."""

    position: Position


class Install(msgspec.Struct, frozen=True):
    """The journal is this snapshot from now on."""

    position: Position
    data: bytes


Effect = Union[ToHead, ToVoter, Store, Became, Copied, Back, Install]  # noqa: UP007
