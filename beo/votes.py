"""The words of two heads and their voters: the register *who goes on*, leases, and the copying of the journal.

The register holds one `Cfg`. It is a Paxos register: heads are its proposers; heads, workers and witnesses its
acceptors (`Prepare` to `Refuse`). The journal is copied from the primary to its standby (`Append` to `HandOver`).
Between heads these go over the pair plane, a socket of its own; to and from voters over the control plane.

A *voter* is named ``NODE/NONCE``, the nonce new with each life of its memory: who has forgotten is another voter.
Epochs are unique per head: A's are odd, B's even. The bits from `GENERATION_SHIFT` on count how often an operator has
said that the other head is dead (`beo ha force-primary`), so a forced head is ahead of all that was before.

Times ``t`` are seconds of the sender's CLOCK_BOOTTIME, echoed and never compared with another machine's.
"""

from __future__ import annotations

from typing import Union

import msgspec

from beo.entries import Position

GENERATION_SHIFT = 32  # of an epoch: 4 billion elections per generation
SNAPSHOT_PART_BYTES = 1024 * 1024  # of a snapshot in one message: half of the largest
APPEND_MAX_BYTES = 1024 * 1024  # of entries in one message; a single larger one goes alone
APPEND_ENTRIES_MAX = 2_048  # in one message


class Cfg(msgspec.Struct, frozen=True, array_like=True):
    """A value of the register: who is in step (one head: it goes on alone), and whose votes count.

    isr: names of heads, ("A", "B") or one; at level B the standby's is "B/INCARNATION". voters: sets of voters, each
    of which must agree by majority; two while the set is being changed.
    """

    epoch: int
    n: int
    isr: tuple[str, ...]
    voters: tuple[tuple[str, ...], ...] = ()

    @property
    def order(self) -> tuple[int, int]:
        """By this are two values compared: the higher is the later one."""
        return self.epoch, self.n

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the heads in step, without incarnations."""
        return tuple(member.partition("/")[0] for member in self.isr)

    @property
    def electorate(self) -> tuple[str, ...]:
        """Every voter of any set, each once."""
        return tuple(dict.fromkeys(voter for group in self.voters for voter in group))


class PairSettings(msgspec.Struct, frozen=True, array_like=True):
    """What both heads must agree on; an entry of the journal sets it.

    level: "C" (acknowledged is durable on both), "B" (received by the standby) or "A" (durable on the primary alone).
    takeover: "automatic" or "manual". failback: the first head gets its role back when all is well. frozen: nobody
    takes over, by an operator's wish. lease_s: how long a primary may act without an answer; silence_s: after so much
    of it a primary goes on alone.
    """

    level: str = "C"
    takeover: str = "automatic"
    failback: bool = False
    frozen: bool = False
    lease_s: float = 0.6
    silence_s: float = 0.4


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# ---- the register: a head asks, acceptors answer


class Prepare(_Message, frozen=True):
    """Promise to take nothing below this epoch. pre: only say whether you would. → Promise or Refuse"""

    head: str
    epoch: int
    pre: bool = False


class Promise(_Message, frozen=True):
    """It is promised (pre: it would be); `acc` is the highest value that this acceptor has taken, if any."""

    voter: str
    epoch: int
    acc: Cfg | None
    pre: bool = False


class Accept(_Message, frozen=True):
    """Take this value. → Accepted or Refuse

    upto: a head that the value names as in step must have the journal up to this index; it doesn't answer before.
    """

    head: str
    cfg: Cfg
    upto: int = 0


class Accepted(_Message, frozen=True):
    """The value (epoch, n) is taken."""

    voter: str
    epoch: int
    n: int


class Lease(_Message, frozen=True):
    """Promise no other head anything for `lease_s` from now. → Granted or Refuse"""

    head: str
    epoch: int
    t: float
    lease_s: float


class Granted(_Message, frozen=True):
    """The lease that was asked for at `t` is given."""

    voter: str
    epoch: int
    t: float


class Refuse(_Message, frozen=True):
    """Not so: `promised` is the epoch that stands here, `epoch` who asked. lease: only the other's lease runs."""

    voter: str
    epoch: int
    promised: int
    lease: bool = False


class Present(_Message, frozen=True):
    """A possible voter gives a sign of life to a head, whatever its role. node: "" for a witness."""

    voter: str
    node: str = ""
    rack: str = ""


# ---- the journal: from the primary to its standby


class Append(_Message, frozen=True):
    """Entries behind the position `previous`; without any, a heartbeat. A `Lease` of the other head too. → Appended

    entries: (epoch, data) each; `last` is the primary's newest index and `commit` how far all is safe. digest: (index,
    hash) of the primary's state as it was there, to be compared.
    """

    head: str
    epoch: int
    t: float
    lease_s: float
    previous: Position
    entries: tuple[tuple[int, bytes], ...]
    commit: int
    last: int
    digest: tuple[int, bytes] = (0, b"")


class Appended(_Message, frozen=True):
    """The standby's journal agrees with the primary's up to `match`, durably (at level B: it has been received).

    ok: `previous` was found. Else `hint` is to be tried as the previous index. member: its name in isr. blank: it holds
    no value of the register, as after its disk was emptied, and so would never take over.
    """

    head: str
    epoch: int
    t: float
    match: int
    ok: bool
    hint: int
    member: str
    blank: bool = False


class Part(_Message, frozen=True):
    """A piece of a snapshot, for a standby that lacks what was cut off the journal already. → Parted"""

    head: str
    epoch: int
    position: Position
    offset: int
    total: int
    data: bytes


class Parted(_Message, frozen=True):
    """So many bytes of the snapshot at this index are here."""

    head: str
    epoch: int
    index: int
    have: int


class HandOver(_Message, frozen=True):
    """The primary of this epoch has stepped down in favour of its standby, whose journal ends at `position`, too."""

    head: str
    epoch: int
    position: Position


class Hello(_Message, frozen=True):
    """Who a head is; said again and again. One of another cluster, or that writes what ours can't read, is shut out."""

    head: str
    cluster: str
    incarnation: str
    entry_format: int
    state_format: int
    version: str
    role: str
    epoch: int
    voters: tuple[str, ...] = ()  # possible voters that it hears
    tree: str = ""  # where its tree of files is served


Ballot = Union[Promise, Accepted, Granted, Refuse]  # noqa: UP007
HeadQuestion = Union[Prepare, Accept, Lease]  # noqa: UP007  # to a voter
PairMessage = Union[  # noqa: UP007
    Prepare, Promise, Accept, Accepted, Refuse, Append, Appended, Part, Parted, HandOver, Hello
]

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
_decoder = msgspec.msgpack.Decoder(PairMessage)


def decode(data: bytes) -> PairMessage:
    """Decode one message of the pair plane; raises msgspec.DecodeError."""
    try:
        message: PairMessage = _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"no message of a head: {error}") from None
    return message


def generation(epoch: int) -> int:
    """Return how often a head had been forced before this epoch."""
    return epoch >> GENERATION_SHIFT


def epoch_text(epoch: int) -> str:
    """Return an epoch as people see it: "7", and "2:7" once a head was forced twice."""
    count = generation(epoch)
    number = epoch & ((1 << GENERATION_SHIFT) - 1)
    return f"{count}:{number}" if count else str(number)
