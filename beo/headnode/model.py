"""What the head keeps of jobs, attempts, nodes and keys: the structs that the state is made of and a snapshot holds."""

from __future__ import annotations

import msgspec

from beo import events as ev
from beo import nodeset
from beo.spec import JobSpec

ENDED = frozenset({"done", "failed", "cancelled", "lost"})
WAITING = frozenset({"queued", "held"})  # nothing of it runs, and it has not ended
LEASHABLE = frozenset({"pidns", "userns"})  # containments under which the kernel ends a silent node's ranks


class PartState(msgspec.Struct, array_like=True):
    """A part of an attempt. state: live, reserved (slots without a process, of an old journal), ended or gone."""

    node: str
    incarnation: str
    first_rank: int
    ranks: int
    state: str = "live"
    result: ev.PartResult | None = None
    more: int = 0  # slots for further ranks

    @property
    def places(self) -> int:
        """Ranks that it holds slots for."""
        return self.ranks + self.more


class Attempt(msgspec.Struct, array_like=True):
    """One attempt. index: of its Started entry. cause: what ended it, as (kind, code, sentence): the first
    thing that did, but a loss rather than a rank that failed.
    """

    number: int
    index: int
    nonce: str
    started_s: float
    parts: list[PartState]
    leashed: bool = False
    ended_s: float = 0.0
    cause: tuple[str, int, str] | None = None
    outcome: str = ""
    moved: bool = False  # it halted, and the next one goes on where it was
    left: tuple[str, ...] = ()  # its nodes that a move has left: what they still keep of the job is old
    void: bool = False  # too much of the checkpoint is lost: the next one begins with the copies at the head

    @property
    def over(self) -> bool:
        """Whether no part can be alive any more."""
        return all(part.state != "live" for part in self.parts)

    @property
    def left_all(self) -> bool:
        """Whether a move has left all its nodes: then each has a copy at the heads of what it kept."""
        return self.moved and {part.node for part in self.parts} <= set(self.left)


class Signal(msgspec.Struct, array_like=True, frozen=True):
    """One signal for the ranks of an attempt. Serials grow by one per job."""

    serial: int
    attempt: int
    number: int
    key: str


class Move(msgspec.Struct, array_like=True, frozen=True):
    """What was asked of an attempt: to go on elsewhere. See events.MoveRequested."""

    attempt: int
    leave: tuple[str, ...]
    to: tuple[str, ...]
    why: str
    user: str
    for_job: int = 0
    time_s: float = 0.0

    @property
    def reason(self) -> str:
        """Why, in words."""
        drained = f"{nodeset.fold(self.leave)} is drained by {self.user}"
        reserved = f"{nodeset.fold(self.leave)} is reserved by {self.user}"
        words = {"drain": drained, "preempt": f"made room for job {self.for_job}", "reserve": reserved}
        return words.get(self.why, f"moved by {self.user}")


class VaultCopy(msgspec.Struct, array_like=True, frozen=True):
    """What a node's vault kept of a job, as a bundle in the tree; nodes: how many the attempt had.

    checkpoints: which are in it, each with how many of its images, and of how many ranks.
    """

    attempt: int
    nodes: int
    node: str
    bundle: str
    size_bytes: int
    time_s: float
    checkpoints: tuple[tuple[str, int, int], ...] = ()


