"""What goes over the wire, both planes. Tagged msgspec structs, validated when they are decoded.

Frames of one message (behind a ROUTER's identity): a greeting (version.py), request id (8 bytes, big-endian; 0: nothing
is asked) and body. A peer of another protocol gets our greeting with an empty body, and nothing else happens.

Two planes, two sockets at the head: *control* (small, latency-bound: everything but output) and *bulk* (output and
stdin), so that a gigabyte of output never delays a heartbeat.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar, Union

import msgspec

from beo.results import PartResult
from beo.spec import JobSpec
from beo.votes import Ballot, Cfg, HeadQuestion, Present

MESSAGE_SIZE_MAX_BYTES = 2 * 1024 * 1024  # the largest spec fits twice; anything larger is refused by the socket itself
CHUNK_SIZE_MAX_BYTES = 256 * 1024  # output in one message
STDIN_WINDOW_BYTES = 1024 * 1024  # stdin that a client may have under way, unacknowledged
LIST_LENGTH_MAX = 10_000  # rows in one answer
INSPECT_S = 2.0  # nodes that have not answered by then are named instead
PROCESSES_MAX = 5_000  # in one answer, which they fill to two thirds
LACKS = "lacks"  # the fact by which it says what its machine hasn't: leash, tree, users
VAULT = "vault"  # the fact by which a node says that it keeps checkpoints
CRIU = "criu"  # the fact by which a node says whether programs can be moved from and to it: CRIU_WORKS, or why not
CRIU_WORKS = "works"
VAULTS_MAX = 10_000  # jobs of which one node keeps something
CHECKPOINTS_MAX = 64  # in one copy of a vault: each program of the job has two
CHECKPOINT_NAME_MAX = 64  # characters; beo's own have 16
ID_MAX = 2**32 - 2  # the last uid and gid; the one above means "no change" to the kernel
WAIT_MAX_S = 10.0  # a long poll is answered after this time at the latest; the client asks again


_Body = TypeVar("_Body")
_Id = Annotated[int, msgspec.Meta(ge=0, le=ID_MAX)]


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# ---- two heads --------------------------------------------------------------------------------------------------


class AskPair(_Message, frozen=True):
    """Tell how this head and its pair fare; answered by every head, whatever its role. → PairIs"""


class Steer(_Message, frozen=True):
    """Change who acts: switchover, takeover, freeze, thaw, or force. To the head that it is about. → Done"""

    wish: str


class SetPair(_Message, frozen=True):
    """Change settings that both heads share; None leaves one as it is. → PairIs"""

    level: str | None = None
    takeover: str | None = None
    failback: bool | None = None
    lease_s: float | None = None
    silence_s: float | None = None


class HeadView(msgspec.Struct, frozen=True, array_like=True):
    """A head as its cluster knows it."""

    name: str
    control: str  # host:port
    bulk: str
    links: tuple[str, ...]  # host:port of its pair plane, one per path


class VoterView(msgspec.Struct, frozen=True, array_like=True):
    """A voter, or who could be one."""

    voter: str
    node: str
    rack: str
    votes: bool  # its vote counts at present
    silent_s: float


class PairIs(_Message, frozen=True):
    """One head's view of the pair. Ages are in seconds; -1: never."""

    name: str
    role: str  # primary, standby, candidate, won or idle
    why: str  # it doesn't act or isn't in step, where there is a reason to tell
    epoch: int
    cfg: Cfg | None
    in_step: bool  # what is acknowledged is durable on both
    primary: str  # its name, "" where nobody is known to act
    last: int
    commit: int
    match: int  # of the other head's journal, as the primary knows it
    output_lag_bytes: int
    heard_s: float  # since the other head last answered
    heads: tuple[HeadView, ...]
    voters: tuple[VoterView, ...]
    level: str
    takeover: str
    failback: bool
    frozen: bool
    lease_s: float
    silence_s: float
    born_s: float  # wall clock
    down_s: float  # in all, since then: nobody acted
    takeovers: int
    orphans: int  # entries put aside here that the cluster does not have
    findings: tuple[str, ...]
    version: str
    entry_format: int
    other_version: str
    config: dict[str, str]  # this machine's [ha], to be compared


class JoinHead(_Message, frozen=True):
    """A newcomer that was enrolled as a head says where it is reached; it may say so again. → HeadJoinedIs"""

    control: str  # host:port
    bulk: str
    links: tuple[str, ...]


class LeaveHead(_Message, frozen=True):
    """Let a head that doesn't act belong to the cluster no more. → Done"""

    head: str


