"""A node's agent and the head: what the one reports, and what the other tells it to do."""

from __future__ import annotations

from typing import Annotated

import msgspec

from beo.messages.cluster import HeadView
from beo.messages.form import ID_MAX, Message
from beo.messages.nodes import Finding
from beo.messages.processes import Hit, Machine, Process, Target
from beo.results import PartResult
from beo.spec import JobSpec

LACKS = "lacks"  # the fact by which a node says what its machine hasn't: leash, tree, users
VAULT = "vault"  # the fact by which it says that it keeps checkpoints
CRIU = "criu"  # the fact by which it says whether programs can be moved from and to it: CRIU_WORKS, or why not
CRIU_WORKS = "works"
VAULTS_MAX = 10_000  # jobs of which one node keeps something
CHECKPOINTS_MAX = 64  # in one copy of a vault: each program of the job has two
CHECKPOINT_NAME_MAX = 64  # characters; beo's own have 16

_Id = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]


# ---- an agent tells the head -----------------------------------------------------------------------------------------


class Join(Message, frozen=True):
    """A node introduces an incarnation of itself (again and again, until Welcome).

    learned: how often it has learned something of itself, so that it knows which Join a Welcome answers.
    """

    node: str
    incarnation: str
    boot: str
    address: str
    key: str
    slots: int
    mem_bytes: int
    facts: dict[str, str]
    running: tuple[tuple[int, int], ...]
    learned: int = 0


class Ping(Message, frozen=True):
    """Alive. t_ns: the node's CLOCK_BOOTTIME when sent, echoed by Pong. running and ended name (job, attempt)."""

    node: str
    incarnation: str
    t_ns: int
    running: tuple[tuple[int, int], ...]
    ended: tuple[tuple[int, int], ...]


class Ended(Message, frozen=True):
    """A part ended (again and again, until Committed)."""

    node: str
    incarnation: str
    job: int
    attempt: int
    result: PartResult


class Gone(Message, frozen=True):
    """A part is not alive here and never will be (again and again, until Committed)."""

    node: str
    incarnation: str
    job: int
    attempt: int
    reason: str


class Delivered(Message, frozen=True):
    """Signals up to `serial` have been delivered to the attempt's ranks (or it has ended)."""

    node: str
    incarnation: str
    job: int
    attempt: int
    serial: int


class Health(Message, frozen=True):
    """How a node's machine is, now and then. wall_s: its wall clock when sent. Nothing is answered."""

    node: str
    incarnation: str
    wall_s: float
    findings: tuple[Finding, ...] = ()


class Kept(msgspec.Struct, frozen=True, array_like=True):
    """What a vault keeps of a job. newest_s: when its newest checkpoint was taken, as all its ranks have agreed; 0: of
    what is there nobody knows.
    """

    job: int
    size_bytes: int
    newest_s: float = 0.0


class VaultsAre(Message, frozen=True):
    """What a node's vault keeps, again and again. → VaultsOver, where a job is over"""

    node: str
    incarnation: str
    vaults: tuple[Kept, ...]


class VaultCopied(Message, frozen=True):
    """What a node's vault keeps of a job is in the tree as well, as this bundle."""

    node: str
    incarnation: str
    job: int
    attempt: int
    bundle: str
    size_bytes: int
    checkpoints: tuple[tuple[str, int, int], ...] = ()  # that are whole: (name, images in it, ranks that it has)


class Processes(Message, frozen=True):
    """What Inspect asked for."""

    node: str
    incarnation: str
    ask: int
    machine: Machine
    processes: tuple[Process, ...]
    more: int = 0


class Hits(Message, frozen=True):
    """What Strike did."""

    node: str
    incarnation: str
    ask: int
    hits: tuple[Hit, ...]


class Vouch(Message, frozen=True):
    """Somebody knocked at the door of a worker that runs as root; `visitor` is the agent's name for him. → Vouched"""

    node: str
    incarnation: str
    visitor: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    key: str


# ---- the head tells an agent; a lower epoch or a foreign incarnation is refused --------------------------------------


