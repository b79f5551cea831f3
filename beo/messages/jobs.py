"""Jobs: to submit them, to look at them, to wait for them, and to have them go otherwise."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message
from beo.results import PartResult
from beo.spec import JobSpec

# ---- clients ask -----------------------------------------------------------------------------------------------------


class Submit(Message, frozen=True):
    """Take a job. Repeating the same key gives the same job. → SubmittedIs"""

    key: str
    spec: JobSpec
    uid: int
    gid: int
    groups: tuple[int, ...]
    hold: bool = False  # it waits until it is released
    user: str = ""  # whose it is, where an admin submits again what was lost with a head


class ListJobs(Message, frozen=True):
    """Jobs by selector words; without any, all that wait or run, and with `ended` the last of all. → JobsAre"""

    select: tuple[str, ...] = ()
    ended: bool = False
    limit: int = 1_000


class ShowJob(Message, frozen=True):
    """Everything about the selected jobs: spec, attempts, why it waits. → DetailsAre"""

    select: tuple[str, ...]


class WaitJobs(Message, frozen=True):
    """Answer when all of these ended, or after wait_s. `attached` keeps an attached job alive. → JobsAre"""

    jobs: tuple[int, ...]
    wait_s: float
    attached: bool = False
    known: str = ""  # of a single job: answer also when "state/attempt" differs from this


class Cancel(Message, frozen=True):
    """End jobs. → JobsAre (those that were meant)"""

    select: tuple[str, ...]


class Hold(Message, frozen=True):
    """Let jobs that wait not start until they are released. → JobsAre (those that were meant)"""

    select: tuple[str, ...]


class Release(Message, frozen=True):
    """Let held jobs start. → JobsAre (those that were meant)"""

    select: tuple[str, ...]


class Requeue(Message, frozen=True):
    """Queue jobs again, each as (job, the attempt that is not to be the last): repeated, it does nothing. → JobsAre"""

    jobs: tuple[tuple[int, int], ...]
    hold: bool = False  # until they are released


class SetPriority(Message, frozen=True):
    """Give jobs that wait another priority. → JobsAre (those that were meant)"""

    select: tuple[str, ...]
    priority: int


class Migrate(Message, frozen=True):
    """Have these running jobs, each in this attempt, go on elsewhere. → JobsAre

    nodes: a set of names: where to; "": anywhere but where they are.
    """

    jobs: tuple[tuple[int, int], ...]
    nodes: str = ""


class AskRanks(Message, frozen=True):
    """Ask the ranks of the selected jobs, as far as they run, to do something at their next safe point. → JobsAre

    do: checkpoint or scrub. It is said once, and may be lost.
    """

    select: tuple[str, ...]
    do: str


class Signal(Message, frozen=True):
    """Send a signal to every rank of a job, once per key. → Done"""

    job: int
    signal: int
    key: str


# ---- the head answers ------------------------------------------------------------------------------------------------


class SubmittedIs(Message, frozen=True):
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


class JobsAre(Message, frozen=True):
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


class DetailsAre(Message, frozen=True):
    """→ ShowJob."""

    jobs: tuple[JobDetail, ...]


JobRequest = (
    Submit
    | ListJobs
    | ShowJob
    | WaitJobs
    | Cancel
    | Hold
    | Release
    | Requeue
    | SetPriority
    | Migrate
    | AskRanks
    | Signal
)
JobAnswer = SubmittedIs | JobsAre | DetailsAre
