"""What a warden tells its agent, checked: each message is whole and of the right types, or refused.

Pure. A warden may be older or newer than its agent, and outlives it: words that the agent doesn't know are ignored, but
a known word with impossible content means that nothing this warden says can be relied upon.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

import msgspec

from beo.results import PartResult, RankResult, StepRank
from beo.worker.frames import LOST, STAGING

NOTE_LENGTH_MAX = 500  # of a reason's text: it is kept in the journal
ENDED = "ended: "  # how a warden is told a reason by its agent, and by which prefix it is recognised in the result
SILENCE = "silence: "

Whole = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class RankEnd(msgspec.Struct, frozen=True):
    """How one rank ended; status None: the warden doesn't know."""

    rank: Whole
    status: int | None
    user_s: float
    system_s: float
    peak_bytes: Whole


class StepRankEnd(RankEnd, frozen=True):
    """How one rank of a further step ended."""

    step: Whole
    spawned: bool = False


class Result(msgspec.Struct, frozen=True):
    """How a part ended: its ranks, and why it ended if not by itself. steps, more: as in results.PartResult.

    trouble: why results of the job aren't kept.
    """

    ranks: tuple[RankEnd, ...]
    reason: str | None = None
    culprit: int | None = None
    steps: tuple[StepRankEnd, ...] = ()
    more: Whole = 0
    trouble: str = ""


class Output(msgspec.Struct, frozen=True):
    """The spool has `spool_length` bytes of whole records."""

    job: int
    attempt: int
    spool_length: Whole


class Ended(msgspec.Struct, frozen=True):
    """Nothing of the part is alive any more."""

    job: int
    attempt: int
    result: Result
    spool_length: Whole = 0


class Stdin(msgspec.Struct, frozen=True):
    """Rank 0 was given `have` bytes; closed: it takes no more. window: (rows, columns) of its terminal."""

    job: int
    attempt: int
    have: Whole
    closed: bool
    window: tuple[Whole, Whole] = (0, 0)


class Peer(msgspec.Struct, frozen=True):
    """A message for the warden of the same attempt at another node."""

    job: int
    attempt: int
    to: str
    seq: Whole
    body: dict[str, Any]


class PeerAck(msgspec.Struct, frozen=True):
    """Another node's warden is told what has come from it."""

    job: int
    attempt: int
    to: str
    seq: Whole


class State(msgspec.Struct, frozen=True):
    """What the warden holds: its first word on every connection."""

    phase: Literal["idle", "running", "ended"]
    job: int = 0
    attempt: int = 0
    result: Result | None = None
    spool_length: Whole = 0


class Idle(msgspec.Struct, frozen=True):
    """The warden may be given another attempt."""


Told = Union[Output, Ended, Stdin, Peer, PeerAck, State, Idle]  # noqa: UP007

_WORDS: dict[object, type[Told]] = {
    "output": Output,
    "ended": Ended,
    "stdin": Stdin,
    "peer": Peer,
    "peer_ack": PeerAck,
    "state": State,
    "idle": Idle,
}


def read(message: dict[str, Any]) -> Told | None:
    """Read a warden's message; None for a word that the agent has no use for. ValueError: impossible content."""
    op = message.get("op")
    kind = _WORDS.get(op) if isinstance(op, str) else None
    return msgspec.convert(message, kind) if kind else None


def part_result(told: Result) -> PartResult:
    """A warden's result in the journal's words (results.PartResult)."""
    ranks = tuple(RankResult(r.rank, _status(r), r.user_s, r.system_s, r.peak_bytes) for r in told.ranks)
    steps = tuple(
        StepRank(r.step, r.rank, _status(r), r.user_s, r.system_s, r.peak_bytes, r.spawned) for r in told.steps
    )
    text, culprit = told.reason or "", told.culprit
    if text.startswith(ENDED):
        reason, text = "ended", text.removeprefix(ENDED)
    elif text.startswith(SILENCE):
        reason, text = "silence", text.removeprefix(SILENCE)
    elif text.startswith(STAGING):
        reason, text = "staging", text.removeprefix(STAGING)
    elif text.startswith(LOST):
        reason, text = "lost", text.removeprefix(LOST)
    elif text in ("time limit", "out of memory"):
        reason, text = text, ""
    elif text and culprit is not None and culprit not in {*(r.rank for r in ranks), *(r.rank for r in steps)}:
        reason = "peer"
    elif text:
        reason = "rank"
    elif any(r.status is None for r in told.ranks):
        reason, text = "lost", "the exit status of a rank is not known"
    else:
        reason = ""
    if told.trouble and not reason:
        reason, text = "collecting", f"its results are not kept: {told.trouble}"
    elif told.trouble:
        text = f"{text or reason}; its results are not kept: {told.trouble}"
    return PartResult(ranks, reason, -1 if culprit is None else culprit, text[:NOTE_LENGTH_MAX], steps, told.more)


def _status(told: RankEnd) -> int:
    """As a shell has it: an exit code has 8 bits, whatever MPI_Abort was called with."""
    return 255 if told.status is None else told.status & 255
