"""What comes to the head's core and what it wants done: its inputs and effects, as values."""

from __future__ import annotations

from typing import Union

import msgspec

from beo import events as ev
from beo import messages as ms
from beo.account import Account


class Now(msgspec.Struct, frozen=True):
    """boot_s: CLOCK_BOOTTIME, for decisions. wall_s: seconds since 1970, for people."""

    boot_s: float
    wall_s: float


# ---- inputs


class Begin(msgspec.Struct, frozen=True):
    """The journal was replayed: this head may act. birth: facts to journal first, for a new cluster."""

    birth: tuple[ev.Event, ...] = ()


class Asked(msgspec.Struct, frozen=True):
    """A message came: from `peer`, with the request id to answer under, by the holder of `key`."""

    peer: bytes
    request: int
    key: str
    message: Union[ms.ClientRequest, ms.AgentReport]  # noqa: UP007
    account: Account | None = None  # of whom a submission or a worker's word is about


class Knock(msgspec.Struct, frozen=True):
    """Somebody at a door: who the kernel says he is, and the public key that he wants to be known by."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    key: str


class Knocked(msgspec.Struct, frozen=True):
    """Somebody stands at the head's own door; `visitor` is for the answer."""

    visitor: int
    knock: Knock
    account: Account


class Durable(msgspec.Struct, frozen=True):
    """Every entry up to index is fsynced."""

    index: int


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class Turn(msgspec.Struct, frozen=True):
    """All messages that had come are handled: place what can be placed."""


# ---- effects


class Append(msgspec.Struct, frozen=True):
    """Append this event to the journal; it gets this index."""

    index: int
    event: ev.Event


class Send(msgspec.Struct, frozen=True):
    """Send a message, under a request id (0: none)."""

    peer: bytes
    request: int
    message: Union[ms.HeadAnswer, ms.HeadCommand]  # noqa: UP007


class Over(msgspec.Struct, frozen=True):
    """These jobs changed: whoever waits for their output should look again."""

    jobs: tuple[int, ...]


class Forget(msgspec.Struct, frozen=True):
    """These jobs are off the record: their output may go."""

    jobs: tuple[int, ...]


class Greet(msgspec.Struct, frozen=True):
    """Tell a visitor of the door as whom he is let in, or why not."""

    visitor: int
    user: str
    error: dict[str, str] | None = None


Effect = Union[Append, Send, Over, Forget, Greet]  # noqa: UP007
