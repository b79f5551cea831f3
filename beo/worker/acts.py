"""What comes to the agent's core and what it wants done: its inputs and effects, as values."""

from __future__ import annotations

from typing import Any, Union

import msgspec

from beo import messages as ms


class Now(msgspec.Struct, frozen=True):
    """boot_ns: CLOCK_BOOTTIME."""

    boot_ns: int


class Node(msgspec.Struct, frozen=True):
    """What the agent knows of its own machine."""

    name: str
    boot: str
    address: str
    key: str
    slots: int
    mem_bytes: int
    facts: dict[str, str]


# ---- inputs


class Begin(msgspec.Struct, frozen=True):
    """The agent has started. orders: the START of every part that was not committed, by (job, attempt)."""

    incarnation: str
    epoch: int
    seen: tuple[tuple[int, int, int], ...]  # (index, job, attempt) ever started or ruled out by this incarnation
    orders: tuple[ms.Start, ...]
    wardens: tuple[int, ...]  # those that answer; each tells its state next
    leaving: frozenset[int] = frozenset()  # jobs that are asked to go on where none of their nodes is


class FromHead(msgspec.Struct, frozen=True):
    """A command of a head; `head` is by which connection it came."""

    message: ms.HeadCommand
    head: str = ""


class Rises(msgspec.Struct, frozen=True):
    """A head has a vote or a lease of this node for an epoch: it is about to act, or does."""

    head: str
    epoch: int


class Reconnected(msgspec.Struct, frozen=True):
    """There is a new connection to a head: it, or its successor, has heard nothing of this node yet."""


class FromPeer(msgspec.Struct, frozen=True):
    """A word of another agent; `channel` is what an answer goes to, `key` whose word it is."""

    channel: bytes
    message: ms.AgentWord
    key: str


class FromWarden(msgspec.Struct, frozen=True):
    """A message of a warden."""

    warden: int
    message: dict[str, Any]


class WardenClosed(msgspec.Struct, frozen=True):
    """A warden's process has ended, and everything that it held with it. A connection that closed is not enough."""

    warden: int
    spool_bytes: int  # what it left of the attempt's output


class LaunchFailed(msgspec.Struct, frozen=True):
    """A `Launch` could not be carried out; nothing of the part has started."""

    job: int
    attempt: int
    reason: str


class Shipped(msgspec.Struct, frozen=True):
    """The head has all output of a part."""

    job: int
    attempt: int


class Learned(msgspec.Struct, frozen=True):
    """The node knows more of its machine than it has told: facts that stand beside the others, or in their place."""

    facts: dict[str, str]


class StdinCame(msgspec.Struct, frozen=True):
    """Input for rank 0, by the bulk plane."""

    message: ms.Stdin


class Copied(msgspec.Struct, frozen=True):
    """What the vault keeps of a part's job is in the tree, as this bundle; "": it isn't.

    at_end: it is what the part has left at its end, so that its end may be told.
    """

    job: int
    attempt: int
    bundle: str
    size_bytes: int
    at_end: bool
    checkpoints: tuple[tuple[str, int, int], ...] = ()  # see messages.VaultCopied


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


Input = Union[  # noqa: UP007
    Begin,
    FromHead,
    Rises,
    Reconnected,
    FromPeer,
    FromWarden,
    WardenClosed,
    LaunchFailed,
    Shipped,
    StdinCame,
    Copied,
    Learned,
    Tick,
]


# ---- effects


class ToHead(msgspec.Struct, frozen=True):
    """Send to the head of this connection, if it is there; "": to every head."""

    message: ms.AgentReport
    head: str = ""


class Follow(msgspec.Struct, frozen=True):
    """A head acts: its bulk plane is there, and these are all heads, as far as it tells them."""

    bulk: str
    heads: tuple[ms.HeadView, ...]


class ToPeer(msgspec.Struct, frozen=True):
    """Send to another agent."""

    peer: ms.Peer
    message: ms.AgentWord


class Answer(msgspec.Struct, frozen=True):
    """Answer another agent on the channel that it asked by."""

    channel: bytes
    message: ms.AgentWord


class ToWarden(msgspec.Struct, frozen=True):
    """Send to a warden."""

    warden: int
    message: dict[str, Any]


class Launch(msgspec.Struct, frozen=True):
    """Give an order to a warden; warden 0: a new one, whose number comes back through `launched`."""

    warden: int
    order: ms.Start
    leash_until_ns: int  # 0: none


class Ship(msgspec.Struct, frozen=True):
    """The part's spool has grown to this length; final: nothing comes behind it."""

    warden: int
    job: int
    attempt: int
    length: int
    final: bool


class StdinTaken(msgspec.Struct, frozen=True):
    """Tell the bulk plane what rank 0's warden has taken, and the size that its terminal has."""

    job: int
    attempt: int
    have: int
    closed: bool
    window: tuple[int, int] = (0, 0)


class LookInside(msgspec.Struct, frozen=True):
    """Look at processes, or signal some, for the head. wardens: (job, attempt, warden) of what lives here of it."""

    message: Union[ms.Inspect, ms.Strike]  # noqa: UP007
    wardens: tuple[tuple[int, int, int], ...]


class Say(msgspec.Struct, frozen=True):
    """Tell the ranks of a part what to do at their next safe point (see word.py), and why."""

    job: int
    attempt: int
    do: str
    why: str
    leaving: tuple[str, ...] = ()
    is_all: bool = False  # none of the attempt's nodes stays


class Copy(msgspec.Struct, frozen=True):
    """Copy at once what the vault keeps of a job to the tree: it goes on where nobody has it. → Copied"""

    order: ms.Start


class Empty(msgspec.Struct, frozen=True):
    """Remove what the vault keeps of these jobs."""

    jobs: tuple[int, ...]


class Remember(msgspec.Struct, frozen=True):
    """Write down that an attempt was seen, and its order, before anything is started."""

    order: ms.Start


class Seen(msgspec.Struct, frozen=True):
    """Write down that an attempt was ruled out and will never be started here; its index is not known (0)."""

    job: int
    attempt: int


class Drop(msgspec.Struct, frozen=True):
    """Forget a part: its order, its output, its warden's folder if that has gone."""

    job: int
    attempt: int


class Reborn(msgspec.Struct, frozen=True):
    """Write down a new incarnation; what was seen before is void."""

    incarnation: str


class Epoch(msgspec.Struct, frozen=True):
    """Write down the highest epoch obeyed."""

    epoch: int


Effect = Union[  # noqa: UP007
    ToHead,
    Follow,
    ToPeer,
    Answer,
    ToWarden,
    Launch,
    Ship,
    StdinTaken,
    LookInside,
    Say,
    Copy,
    Empty,
    Remember,
    Seen,
    Drop,
    Reborn,
    Epoch,
]