class HeadJoinedIs(_Message, frozen=True):
    """Who the newcomer is, and what every head must know. time_s: the wall clock of who answers.

    keys: the cluster's secret keys by name (head, admin, worker). They travel nowhere else.
    """

    name: str
    cluster: str
    heads: tuple[HeadView, ...]
    time_s: float
    keys: dict[str, str] = {}


class Elsewhere(_Message, frozen=True):
    """This head doesn't act: ask the one at `head` ("" while none is known), whose epoch is this."""

    head: str
    epoch: int


# ---- clients ask ------------------------------------------------------------------------------------------------


class Info(_Message, frozen=True):
    """Ask who answers. → InfoIs"""


class Submit(_Message, frozen=True):
    """Take a job. Repeating the same key gives the same job. → SubmittedIs"""

    key: str
    spec: JobSpec
    uid: int
    gid: int
    groups: tuple[int, ...]
    hold: bool = False  # it waits until it is released
    user: str = ""  # whose it is, where an admin submits again what was lost with a head


class ListJobs(_Message, frozen=True):
    """Jobs by selector words; without any, all that wait or run, and with `ended` the last of all. → JobsAre"""

    select: tuple[str, ...] = ()
    ended: bool = False
    limit: int = 1_000


class ShowJob(_Message, frozen=True):
    """Everything about the selected jobs: spec, attempts, why it waits. → DetailsAre"""

    select: tuple[str, ...]


class WaitJobs(_Message, frozen=True):
    """Answer when all of these ended, or after wait_s. `attached` keeps an attached job alive. → JobsAre"""

    jobs: tuple[int, ...]
    wait_s: float
    attached: bool = False
    known: str = ""  # of a single job: answer also when "state/attempt" differs from this


class Cancel(_Message, frozen=True):
    """End jobs. → JobsAre (those that were meant)"""

    select: tuple[str, ...]


class Hold(_Message, frozen=True):
    """Let jobs that wait not start until they are released. → JobsAre (those that were meant)"""

    select: tuple[str, ...]


class Release(_Message, frozen=True):
    """Let held jobs start. → JobsAre (those that were meant)"""

    select: tuple[str, ...]


class Requeue(_Message, frozen=True):
    """Queue jobs again, each as (job, the attempt that is not to be the last): repeated, it does nothing. → JobsAre"""

    jobs: tuple[tuple[int, int], ...]
    hold: bool = False  # until they are released


class SetPriority(_Message, frozen=True):
    """Give jobs that wait another priority. → JobsAre (those that were meant)"""

    select: tuple[str, ...]
    priority: int


class Migrate(_Message, frozen=True):
    """Have these running jobs, each in this attempt, go on elsewhere. → JobsAre

    nodes: a set of names: where to; "": anywhere but where they are.
    """

    jobs: tuple[tuple[int, int], ...]
    nodes: str = ""


class AskRanks(_Message, frozen=True):
    """Ask the ranks of the selected jobs, as far as they run, to do something at their next safe point. → JobsAre

    do: checkpoint or scrub. It is said once, and may be lost.
    """

    select: tuple[str, ...]
    do: str


class Reserve(_Message, frozen=True):
    """Reserve nodes, once per key: those of a node set, or `count` that the head chooses. → ReservationsAre

    start_s: since 1970; 0: `after_s` from now, by the head's clock. users: whose jobs run there; none: who asks.
    """

    key: str
    for_s: float
    start_s: float = 0.0
    after_s: float = 0.0
    nodes: str = ""
    count: int = 0
    users: tuple[str, ...] = ()
    name: str = ""  # "": the head gives it one
    kill: bool = False  # what is still in the way at the start is ended


class ListReservations(_Message, frozen=True):
    """Reservations by name, or all. → ReservationsAre"""

    names: tuple[str, ...] = ()


class CancelReservations(_Message, frozen=True):
    """End reservations: their jobs are like any others then. → ReservationsAre (those that were)"""

    names: tuple[str, ...]


class Signal(_Message, frozen=True):
    """Send a signal to every rank of a job, once per key. → Done"""

    job: int
    signal: int
    key: str


class ListUsers(_Message, frozen=True):
    """→ UsersAre"""


class RevokeKeys(_Message, frozen=True):
    """Take a key, by its first characters, or all keys of a user, who is barred from the doors then. → Done"""

    word: str


class AllowUser(_Message, frozen=True):
    """Let a barred user come to the doors again. → Done"""

    user: str


class ListNodes(_Message, frozen=True):
    """→ NodesAre"""


