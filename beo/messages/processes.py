"""The processes of jobs, as their nodes see them, and signals to single ones."""

from __future__ import annotations

import msgspec

from beo.messages.form import Message

INSPECT_S = 2.0  # nodes that have not answered by then are named instead
PROCESSES_MAX = 5_000  # in one answer, which they fill to two thirds


# ---- clients ask -----------------------------------------------------------------------------------------------------


class Target(msgspec.Struct, frozen=True, array_like=True):
    """What a signal is for: a process of a job by its pid on a node, or a rank (then node is empty and pid 0)."""

    job: int
    node: str
    pid: int
    rank: int = -1


class ListProcesses(Message, frozen=True):
    """Processes of the selected jobs, by default of all that one may see. → ProcessesAre, within INSPECT_S

    nodes: only on these (a node set). user: only of this user's jobs. machines: tell of idle nodes too.
    """

    select: tuple[str, ...] = ()
    nodes: str = ""
    user: str = ""
    machines: bool = False


class SignalProcesses(Message, frozen=True):
    """Send a signal to single processes or ranks, once per key. → HitsAre, within INSPECT_S"""

    targets: tuple[Target, ...]
    signal: int
    key: str

    @property
    def jobs(self) -> tuple[tuple[int, int], ...]:
        """The jobs that are meant, as the table of permissions reads them: (job, 0)."""
        return tuple((target.job, 0) for target in self.targets)


# ---- the head answers ------------------------------------------------------------------------------------------------


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


class ProcessesAre(Message, frozen=True):
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


class HitsAre(Message, frozen=True):
    """→ SignalProcesses. Of a target that no node knows nothing is told. silent: nodes that did not answer in time."""

    hits: tuple[Hit, ...]
    silent: tuple[str, ...] = ()


ProcessRequest = ListProcesses | SignalProcesses
ProcessAnswer = ProcessesAre | HitsAre
