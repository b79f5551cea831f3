"""What comes to the head's core and what it wants done: its inputs and effects, as values."""

from __future__ import annotations

from typing import Union

import msgspec

from beo import events as ev
from beo import messages as ms
from beo.account import Account
from beo.votes import HeadQuestion


class Now(msgspec.Struct, frozen=True):
    """boot_s: CLOCK_BOOTTIME, for decisions. wall_s: seconds since 1970, for people. may_act: no other head acts."""

    boot_s: float
    wall_s: float
    may_act: bool = True


# ---- inputs


class Begin(msgspec.Struct, frozen=True):
    """This head may act, in this epoch (0: the next one). birth: facts of a new cluster, to journal before all others.

    news: facts to journal when it has begun. down_s: for so long nobody acted, as far as is known.
    """

    birth: tuple[ev.Event, ...] = ()
    head: str = ""
    epoch: int = 0
    news: tuple[ev.Event, ...] = ()
    down_s: float = 0.0


class Asked(msgspec.Struct, frozen=True):
    """A message came: from `peer`, with the request id to answer under, by the holder of `key`."""

    peer: bytes
    request: int
    key: str
    message: Union[ms.ClientRequest, ms.AgentReport, ms.VoterWord]  # noqa: UP007
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


class Noted(msgspec.Struct, frozen=True):
    """A fact that was decided elsewhere in this head."""

    event: ev.Event


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
    message: Union[ms.HeadAnswer, ms.HeadCommand, HeadQuestion]  # noqa: UP007


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