class AskTree(_Message, frozen=True):
    """Where is the tree of files served? From then on it is. → TreeIs"""


class ListEvents(_Message, frozen=True):
    """Journal entries with an index above `after` (0: the last `limit`), newest last. → EventsAre

    At most `limit` entries are looked at; job and node: of these only those that name them.
    """

    after: int = 0
    limit: int = 100
    job: int = 0
    node: str = ""


class ListHistory(_Message, frozen=True):
    """Ended jobs with an id below `before` (0: all), the newest first. → HistoryAre

    user, states: of this user, that ended so (empty: any). since_s, until_s: that ended then (0: no bound).
    """

    select: tuple[str, ...] = ()
    user: str = ""
    states: tuple[str, ...] = ()
    since_s: float = 0.0
    until_s: float = 0.0
    before: int = 0
    limit: int = 1_000


class DeclareGone(_Message, frozen=True):
    """The operator's word that a silent node's machine is off. → Done"""

    node: str


class Target(msgspec.Struct, frozen=True, array_like=True):
    """What a signal is for: a process of a job by its pid on a node, or a rank (then node is empty and pid 0)."""

    job: int
    node: str
    pid: int
    rank: int = -1


class ListProcesses(_Message, frozen=True):
    """Processes of the selected jobs, by default of all that one may see. → ProcessesAre, within INSPECT_S

    nodes: only on these (a node set). user: only of this user's jobs. machines: tell of idle nodes too.
    """

    select: tuple[str, ...] = ()
    nodes: str = ""
    user: str = ""
    machines: bool = False


class SignalProcesses(_Message, frozen=True):
    """Send a signal to single processes or ranks, once per key. → HitsAre, within INSPECT_S"""

    targets: tuple[Target, ...]
    signal: int
    key: str

    @property
    def jobs(self) -> tuple[tuple[int, int], ...]:
        """The jobs that are meant, as the table of permissions reads them: (job, 0)."""
        return tuple((target.job, 0) for target in self.targets)


class Drain(_Message, frozen=True):
    """Give these nodes (a node set) no new work, until they are resumed. → NodesAre (those that were meant)"""

    nodes: str
    reason: str = ""


class Resume(_Message, frozen=True):
    """Give drained nodes work again. → NodesAre (those that were meant)"""

    nodes: str


class ForgetNodes(_Message, frozen=True):
    """Take lost nodes off the record. → NodesAre (none of them)"""

    nodes: str


class MakeToken(_Message, frozen=True):
    """Take a token, by the public key that belongs to it; the head never learns the token itself. → TokensAre

    uses: so many keys may be authorized by it, within expires_s. Repeating it changes nothing.
    """

    key: str
    role: str  # worker, user, admin, head or witness
    user: str
    uid: int
    uses: int
    expires_s: float


class ListTokens(_Message, frozen=True):
    """→ TokensAre"""


class RevokeTokens(_Message, frozen=True):
    """End tokens by number; keys that were authorized by them stay. → TokensAre (those that were meant)"""

    numbers: tuple[int, ...]


class Enrol(_Message, frozen=True):
    """The one thing that a token's own key can ask for: authorize my `key`. → EnrolledIs

    Repeating it with the same key gives the same answer. node: the name that a worker or a witness wants; "": neither.
    """

    key: str
    node: str = ""
    role: str = ""  # what the newcomer takes the token to be for; "": a user's, or it doesn't say


class AskPlace(_Message, frozen=True):
    """What a worker must know whose key was authorized just now, and its cluster's settings. → EnrolledIs"""

    node: str


class LeaseMachine(_Message, frozen=True):
    """A machine with this MAC address asks for one to boot with: put it on record, if it isn't yet. → MachineIs"""

    mac: str
    hostname: str = ""  # as the machine calls itself; ""


class OpenMachine(_Message, frozen=True):
    """This machine fetches its boot script, from this address: it is expected to join soon. → MachineIs"""

    mac: str
    address: str = ""


class JoinMachine(_Message, frozen=True):
    """A machine that has booted wants its key to be authorized for its node. → JoinedIs, again and again

    boot: the kernel's boot id. peer: the host:port that it asks from. nonce and proof: what JoinedIs has asked for.
    """

    mac: str
    boot: str
    key: str
    peer: str
    nonce: str = ""
    proof: str = ""


class ListMachines(_Message, frozen=True):
    """→ MachinesAre"""


class ApproveMachine(_Message, frozen=True):
    """The operator's word that this key, whose words stand on its console, is that machine's. → MachineIs"""

    mac: str
    key: str


