"""One world's part on one node: the ranks of a step there, and their PMI if they have one.

Step 0 is the job's own ranks; the others were started by a process of the job (`beo run`, MPI_Comm_spawn). What a
rank's end means for the attempt is not decided here.
"""

from __future__ import annotations

import os
import signal
import socket

from beo.worker import ranks
from beo.worker.loop import Loop
from beo.worker.order import Order
from beo.worker.pipes import READ_BYTES, Input
from beo.worker.pmi import LINE_BYTES_MAX, Bad, Effect, Pmi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from beo.worker.outflow import Outflow
    from beo.worker.pipes import Output
    from beo.worker.terminal import Terminal


class Program:
    """What to run: the words, where, and what the environment has besides that of the attempt (`without`: and hasn't).

    path: folders in which it is looked for before those of PATH.
    """

    __slots__ = ("argv", "cwd", "env", "path", "without")

    def __init__(
        self, argv: list[str], cwd: str, env: dict[str, str], without: Sequence[str] = (), path: str = ""
    ) -> None:
        self.argv = argv
        self.cwd = cwd
        self.env = env
        self.without = without
        self.path = path


class Rank:
    """One rank: its process, its pipes and what became of it.

    rank: its number in the step's world. number: that within the attempt, unique.
    """

    def __init__(self, step: Step, rank: int) -> None:
        self.step = step
        self.rank = rank
        self.number = step.first + rank
        self.pid = 0
        self.pmi: socket.socket | None = None
        self.line = b""  # begun on the PMI socket
        self.status: int | None = None
        self.abort_code: int | None = None
        self.user_s = 0.0
        self.system_s = 0.0
        self.peak_bytes = 0

    def ended(self, status: int, usage: Any) -> int:
        """Its process was reaped, by `wait4`'s words; the signal that killed it, or 0."""
        code = os.waitstatus_to_exitcode(status)
        self.status = code if code >= 0 else 128 - code
        self.user_s, self.system_s = usage.ru_utime, usage.ru_stime
        self.peak_bytes = usage.ru_maxrss << 10
        return -code if code < 0 else 0

    def result(self) -> dict[str, Any]:
        """The rank's line of the attempt's result."""
        line = {
            "rank": self.number,
            "status": self.status if self.abort_code is None else self.abort_code,
            "user_s": round(self.user_s, 6),
            "system_s": round(self.system_s, 6),
            "peak_bytes": self.peak_bytes,
        }
        return {**line, "step": self.step.number} if self.step.number else line