class Welcome(Message, frozen=True):
    """The incarnation is in the journal. bulk: host:port of the bulk plane. heads: all of them; none: only this one.

    began: the index with which this epoch began. A head that lacks entries of the one before gives their numbers again.
    learned: of the last Join; None: a head of an older patch level doesn't say.
    """

    epoch: int
    incarnation: str
    bulk: str
    heads: tuple[HeadView, ...] = ()
    began: int = -1
    learned: int | None = None


class Pong(Message, frozen=True):
    """The lease runs from t_ns for lease_s. Starts with an index up to `settled` are all answered: refuse them."""

    epoch: int
    incarnation: str
    t_ns: int
    lease_s: float
    settled: int


class Dead(Message, frozen=True):
    """This incarnation was declared lost (or is unknown): end leashed jobs, take a new incarnation, join again."""

    epoch: int
    incarnation: str


class Peer(msgspec.Struct, frozen=True, array_like=True):
    """Where another part's agent is reached: host:port, CURVE public key, incarnation."""

    node: str
    incarnation: str
    address: str
    key: str
    first_rank: int
    ranks: int
    more: int = 0  # slots for further ranks


class Start(Message, frozen=True):
    """Run your part of an attempt. `index` is that of the Started entry."""

    epoch: int
    incarnation: str
    index: int
    job: int
    attempt: int
    cluster: str
    nonce: str
    user: str
    uid: _Id
    gid: _Id
    groups: tuple[_Id, ...]
    spec: JobSpec
    parts: tuple[Peer, ...]  # of every node, in rank order
    mtbf_s: float = 0.0  # how long these nodes run without a failure of one, as the head has seen; 0: it didn't say
    copies: tuple[tuple[str, str], ...] = ()  # (node, bundle): with what an empty vault begins
    anew: bool = False  # what vaults keep of the job is of no use: each is emptied first


class Kill(Message, frozen=True):
    """End your part of an attempt; if it isn't there, say Gone. `index` is that of its Started entry, 0: not known.

    wanted: somebody wants it to end (who cancels or requeues it), so none of its results is kept.
    """

    epoch: int
    incarnation: str
    job: int
    attempt: int
    reason: str
    grace_s: float
    index: int = 0
    wanted: bool = False


class Deliver(Message, frozen=True):
    """Send a signal to your ranks; serials at or below the highest delivered are ignored."""

    epoch: int
    incarnation: str
    job: int
    attempt: int
    serial: int
    signal: int


class Halt(Message, frozen=True):
    """Ask your ranks of an attempt to take a checkpoint and to end; said again until the part has ended.

    why: one word of what for. leaving: nodes of the attempt that the next one won't have. do: something else instead,
    and it is said once (AskRanks).
    """

    epoch: int
    incarnation: str
    job: int
    attempt: int
    why: str
    leaving: tuple[str, ...] = ()
    do: str = "halt"


class VaultsOver(Message, frozen=True):
    """What your vault keeps of these jobs is of no more use: remove it."""

    epoch: int
    incarnation: str
    jobs: tuple[int, ...]


class Committed(Message, frozen=True):
    """The end of this part is in the journal: forget it."""

    epoch: int
    job: int
    attempt: int


class Inspect(Message, frozen=True):
    """Look at the processes of these (job, attempt). → Processes"""

    epoch: int
    incarnation: str
    ask: int
    attempts: tuple[tuple[int, int], ...]
    limit: int


class Strike(Message, frozen=True):
    """Signal these targets, each with its attempt, once per key. → Hits"""

    epoch: int
    incarnation: str
    ask: int
    key: str
    signal: int
    targets: tuple[tuple[int, Target], ...]


class Vouched(Message, frozen=True):
    """The visitor's key may connect as `user`, or may not: BeoError.to_dict()."""

    epoch: int
    incarnation: str
    visitor: int
    user: str
    error: dict[str, str] | None = None


AgentReport = Join | Ping | Ended | Gone | Delivered | Health | VaultsAre | VaultCopied | Processes | Hits | Vouch
HeadCommand = (
    Welcome | Pong | Dead | Start | Kill | Deliver | Halt | VaultsOver | Committed | Inspect | Strike | Vouched
)