class SetMachine(_Message, frozen=True):
    """Change what is on record of a machine, or put one on record; None leaves a value as it is. → MachineIs

    tag: what proof.tag_key has made of its asset tag.
    """

    mac: str
    name: str | None = None
    address: str | None = None
    image: str | None = None
    policy: str | None = None
    tag: str | None = None
    power: str | None = None


class ForgetMachine(_Message, frozen=True):
    """Take a machine off the record. → Done"""

    mac: str


class AskConsole(_Message, frozen=True):
    """What a machine's console has said from byte `after` on; -1: the last of it. → ConsoleIs"""

    mac: str
    after: int = -1


# ---- the head answers -------------------------------------------------------------------------------------------


class Failed(_Message, frozen=True):
    """Any request can be answered by this: BeoError.to_dict()."""

    error: dict[str, str]


class Done(_Message, frozen=True):
    """It is done, durably."""


class InfoIs(_Message, frozen=True):
    """Which cluster, head and epoch; user is who the head takes the client for."""

    cluster: str
    head: str
    epoch: int
    user: str
    version: str
    bulk: str  # address of the bulk plane
    role: str = ""
    uid: int = -1  # whose jobs the client may submit; -1: anybody's
    heads: tuple[HeadView, ...] = ()  # all of them; none: only the one that answers


class TreeIs(_Message, frozen=True):
    """Where the tree of files is served, host:port; "": nowhere yet, it is being started."""

    address: str


class TokenView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo token list`. state: open, used, expired or revoked."""

    number: int
    state: str
    role: str
    user: str
    uid: int
    uses: int
    used: int
    left_s: float  # until it expires; 0: it has
    maker: str


class TokensAre(_Message, frozen=True):
    """Rows in ascending number."""

    tokens: tuple[TokenView, ...]


class EnrolledIs(_Message, frozen=True):
    """The key is authorized, durably. time_s: the head's wall clock."""

    cluster: str
    head: str
    bulk: str
    role: str
    user: str
    uid: int
    node: str
    time_s: float
    heads: tuple[HeadView, ...] = ()  # where all heads are reached
    settings: str = ""  # → AskPlace: beo.toml of a worker


class MachineView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo node list`. state: pending (the operator is asked), approved (it may join) or joined."""

    mac: str
    name: str
    address: str
    image: str
    policy: str
    state: str
    words: str  # of the key that waits, or by which it has joined
    key: str
    has_tag: bool
    power: str
    seen_s: float  # wall clock: when it last asked for anything; 0: never
    joined_s: float  # 0: never
    why: str = ""  # it doesn't join, where there is something to tell


class MachineIs(_Message, frozen=True):
    """The machine as it is on record now, durably."""

    machine: MachineView


class MachinesAre(_Message, frozen=True):
    """Rows in the order of their names."""

    machines: tuple[MachineView, ...]


class JoinedIs(_Message, frozen=True):
    """→ JoinMachine. state: joined; pending (the operator is asked, who is shown words); prove (say HMAC of nonce);
    or wait (ask again soon).
    """

    state: str
    node: str
    words: str = ""
    nonce: str = ""
    why: str = ""


class ConsoleIs(_Message, frozen=True):
    """→ AskConsole. after: what to go on with; begins: the byte with which data begins. head: whose count that is."""

    data: bytes
    begins: int
    after: int
    head: str = ""


class SubmittedIs(_Message, frozen=True):
    """The job's id. The job is durable when this arrives."""

    job: int
    warnings: tuple[str, ...] = ()