class Step:
    """number: of the step. first: the number of its rank 0. programs: of the ranks here. family: the step from which it
    descends, itself if it was not spawned. watcher: the node that is told of it; it has the client, or is the lead.
    """

    def __init__(
        self,
        number: int,
        first: int,
        size: int,
        programs: Mapping[int, Program],
        output: Output | Outflow,
        carry_out: Callable[[Step, list[Effect]], None],
        family: int = 0,
        watcher: str = "",
        overlap: bool = False,
    ) -> None:
        self.number = number
        self.first = first
        self.size = size
        self.family = family
        self.watcher = watcher
        self.overlap = overlap
        self.ranks = {rank: Rank(self, rank) for rank in programs}
        self.live: set[int] = set()  # pids
        self.output = output
        self.input: Input | None = None
        self.terminal: Terminal | None = None  # of rank 0, instead of pipes
        self.pmi: Pmi | None = None
        self.peers: list[str] = []  # the other nodes of its world
        self.ending = False  # it was told to end: what its ranks' ends look like means nothing
        self.void = False  # it never really began, so what became of its ranks is no result
        self.over = False  # nothing of it is alive here
        self.quiet = False  # nothing is told of its input for now
        self._programs = programs
        self._carry_out = carry_out

    @property
    def is_spawned(self) -> bool:
        """Whether it was started by MPI_Comm_spawn, and so is connected with the step that did it."""
        return self.number > 0 and self.family != self.number

    # -- starting --------------------------------------------------------------------------------------------------

    def start(self, order: Order, loop: Loop, failure: ranks.LaunchError | None = None) -> list[Rank]:
        """Start every rank; those that could not be started, which have a status and a line on their stderr."""
        entered = None
        for local, (number, program) in enumerate(self._programs.items()):
            trouble = failure
            if not trouble and not self._must_fork(order) and entered != program.cwd:
                try:
                    ranks.enter(program.cwd)
                    entered = program.cwd
                except ranks.LaunchError as error:
                    trouble = error
            self._start_rank(self.ranks[number], program, local, order, loop, trouble)
        return [rank for rank in self.ranks.values() if not rank.pid]

    def environment(self, order: Order, rank: int, local: int, program: Program) -> dict[str, str]:
        """What a rank has in its environment, but for its PMI socket."""
        if not self.number:
            return {**order.env, **order.env_of.get(rank, {})}
        env = {**order.env, **program.env}
        for name in program.without:
            env.pop(name, None)
        return env | {
            "BEO_STEP": str(self.number),
            "BEO_RANK": str(rank),
            "BEO_LOCAL_RANK": str(local),
            "BEO_SIZE": str(self.size),
        }

    def _start_rank(
        self, rank: Rank, program: Program, local: int, order: Order, loop: Loop, failure: ranks.LaunchError | None
    ) -> None:
        complaint = f"beo: {order.node}: "
        env = self.environment(order, rank.rank, local, program)
        argv = program.argv
        theirs: list[int] = []
        try:
            if failure:
                raise failure
            terminal = self.terminal if rank.rank == 0 else None
            if terminal:
                theirs += terminal.open(rank.number, order.person)
            else:
                wants_input = rank.rank == 0 and self.input
                theirs.append(self.input.open() if wants_input and self.input else os.dup(0))  # ours is /dev/null
                theirs.append(self.output.open(rank.number, 1))
                theirs.append(self.output.open(rank.number, 2))
            if self.pmi:
                rank.pmi, socket_of_rank = socket.socketpair()
                theirs.append(socket_of_rank.detach())
                rank.pmi.setblocking(False)
                env |= {"PMI_FD": str(ranks.PMI_FD), "PMI_RANK": str(rank.rank), "PMI_SIZE": str(self.size)}
                if self.is_spawned:
                    env["PMI_SPAWNED"] = "1"
            path = f"{program.path}:{env.get('PATH', ranks.PATH)}" if program.path else None
            if self._must_fork(order):
                if self.is_spawned:  # who spawns it wants to know at once; from the fork we would hear too late
                    place = argv[0] if "/" not in argv[0] else f"{program.cwd}/{argv[0]}"
                    ranks.find(os.path.normpath(place), path or env.get("PATH", ranks.PATH))
                control = terminal.control if terminal else None
                rank.pid = ranks.fork(
                    argv, env, theirs, program.cwd, order.person, order.cgroup, complaint, path, control
                )
            else:
                rank.pid = ranks.spawn(argv, env, theirs, path)
        except OSError as error:
            failure = ranks.LaunchError(126, f"cannot start rank {rank.rank} ({error.strerror})")
        except ranks.LaunchError as error:
            failure = error
        finally:
            for fd in theirs:
                os.close(fd)
        if rank.pid:
            self.live.add(rank.pid)
            if rank.pmi:
                loop.watch(rank.pmi.fileno(), lambda: self.listen(rank, loop))
        elif failure:
            rank.status = failure.status
            self.output.say(rank.number, 2, f"{complaint}{failure.text}\n".encode(errors="surrogateescape"))

    def _must_fork(self, order: Order) -> bool:
        return order.cgroup is not None or not order.person.is_us or self.terminal is not None

    # -- its PMI ---------------------------------------------------------------------------------------------------

    def listen(self, rank: Rank, loop: Loop) -> None:
        """Act on all that a rank has said on its PMI socket so far."""
        while rank.pmi:
            try:
                data = rank.pmi.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data or not self.pmi:
                self._hang_up(rank, loop)
                return
            *lines, rank.line = (rank.line + data).split(b"\n")
            for line in lines:
                self._carry_out(self, self.pmi.handle(rank.rank, line))
            if len(rank.line) > LINE_BYTES_MAX:
                self._carry_out(self, self.pmi.handle(rank.rank, rank.line))
                rank.line = b""

    def reply(self, number: int, line: bytes) -> list[Effect]:
        """Answer a rank on its PMI socket."""
        rank = self.ranks.get(number)
        if not rank or not rank.pmi:
            return []
        try:
            sent_bytes = rank.pmi.send(line, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            return []  # it has just ended
        if sent_bytes < len(line):  # a rank asks one thing at a time, and the socket holds hundreds of answers
            return [Bad(number, f"rank {number} doesn't read the answers to its PMI requests")]
        return []

    # -- its end ---------------------------------------------------------------------------------------------------

    def signal(self, number: int) -> None:
        """Send a signal to every rank and what it runs in its process group."""
        for pid in self.live:
            try:
                os.killpg(pid, number)
            except (ProcessLookupError, PermissionError):
                try:
                    os.kill(pid, number)  # a fork that hasn't made its session yet
                except (ProcessLookupError, PermissionError):
                    pass  # it has just ended

    def close(self, loop: Loop) -> None:
        """Nothing of it is alive: let its sockets go, and its input."""
        if self.input:
            self.input.close()
        for rank in self.ranks.values():
            self._hang_up(rank, loop)

    def _hang_up(self, rank: Rank, loop: Loop) -> None:
        if rank.pmi:
            loop.unwatch(rank.pmi.fileno())
            rank.pmi.close()
            rank.pmi = None


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
