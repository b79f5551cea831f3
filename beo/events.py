"""The facts that are journalled. Each is one entry, and only ``state.apply`` reads them to change anything.

Every fact is self-contained and encoded the same way every time (msgpack arrays: fields are only ever added at the end,
with a default). Times named ``time_s`` are wall-clock seconds since 1970, for people; by them is only decided how long
records and keys are kept, and which waiting job has been patient.
"""

from __future__ import annotations

from typing import Union

import msgspec

from beo.results import PartResult as PartResult
from beo.results import RankResult as RankResult
from beo.results import StepRank as StepRank
from beo.spec import JobSpec
from beo.version import ENTRY_FORMAT
from beo.votes import PairSettings

FORMAT = ENTRY_FORMAT


class _Event(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Born(_Event, frozen=True):
    """A cluster begins: always entry 1."""

    cluster: str  # id, 32 hex digits
    head: str  # name of its first head
    time_s: float
    format: int = FORMAT


class EpochBegan(_Event, frozen=True):
    """A head started to act. Epochs only grow; head A's are odd. down_s: for so long nobody had, as far as is known."""

    epoch: int
    head: str
    time_s: float
    down_s: float = 0.0


class HeadJoined(_Event, frozen=True):
    """A head belongs to the cluster, or can be reached elsewhere now. Addresses are host:port."""

    head: str
    control: str
    bulk: str
    links: tuple[str, ...]  # of its pair plane, one per path
    time_s: float
    key: str = ""  # by which it was taken in; the first head needed none


class HeadLeft(_Event, frozen=True):
    """A head belongs to the cluster no more."""

    head: str
    user: str
    time_s: float


class PairSet(_Event, frozen=True):
    """What both heads agree on."""

    settings: PairSettings
    user: str
    time_s: float


class KeyAuthorized(_Event, frozen=True):
    """A CURVE public key (40 characters of Z85) may connect, as `user`, in a role: admin, user or worker.

    uid: whose jobs it may submit; -1: anybody's, which is for admins. node: the only one that a worker's key speaks
    for; "": those that no other key does. A node has one key: the one before is void. gid and groups: what a door's
    kernel said of one who has no account on the head's machine.
    """

    key: str
    user: str
    role: str
    time_s: float
    uid: int = -1
    node: str = ""
    gid: int = -1
    groups: tuple[int, ...] = ()


class KeyRevoked(_Event, frozen=True):
    """A key, of a client, a worker or a token, may not connect any more."""

    key: str
    user: str  # who said so
    time_s: float


class KeysRevoked(_Event, frozen=True):
    """These keys of a user may not connect any more, and never again; a barred user gets no other one at a door."""

    keys: tuple[str, ...]
    user: str
    barred: bool
    by: str
    time_s: float


class UserAllowed(_Event, frozen=True):
    """A barred user may come to the doors again."""

    user: str
    by: str
    time_s: float


class TokenMade(_Event, frozen=True):
    """Whoever holds this token may have so many keys of his own authorized, as `user` in a role, until it expires.

    key: the public key that belongs to the token, which itself is nowhere on record.
    """

    number: int
    key: str
    role: str
    user: str
    uid: int
    uses: int
    expires_s: float
    maker: str
    time_s: float


class Enrolled(_Event, frozen=True):
    """A token was used: `key` may connect from here on, as the token says; `node`: that of a worker."""

    token: str
    key: str
    node: str
    time_s: float


class Submitted(_Event, frozen=True):
    """A job exists from here on."""

    job: int
    key: str  # the client's own key for this submission: repeating it gives the same job
    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    spec: JobSpec
    time_s: float
    hold: bool = False  # it waits until its owner releases it


class Part(msgspec.Struct, frozen=True, array_like=True):
    """The ranks of an attempt on one node: `ranks` of them from `first_rank` on, and slots for `more`.

    A batch job's ranks are slots too: its script runs on the first node, once.
    """

    node: str
    incarnation: str
    first_rank: int
    ranks: int
    more: int = 0


class Started(_Event, frozen=True):
    """An attempt was placed; its START may now be sent. Void where a node's incarnation has changed meanwhile."""

    job: int
    attempt: int
    parts: tuple[Part, ...]
    nonce: str  # makes the MPI world's name unique for ever
    time_s: float
    whole: bool = False  # every node of it has a warden, those of a batch job too; else these only reserve their slots


class PartEnded(_Event, frozen=True):
    """A part ended and its node told how."""

    job: int
    attempt: int
    node: str
    result: PartResult
    time_s: float


class PartGone(_Event, frozen=True):
    """A part is certainly not alive any more, and how it ended is not known: its node attested it."""

    job: int
    attempt: int
    node: str
    reason: str
    time_s: float


class CancelRequested(_Event, frozen=True):
    """A job is to end, by its owner's wish or for the reason given."""

    job: int
    user: str
    reason: str
    time_s: float


class SignalRequested(_Event, frozen=True):
    """A signal for every rank of the job's present attempt; serials grow by one per job, so none is delivered twice."""

    job: int
    attempt: int
    serial: int
    signal: int
    user: str
    key: str
    time_s: float


class JobHeld(_Event, frozen=True):
    """A job that waits is not to start until it is released. by: 'owner', or 'admin', whom the owner can't overrule."""

    job: int
    user: str
    by: str
    time_s: float


class JobReleased(_Event, frozen=True):
    """A held job may start again."""

    job: int
    user: str
    time_s: float


class RequeueRequested(_Event, frozen=True):
    """A job is to be queued again: what runs of this attempt is ended first. hold: as JobHeld.by, or empty."""

    job: int
    attempt: int  # the present or last one, 0 before the first: a later one is not meant
    user: str
    time_s: float
    hold: str = ""
    reason: str = ""  # in words, where it isn't just the user's wish


class MoveRequested(_Event, frozen=True):
    """A job is to go on elsewhere: at its next safe point it takes a checkpoint and ends, and is queued again.

    leave: the nodes of its attempt that the next one must not have. to: those it may have; none: any other.
    """

    job: int
    attempt: int
    leave: tuple[str, ...]
    to: tuple[str, ...]
    why: str  # one word: drain, migrate, preempt, reserve
    user: str
    time_s: float
    for_job: int = 0  # that gets its room


class VaultCopied(_Event, frozen=True):
    """What a node's vault keeps of a job is in the tree as well, as this bundle: a restart may begin with it."""

    job: int
    attempt: int
    node: str
    bundle: str
    size_bytes: int
    time_s: float
    checkpoints: tuple[tuple[str, int, int], ...] = ()  # (name, images in it, ranks that it has)


class ProcessSignalled(_Event, frozen=True):
    """Somebody sends a signal to one process of a job, or one rank (rank: -1 where it is a process on `node`)."""

    job: int
    node: str
    pid: int
    rank: int
    signal: int
    user: str
    time_s: float


class PrioritySet(_Event, frozen=True):
    """A job that waits got another priority."""

    job: int
    priority: int
    user: str
    time_s: float


class NodeJoined(_Event, frozen=True):
    """A node told a new incarnation of itself, and what it still runs of earlier ones: what it doesn't name is gone.

    For the incarnation that is up already it tells new facts (its agent's address), and `running` says nothing.
    """

    node: str
    incarnation: str
    boot: str  # the kernel's boot id
    address: str  # host:port where other nodes' agents reach this one
    key: str  # that agent's CURVE public key
    slots: int
    mem_bytes: int
    facts: dict[str, str]
    running: tuple[tuple[int, int], ...]  # (job, attempt)
    time_s: float


class NodeLost(_Event, frozen=True):
    """An incarnation is dead to the cluster: its lease has run out, its leashed jobs are gone. It never comes back."""

    node: str
    incarnation: str
    reason: str
    time_s: float


class NodeGone(_Event, frozen=True):
    """The operator says that a silent machine is off: whatever ran there is certainly gone."""

    node: str
    incarnation: str
    user: str
    time_s: float


class NodeDrained(_Event, frozen=True):
    """A node gets no new work, in this and all later incarnations; what runs there goes on."""

    node: str
    user: str
    reason: str
    time_s: float


class NodeResumed(_Event, frozen=True):
    """A drained node gets work again."""

    node: str
    user: str
    time_s: float


class NodeForgotten(_Event, frozen=True):
    """A lost node of which nothing can be alive is off the record. A node of its name may join as a new one."""

    node: str
    incarnation: str
    user: str
    time_s: float


class Reserved(_Event, frozen=True):
    """From start_s to end_s these nodes run jobs of this reservation only, by these users; see headnode/calendar.py.

    chosen: by the head, so that others take the place of lost ones. kill: what is still in the way at the start ends.
    """

    number: int
    key: str  # the client's own key for this wish: repeating it gives the same reservation
    name: str
    user: str  # who made it
    users: tuple[str, ...]
    nodes: tuple[str, ...]
    chosen: bool
    start_s: float
    end_s: float
    kill: bool
    time_s: float


class ReservationMoved(_Event, frozen=True):
    """A reservation has these nodes instead of the former ones, of which some can't be had any more."""

    name: str
    nodes: tuple[str, ...]
    time_s: float


class ReservationEnded(_Event, frozen=True):
    """A reservation is over, or was cancelled by `user`: its jobs are like any others from here on."""

    name: str
    user: str  # "": its time is over
    time_s: float


class MachineLeased(_Event, frozen=True):
    """A machine that boots from the heads is on record from here on, or has another address."""

    mac: str
    name: str  # its node's
    address: str
    time_s: float


class MachineOpened(_Event, frozen=True):
    """A machine has fetched its boot script, from this address: it is expected to join soon, once."""

    mac: str
    time_s: float
    address: str = ""


class MachineAsked(_Event, frozen=True):
    """A boot of a machine wants to join by this key, and waits for the operator's word."""

    mac: str
    boot: str  # the kernel's boot id
    key: str
    time_s: float


class MachineApproved(_Event, frozen=True):
    """The operator says that this key is that machine's."""

    mac: str
    key: str
    user: str
    time_s: float


class MachineJoined(_Event, frozen=True):
    """A boot of a machine has joined: its key may speak for its node from here on, and the one before may not."""

    mac: str
    boot: str
    key: str
    node: str
    time_s: float


class MachineSet(_Event, frozen=True):
    """What the operator has set of a machine: all of it, as it is from here on. See model.Machine."""

    mac: str
    name: str
    address: str
    image: str
    policy: str
    tag: str
    power: str
    user: str
    time_s: float


class MachineForgotten(_Event, frozen=True):
    """A machine is off the record: its address is free, and its key void."""

    mac: str
    user: str
    time_s: float


class Forgotten(_Event, frozen=True):
    """Records of jobs that ended long ago were dropped."""

    jobs: tuple[int, ...]
    time_s: float


Event = Union[  # noqa: UP007 (msgspec wants the union as a value)
    Born,
    EpochBegan,
    KeyAuthorized,
    KeysRevoked,
    UserAllowed,
    Submitted,
    Started,
    PartEnded,
    PartGone,
    CancelRequested,
    SignalRequested,
    NodeJoined,
    NodeLost,
    NodeGone,
    Forgotten,
    JobHeld,
    JobReleased,
    RequeueRequested,
    PrioritySet,
    NodeDrained,
    NodeResumed,
    NodeForgotten,
    KeyRevoked,
    TokenMade,
    Enrolled,
    ProcessSignalled,
    HeadJoined,
    HeadLeft,
    PairSet,
    MoveRequested,
    VaultCopied,
    Reserved,
    ReservationMoved,
    ReservationEnded,
    MachineLeased,
    MachineOpened,
    MachineAsked,
    MachineApproved,
    MachineJoined,
    MachineSet,
    MachineForgotten,
]

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Event)


def encode(event: Event) -> bytes:
    """Encode one event; the same event always gives the same bytes."""
    return _encoder.encode(event)


def decode(data: bytes) -> Event:
    """Decode and validate one event; raises msgspec.ValidationError or DecodeError."""
    try:
        event: Event = _decoder.decode(data)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(f"no event: {error}") from None
    return event