class JobView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo queue`. state: queued, held, running, ending, done, failed, cancelled or lost."""

    id: int
    name: str
    user: str
    state: str
    ranks: int
    nodes: str  # folded node set of the present or last attempt
    attempt: int
    submitted_s: float
    started_s: float  # 0: never
    ended_s: float  # 0: not yet
    exit_code: int  # -1: not yet
    reason: str  # why it waits, ended or was lost
    priority: int = 0
    code_by: str = "job"  # whose exit code: job or beo


class JobsAre(_Message, frozen=True):
    """Rows in ascending id."""

    jobs: tuple[JobView, ...]
    more: int = 0  # rows left out by the limit


class AttemptView(msgspec.Struct, frozen=True, array_like=True):
    """One attempt: its parts as (node, first rank, ranks, state) and what each rank told at its end."""

    number: int
    started_s: float
    ended_s: float
    outcome: str
    parts: tuple[tuple[str, int, int, str], ...]
    results: tuple[PartResult, ...]


class JobDetail(msgspec.Struct, frozen=True, array_like=True):
    """What `beo show` prints."""

    view: JobView
    spec: JobSpec
    uid: int
    attempts: tuple[AttemptView, ...]
    why: tuple[str, ...]  # sentences: why it waits, or what happened
    vaults: tuple[tuple[str, int], ...] = ()  # nodes that keep something of it in their memory, and how many bytes
    # (node, attempt, bundle, bytes, when) of what is copied to the tree
    copies: tuple[tuple[str, int, str, int, float], ...] = ()
    since: int = 1  # the first of the attempts that, each going on where the last one halted, led to the present one


class DetailsAre(_Message, frozen=True):
    """→ ShowJob."""

    jobs: tuple[JobDetail, ...]


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """Something that is wrong with a machine: which check found it, what it is, and the one line that cures it."""

    check: str
    what: str
    cure: str


class NodeView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo nodes`. state: up, draining (drained, and jobs still run there), drained, silent or lost."""

    name: str
    state: str
    slots: int
    used: int
    mem_bytes: int
    jobs: tuple[int, ...]
    address: str
    facts: dict[str, str]
    silent_s: float  # since the last sign of life
    incarnation: str
    drain: str = ""  # by whom it was drained, and why
    why: str = ""  # it is silent or lost
    clock_s: float = 0.0  # by how much its wall clock is ahead of the head's
    findings: tuple[Finding, ...] = ()  # what its agent found wrong with its machine
    moving: tuple[int, ...] = ()  # of the jobs, those that are asked to go on elsewhere and have a checkpoint
    reserved: str = ""  # for whom, and when


class InTheWay(msgspec.Struct, frozen=True, array_like=True):
    """A job that isn't a reservation's and runs on nodes of it, and what will become of it, in words."""

    job: int
    nodes: str
    why: str


class ReservationView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo reserve list`. state: planned, or on: its time has come."""

    name: str
    state: str
    user: str  # who made it
    users: tuple[str, ...]
    nodes: str
    chosen: bool  # by the head
    start_s: float
    end_s: float
    kill: bool
    jobs: tuple[int, ...]  # of it, that have not ended
    in_the_way: tuple[InTheWay, ...] = ()
    missing: str = ""  # nodes of it that are lost or drained
    slots: int = 0
    starts_in_s: float = 0.0  # by the head's clock; below 0: it is on
    ends_in_s: float = 0.0


class ReservationsAre(_Message, frozen=True):
    """→ Reserve, ListReservations, CancelReservations."""

    reservations: tuple[ReservationView, ...]


class NodesAre(_Message, frozen=True):
    """→ ListNodes."""

    nodes: tuple[NodeView, ...]


class Process(msgspec.Struct, frozen=True, array_like=True):
    """One process of an attempt. pid and parent are as `ps` on its node shows them; rank: -1 where it is none."""

    job: int
    attempt: int
    pid: int
    parent: int
    rank: int
    state: str  # as in ps: R, S, D, Z, T ...
    cpu_s: float
    age_s: float
    memory_bytes: int
    threads: int
    command: str  # cut


class Machine(msgspec.Struct, frozen=True, array_like=True):
    """How busy a machine is. load: processes that run or want to, over the last minute."""

    load: float
    cores: int
    mem_bytes: int
    mem_free_bytes: int  # what programs could still get


class Inspected(msgspec.Struct, frozen=True, array_like=True):
    """What a node saw; more: processes left out by the limit."""

    node: str
    machine: Machine
    processes: tuple[Process, ...]
    more: int = 0


class ProcessesAre(_Message, frozen=True):
    """→ ListProcesses. users: of the jobs. silent: nodes that should have answered, and did not in time."""

    nodes: tuple[Inspected, ...]
    users: dict[int, str]
    silent: tuple[str, ...] = ()
    more: int = 0


class Hit(msgspec.Struct, frozen=True, array_like=True):
    """A process that got a signal, or, with `trouble`, why it got none. rank: -1 where it is none."""

    job: int
    pid: int
    rank: int
    trouble: str = ""
    command: str = ""
    node: str = ""


class HitsAre(_Message, frozen=True):
    """→ SignalProcesses. Of a target that no node knows nothing is told. silent: nodes that did not answer in time."""

    hits: tuple[Hit, ...]
    silent: tuple[str, ...] = ()


class UserView(msgspec.Struct, frozen=True, array_like=True):
    """One row of `beo users`. role: admin, user or barred. Limits of 0: none."""

    name: str
    role: str
    uid: int
    keys: tuple[str, ...]
    queued: int
    running: int
    slots: int
    running_max: int
    slots_max: int
    queued_max: int