class Job(msgspec.Struct, array_like=True):
    """One job. state: queued, held, running, ending, done, failed, cancelled or lost."""

    id: int
    key: str
    user: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    spec: JobSpec
    submitted_s: float
    state: str = "queued"
    attempts: list[Attempt] = []
    cancel: str = ""  # why it is to end
    signals: list[Signal] = []  # the last ones
    ended_s: float = 0.0
    exit_code: int = -1
    code_by: str = "job"
    reason: str = ""
    hold: str = ""  # who may release it: 'owner' (or an admin), or 'admin' alone; empty: it isn't held
    held_by: str = ""
    requeue: str = ""  # why the present attempt is ended and another one wanted
    move: Move | None = None  # asked of the present or last attempt; the next one has been told where
    since: int = (
        1  # the first of the attempts that, each going on where the last one halted, have led to the present one
    )
    losses: int = 0  # attempts that were lost
    copies: list[VaultCopy] = []  # of what its nodes keep; see bundles.py

    @property
    def attempt(self) -> Attempt | None:
        """The present or last attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def attempt_number(self) -> int:
        """Number of the present or last attempt, 0 before the first."""
        return self.attempts[-1].number if self.attempts else 0

    @property
    def signal_serial(self) -> int:
        """Serial of the last signal, 0 before the first."""
        return self.signals[-1].serial if self.signals else 0

    def end(self, state: str, code: int, reason: str, by: str, time_s: float) -> None:
        """It has ended; by: whose exit code that is, the job's or beo's."""
        self.state, self.exit_code, self.reason, self.code_by, self.ended_s = state, code, reason, by, time_s
        if self.hold == "owner":
            self.hold = self.held_by = ""


class Drain(msgspec.Struct, array_like=True, frozen=True):
    """Why a node gets no new work, by whose word, and since when."""

    user: str
    reason: str
    time_s: float


class Node(msgspec.Struct, array_like=True):
    """One worker. state: up or lost. dead: former incarnations. used: slots and bytes that live parts hold."""

    name: str
    incarnation: str
    boot: str
    address: str
    key: str
    slots: int
    mem_bytes: int
    facts: dict[str, str]
    state: str = "up"
    joined_s: float = 0.0
    dead: list[str] = []
    used_slots: int = 0
    used_bytes: int = 0
    drain: Drain | None = None
    lost: str = ""  # why it is

    @property
    def takes_work(self) -> bool:
        """Whether it may be given new work, as far as the journal knows."""
        return self.state == "up" and self.drain is None


class Authorized(msgspec.Struct, array_like=True, frozen=True):
    """Whom a key belongs to; role: admin, user, worker, head or witness; uid: whose jobs it may submit (-1: anybody's).

    node: the only one that a worker's key speaks for; "": those that have no key of their own.
    gids: the groups of one who has no account on the head's machine.
    """

    user: str
    role: str
    uid: int = -1
    node: str = ""
    gids: tuple[int, ...] = ()


class Token(msgspec.Struct, array_like=True, frozen=True):
    """What may be done with a token. used: the keys that were authorized by it. gone: revoked."""

    number: int
    role: str
    user: str
    uid: int
    uses: int
    expires_s: float
    maker: str
    used: tuple[str, ...] = ()
    gone: bool = False


class Reservation(msgspec.Struct, array_like=True, frozen=True):
    """Nodes that from start_s to end_s run this reservation's jobs only, by these users. See events.Reserved."""

    number: int
    key: str
    name: str
    user: str
    users: tuple[str, ...]
    nodes: tuple[str, ...]
    chosen: bool
    start_s: float
    end_s: float
    kill: bool = False

    def is_on(self, now_s: float) -> bool:
        """Whether its time has come, and isn't over."""
        return self.start_s <= now_s < self.end_s

    def has(self, job: Job) -> bool:
        """Whether a job belongs to it."""
        return job.spec.reservation == self.name and job.user in self.users


class Ask(msgspec.Struct, array_like=True, frozen=True):
    """A boot of a machine that wants to join by this key, and since when it waits for the operator's word."""

    boot: str
    key: str
    time_s: float


class Machine(msgspec.Struct, array_like=True, frozen=True):
    """A machine that boots from the heads, by its MAC address. name: of its node.

    address: its own for good; "": another DHCP server gives it one. image: a sha256, or "current". policy: "": as
    beo.toml says. tag: what its asset tag was made into (proof.tag_key), never the tag. power: the command that turns
    it on and off. opened_s: when it was last seen to fetch its boot script; 0: it has joined since. opened_from: the
    address that it had then, which is another server's where that one gives addresses. asked: its boot
    that waits for the operator. approved: the key that he has said yes to. key and boots: by which it has joined last,
    and its boots that have, the present one at the end.
    """

    mac: str
    name: str
    address: str = ""
    image: str = "current"
    policy: str = ""
    tag: str = ""
    power: str = ""
    seen_s: float = 0.0
    opened_s: float = 0.0
    asked: Ask | None = None
    approved: str = ""
    key: str = ""
    boots: tuple[str, ...] = ()
    joined_s: float = 0.0
    opened_from: str = ""


class HeadInfo(msgspec.Struct, array_like=True, frozen=True):
    """Where a head is reached: control and bulk plane, and the pair plane by one or more paths (host:port each)."""

    control: str
    bulk: str
    links: tuple[str, ...]
    key: str = ""  # by which it was taken in; the first head needed none


class Holding(msgspec.Struct, gc=False):
    """What a user has of the cluster at the moment: jobs that run and their slots, and jobs that wait."""

    jobs: int = 0
    slots: int = 0
    waiting: int = 0


class Submission(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a submission key stands for: the job, and when it was taken."""

    job: int
    time_s: float