class UsersAre(_Message, frozen=True):
    """→ ListUsers."""

    users: tuple[UserView, ...]


class EventView(msgspec.Struct, frozen=True, array_like=True):
    """One journal entry in words."""

    index: int
    epoch: int
    time_s: float
    kind: str
    job: int  # 0: none
    node: str
    text: str


class EventsAre(_Message, frozen=True):
    """→ ListEvents. oldest: the first entry that the journal still has. upto: the last one that was looked at."""

    events: tuple[EventView, ...]
    oldest: int = 1
    upto: int = 0


class JobRecord(msgspec.Struct, frozen=True, array_like=True):
    """What an ended job took. waited_s: until its first attempt began. ran_s and cpu_s: over its last attempts."""

    id: int
    name: str
    user: str
    state: str
    exit_code: int
    code_by: str
    submitted_s: float
    started_s: float  # of the last attempt; 0: there was none
    ended_s: float
    waited_s: float
    ran_s: float
    cpu_s: float
    peak_bytes: int  # of the largest rank
    ranks: int
    slots: int
    nodes: str  # of the last attempt
    attempts: int
    reason: str


class HistoryAre(_Message, frozen=True):
    """→ ListHistory. next: what to ask for as `before`; 0: there is no more."""

    jobs: tuple[JobRecord, ...]
    next: int = 0


# ---- an agent tells the head ------------------------------------------------------------------------------------


class Join(_Message, frozen=True):
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


class Ping(_Message, frozen=True):
    """Alive. t_ns: the node's CLOCK_BOOTTIME when sent, echoed by Pong. running and ended name (job, attempt)."""

    node: str
    incarnation: str
    t_ns: int
    running: tuple[tuple[int, int], ...]
    ended: tuple[tuple[int, int], ...]


class Ended(_Message, frozen=True):
    """A part ended (again and again, until Committed)."""

    node: str
    incarnation: str
    job: int
    attempt: int
    result: PartResult


class Gone(_Message, frozen=True):
    """A part is not alive here and never will be (again and again, until Committed)."""

    node: str
    incarnation: str
    job: int
    attempt: int
    reason: str


class Delivered(_Message, frozen=True):
    """Signals up to `serial` have been delivered to the attempt's ranks (or it has ended)."""

    node: str
    incarnation: str
    job: int
    attempt: int
    serial: int


class Health(_Message, frozen=True):
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


class VaultsAre(_Message, frozen=True):
    """What a node's vault keeps, again and again. → VaultsOver, where a job is over"""

    node: str
    incarnation: str
    vaults: tuple[Kept, ...]


class VaultCopied(_Message, frozen=True):
    """What a node's vault keeps of a job is in the tree as well, as this bundle."""

    node: str
    incarnation: str
    job: int
    attempt: int
    bundle: str
    size_bytes: int
    checkpoints: tuple[tuple[str, int, int], ...] = ()  # that are whole: (name, images in it, ranks that it has)


class Processes(_Message, frozen=True):
    """What Inspect asked for."""

    node: str
    incarnation: str
    ask: int
    machine: Machine
    processes: tuple[Process, ...]
    more: int = 0


class Hits(_Message, frozen=True):
    """What Strike did."""

    node: str
    incarnation: str
    ask: int
    hits: tuple[Hit, ...]


class Vouch(_Message, frozen=True):
    """Somebody knocked at the door of a worker that runs as root; `visitor` is the agent's name for him. → Vouched"""

    node: str
    incarnation: str
    visitor: int
    uid: int
    gid: int
    groups: tuple[int, ...]
    key: str


# ---- the head tells an agent; a lower epoch or a foreign incarnation is refused -----------------------------------


class Welcome(_Message, frozen=True):
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


class Pong(_Message, frozen=True):
    """The lease runs from t_ns for lease_s. Starts with an index up to `settled` are all answered: refuse them."""

    epoch: int
    incarnation: str
    t_ns: int
    lease_s: float
    settled: int


class Dead(_Message, frozen=True):
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


class Start(_Message, frozen=True):
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


class Kill(_Message, frozen=True):
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


class Deliver(_Message, frozen=True):
    """Send a signal to your ranks; serials at or below the highest delivered are ignored."""

    epoch: int
    incarnation: str
    job: int
    attempt: int
    serial: int
    signal: int


class Halt(_Message, frozen=True):
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


class VaultsOver(_Message, frozen=True):
    """What your vault keeps of these jobs is of no more use: remove it."""

    epoch: int
    incarnation: str
    jobs: tuple[int, ...]


class Committed(_Message, frozen=True):
    """The end of this part is in the journal: forget it."""

    epoch: int
    job: int
    attempt: int


class Inspect(_Message, frozen=True):
    """Look at the processes of these (job, attempt). → Processes"""

    epoch: int
    incarnation: str
    ask: int
    attempts: tuple[tuple[int, int], ...]
    limit: int


class Strike(_Message, frozen=True):
    """Signal these targets, each with its attempt, once per key. → Hits"""

    epoch: int
    incarnation: str
    ask: int
    key: str
    signal: int
    targets: tuple[tuple[int, Target], ...]


class Vouched(_Message, frozen=True):
    """The visitor's key may connect as `user`, or may not: BeoError.to_dict()."""

    epoch: int
    incarnation: str
    visitor: int
    user: str
    error: dict[str, str] | None = None


# ---- agents among themselves (control plane, own sockets) ----------------------------------------------------------


class Probe(_Message, frozen=True):
    """Alive; sent between agents that share an attempt."""

    node: str
    incarnation: str


class Relay(_Message, frozen=True):
    """A warden's message for the warden of the same attempt at another node; repeated until RelayAck."""

    node: str  # sender
    job: int
    attempt: int
    seq: int
    body: bytes  # JSON, as the warden made it


class RelayAck(_Message, frozen=True):
    """The other warden has it."""

    node: str  # sender of the acknowledgement
    job: int
    attempt: int
    seq: int


# ---- bulk plane ------------------------------------------------------------------------------------------------------


class Chunk(_Message, frozen=True):
    """Output of a part: bytes of its spool from `offset` on, whole records. → ChunkAck"""

    node: str
    incarnation: str
    job: int
    attempt: int
    offset: int
    data: bytes


class ChunkAck(_Message, frozen=True):
    """The head holds the spool durably up to `have`."""

    job: int
    attempt: int
    have: int


class Fetch(_Message, frozen=True):
    """Output of an attempt from `cursor` on (0: the beginning); waits up to wait_s if there is none. → Fetched"""

    job: int
    attempt: int
    cursor: int
    wait_s: float
    limit_bytes: int = CHUNK_SIZE_MAX_BYTES


class Fetched(_Message, frozen=True):
    """Records (see worker/warden.py) and the next cursor. end: the attempt is over and there is nothing behind."""

    cursor: int
    records: bytes
    end: bool


class Stdin(_Message, frozen=True):
    """Input for rank 0 from `offset` on; eof: nothing follows these bytes. → StdinAck

    window: the present (rows, columns) of the client's terminal, which rank 0's takes over; (0, 0): there is none.
    """

    job: int
    attempt: int
    offset: int
    data: bytes
    eof: bool
    window: tuple[int, int] = (0, 0)


class StdinAck(_Message, frozen=True):
    """Rank 0's node has taken `have` bytes; closed: it takes no more (the rank closed it or ended).

    window: the (rows, columns) that rank 0's terminal has now.
    """

    job: int
    attempt: int
    have: int
    closed: bool
    window: tuple[int, int] = (0, 0)


class BulkHello(_Message, frozen=True):
    """An agent's first word on the bulk plane, repeated: stdin for this node goes to this connection."""

    node: str
    incarnation: str


# ---- bulk plane, between two heads: the one that leads has the other keep the same files -----------------------------


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """Whole blocks of an attempt's file from byte `position` on; chain: of all blocks before (headnode/output.py).

    tail: the chain of the other's own end, whose file is longer and otherwise: what it has behind this goes. 0: none.
    """

    job: int
    attempt: int
    position: int
    chain: int
    data: bytes
    tail: int = 0


class Copy(_Message, frozen=True):
    """The leader of this epoch has these blocks; several files in one message. → Copied"""

    epoch: int
    pieces: tuple[Piece, ...]


class Held(msgspec.Struct, frozen=True, array_like=True):
    """The other head's file is the leader's, durably, up to `have`.

    probes: its end, and places further and further back, each with the chain there. With them it is asked from where on
    the leader's is another; without, all is well. refused: why the leader's blocks are none.
    """

    job: int
    attempt: int
    have: int
    probes: tuple[tuple[int, int], ...] = ()
    refused: str = ""


class Copied(_Message, frozen=True):
    """What copies came to. life: a number of this life of the other head. trouble: why its disk takes no more."""

    epoch: int
    life: int
    files: tuple[Held, ...]
    trouble: str = ""


class Offer(_Message, frozen=True):
    """A page of what the leader has, as (job, attempt, size, chain); size -1: a file that is being copied. → Wanted

    Page 0 is empty: who is there? last: what the other has besides is nobody's.
    """

    epoch: int
    session: int
    page: int
    files: tuple[tuple[int, int, int, int], ...]
    last: bool = False


class Wanted(_Message, frozen=True):
    """What of that page the other has otherwise, or not at all.

    exports: with page 0, the -o and -e files that it would go on with, as (job, attempt, "o" or "e"). → Exported
    """

    epoch: int
    life: int
    session: int
    page: int
    files: tuple[Held, ...]
    exports: tuple[tuple[int, int, str], ...] = ()


class Exported(_Message, frozen=True):
    """These -o and -e files, as (job, attempt, "o" or "e"), are complete, or are given up: nobody is to write them."""

    epoch: int
    files: tuple[tuple[int, int, str], ...]


ClientRequest = Union[  # noqa: UP007
    Info,
    AskTree,
    Submit,
    ListJobs,
    ShowJob,
    WaitJobs,
    Cancel,
    Signal,
    ListNodes,
    ListEvents,
    ListHistory,
    DeclareGone,
    Hold,
    Release,
    Requeue,
    SetPriority,
    Migrate,
    AskRanks,
    ListProcesses,
    SignalProcesses,
    Drain,
    Resume,
    ForgetNodes,
    MakeToken,
    ListTokens,
    RevokeTokens,
    Enrol,
    ListUsers,
    RevokeKeys,
    AllowUser,
    AskPair,
    Steer,
    SetPair,
    JoinHead,
    LeaveHead,
    Reserve,
    ListReservations,
    CancelReservations,
    AskPlace,
    LeaseMachine,
    OpenMachine,
    JoinMachine,
    ListMachines,
    ApproveMachine,
    SetMachine,
    ForgetMachine,
    AskConsole,
]
AgentReport = Union[Join, Ping, Ended, Gone, Delivered, Health, VaultsAre, VaultCopied, Processes, Hits, Vouch]  # noqa: UP007
VoterWord = Union[Present, Ballot]  # noqa: UP007
HeadAnswer = Union[  # noqa: UP007
    Failed,
    Done,
    InfoIs,
    TreeIs,
    SubmittedIs,
    JobsAre,
    DetailsAre,
    NodesAre,
    EventsAre,
    TokensAre,
    EnrolledIs,
    ProcessesAre,
    HitsAre,
    UsersAre,
    HistoryAre,
    PairIs,
    Elsewhere,
    HeadJoinedIs,
    ReservationsAre,
    MachineIs,
    MachinesAre,
    JoinedIs,
    ConsoleIs,
]
HeadCommand = Union[  # noqa: UP007
    Welcome, Pong, Dead, Start, Kill, Deliver, Halt, VaultsOver, Committed, Inspect, Strike, Vouched
]
AgentWord = Union[Probe, Relay, RelayAck]  # noqa: UP007
BulkRequest = Union[Chunk, Fetch, Stdin, StdinAck, BulkHello, Copy, Offer, Exported]  # noqa: UP007
BulkAnswer = Union[ChunkAck, Fetched, Stdin, StdinAck, Failed, Elsewhere, Copied, Wanted]  # noqa: UP007


class Reader(Generic[_Body]):
    """Reads the messages of one direction."""

    def __init__(self, kinds: Any) -> None:
        """Take the union of the messages that may come."""
        self._decoder: msgspec.msgpack.Decoder[_Body] = msgspec.msgpack.Decoder(kinds)

    def decode(self, data: bytes) -> _Body:
        """Decode and validate one message; raises msgspec.MsgspecError, whatever is wrong with the bytes."""
        try:
            return self._decoder.decode(data)
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(f"a text is not UTF-8: {error}") from None
        except RecursionError:  # lists in lists, where a later version has one more word
            raise msgspec.DecodeError("nested too deeply") from None


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
ToHead = Union[ClientRequest, AgentReport, VoterWord]  # noqa: UP007
ToAgent = Union[HeadCommand, HeadQuestion, AgentWord, Elsewhere, Failed]  # noqa: UP007
to_head: Reader[ToHead] = Reader(ToHead)
to_client: Reader[HeadAnswer] = Reader(HeadAnswer)
to_agent: Reader[ToAgent] = Reader(ToAgent)
bulk_to_head: Reader[BulkRequest] = Reader(BulkRequest)
bulk_from_head: Reader[BulkAnswer] = Reader(BulkAnswer)
