"""One attempt's part on one node, from the first rank's start to the last process's end.

Phases: running (ranks live), killing (everything is told to die and is reaped), sweeping (all dead: the pipes are read
to their end, the folder for temporary files is removed), ended (the result stands).
"""

from __future__ import annotations

import os
import signal
import socket

from beo.worker import contain, ranks
from beo.worker.loop import Loop
from beo.worker.order import Order
from beo.worker.peers import Peers
from beo.worker.pipes import READ_BYTES, Input, Output
from beo.worker.pmi import LINE_BYTES_MAX, Abort, Bad, Effect, Fence, Pmi, Publish, Reply
from beo.worker.spool import Spool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MEMORY_POLL_S = 0.25
WORDS_LENGTH_MAX = 500
"""Most of an abort's message that goes into the result; MPI prints all of it on stderr."""
FILES_PER_RANK = 4
FILES_MORE = 64
"""Descriptors that the warden needs for each rank (pipes, PMI socket) and for itself."""
KILL_AGAIN_S = 0.2
"""Between two rounds of killing."""
PEER_AGAIN_S = 0.3
"""Between two tellings of what a peer has not acknowledged."""


class Rank:
    """One rank: its process, its pipes and what became of it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid = 0
        self.pmi: socket.socket | None = None
        self.line = b""  # begun on the PMI socket
        self.status: int | None = None
        self.abort_code: int | None = None
        self.user_s = 0.0
        self.system_s = 0.0
        self.peak_bytes = 0

    def result(self) -> dict[str, Any]:
        """The rank's line of the attempt's result."""
        return {
            "rank": self.number,
            "status": self.status if self.abort_code is None else self.abort_code,
            "user_s": round(self.user_s, 6),
            "system_s": round(self.system_s, 6),
            "peak_bytes": self.peak_bytes,
        }


class Attempt:
    """Runs an `Order` behind walls that are already there.

    kind: of the walls. folder: for the spool. tell: sends a message to the agent, if there is one. over: called when
    the result stands.
    """

    def __init__(
        self,
        order: Order,
        kind: str,
        folder: str,
        outer: contain.OuterProc,
        loop: Loop,
        tell: Callable[[dict[str, Any]], None],
        over: Callable[[], None],
    ) -> None:
        self.order = order
        self.phase = "running"
        self.result: dict[str, Any] | None = None
        self.spool = Spool(os.path.join(folder, f"{order.job}.{order.attempt}.spool"))
        self._kind = kind
        self._outer = outer
        self._loop = loop
        self._tell = tell
        self._over = over
        self._ranks = {number: Rank(number) for number in order.ranks}
        self._by_pid: dict[int, Rank] = {}
        self._output = Output(self.spool, loop, order.size > 1, self._tell_output)
        self._input = Input(loop, self._tell_input)
        self._serial = 0
        self._reason: str | None = None
        self._culprit: int | None = None
        self._culprit_status: int | None = None
        self._terminated = False
        self._oom_kills = 0
        self._sweeper = 0
        self._peers = Peers(node for node in order.nodes if node != order.node)
        self._pmi: Pmi | None = None
        if order.pmi:
            space = {**order.pmi["space"], "PMI_process_mapping": order.pmi["mapping"]}
            universe = order.pmi["universe"]
            self._pmi = Pmi(order.ranks, order.size, self._peers.nodes, order.pmi["kvsname"], universe, space=space)

    # -- from the agent --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every rank; one that cannot start ends with 126 or 127 and a line on its stderr."""
        order = self.order
        if order.time_limit_s is not None:
            self._loop.after(order.time_limit_s, "time limit", self._time_is_up)
        if order.cgroup is not None:
            self._oom_kills = contain.oom_kills(order.cgroup)
        contain.allow_files(FILES_PER_RANK * len(order.ranks) + FILES_MORE)
        try:
            self._make_tmp()
            if not self._must_fork():
                ranks.enter(order.cwd)
            failure = None
        except ranks.LaunchError as error:
            failure = error
        for rank in self._ranks.values():
            self._start_rank(rank, failure)
        if order.mem_bytes or order.cgroup:
            self._loop.after(MEMORY_POLL_S, "memory", self._watch_memory)
        if not self._by_pid:
            self._loop.after(0, "reap", self.reap)

    def end(self, reason: str, grace_s: float) -> None:
        """Let the attempt end: SIGTERM to everything, SIGKILL after the grace. May be repeated."""
        self._lose(reason, grace_s=grace_s)

    def signal(self, serial: int, number: int) -> None:
        """Send a signal to every rank and what it runs in its process group, once for each serial number."""
        if serial <= self._serial or not 0 < number < 65:
            return
        self._serial = serial
        if number in (signal.SIGSTOP, signal.SIGCONT):  # a job that is suspended must be so as a whole
            contain.kill_all(self._kind, number)
            return
        for pid in self._by_pid:
            try:
                os.killpg(pid, number)
            except (ProcessLookupError, PermissionError):
                pass  # it has just ended, or a fork hasn't made its session yet

    def feed(self, offset: int, data: bytes, eof: bool) -> None:
        """Input for rank 0 from `offset` on; what is known is skipped, what doesn't fit is left to be resent."""
        self._input.feed(offset, data, eof)

    def hear(self, node: str, seq: int, body: dict[str, Any]) -> None:
        """A message of a peer's warden; acknowledged, and acted upon the first time it comes."""
        new, seq = self._peers.heard(node, seq)
        if new:
            if "lost" in body:
                grace_s = float(body.get("grace_s") or 0)
                self._lose(str(body["lost"]), body.get("rank"), body.get("status"), grace_s, tell_peers=False)
            elif self._pmi and "fence" in body:
                self._carry_out(self._pmi.fence(node, body["fence"], body["puts"]))
            elif self._pmi and "publish" in body:
                self._carry_out(self._pmi.published(body["publish"], body["port"]))
        self.tell("peer_ack", to=node, seq=seq)

    def acknowledged(self, node: str, seq: int) -> None:
        """A peer's warden has our messages up to `seq`."""
        self._peers.acknowledged(node, seq)

    def state(self) -> dict[str, Any]:
        """Everything that an agent must know to take up where another left off."""
        return {
            "phase": "ended" if self.phase == "ended" else "running",
            "job": self.order.job,
            "attempt": self.order.attempt,
            "node": self.order.node,
            "ranks": self.order.ranks,
            "pids": self.pids(),
            "result": self.result,
            "spool_length": self.spool.whole_bytes,
            "stdin_have": self._input.have,
            "stdin_closed": self._input.closed,
            "signal_serial": self._serial,
        }

    def tell_again(self) -> None:
        """Send every message that a peer has not acknowledged."""
        messages = self._peers.again()
        for to, seq, body in messages:
            self.tell("peer", to=to, seq=seq, body=body)
        if messages:
            self._loop.after(PEER_AGAIN_S, "peers", self.tell_again)

    def forget(self) -> None:
        """The result is in safe hands: remove the spool."""
        self._loop.forget("peers")
        self.spool.delete()

    def pids(self) -> dict[str, int]:
        """Rank -> number of its process, as seen from outside the walls; of those that have not been reaped."""
        outer = {rank.number: self._outer.pid_of(pid) for pid, rank in self._by_pid.items()}
        return {str(number): pid for number, pid in sorted(outer.items()) if pid}

    def turn(self) -> None:
        """At the end of the loop's turn: see to the output that it has brought."""
        self._output.turn()

    def tell(self, op: str, **words: Any) -> None:
        """Send the agent a message about this attempt."""
        self._tell({"op": op, "job": self.order.job, "attempt": self.order.attempt, **words})

    def _tell_output(self, length_bytes: int, trouble: str) -> None:
        stalled = {"stalled": trouble} if trouble else {}
        self.tell("output", spool_length=length_bytes, **stalled)

    def _tell_input(self) -> None:
        self.tell("stdin", have=self._input.have, closed=self._input.closed)

    # -- starting --------------------------------------------------------------------------------------------------

    def _must_fork(self) -> bool:
        return self.order.cgroup is not None or not self.order.person.is_us

    def _make_tmp(self) -> None:
        tmp = self.order.tmp
        if tmp is None:
            return
        try:
            os.mkdir(tmp, 0o700)
            if not self.order.person.is_us:
                os.chown(tmp, self.order.person.uid, self.order.person.gid)
        except OSError as error:
            text = f"cannot make the folder for temporary files '{tmp}' ({error.strerror})"
            raise ranks.LaunchError(126, text) from None

    def _start_rank(self, rank: Rank, failure: ranks.LaunchError | None) -> None:
        order = self.order
        complaint = f"beo: {order.node}: "
        env = {**order.env, **order.env_of.get(rank.number, {})}
        theirs: list[int] = []
        try:
            if failure:
                raise failure
            wants_input = rank.number == 0 and order.stdin
            theirs.append(self._input.open() if wants_input else os.dup(0))  # ours is /dev/null
            theirs.append(self._output.open(rank.number, 1))
            theirs.append(self._output.open(rank.number, 2))
            if self._pmi:
                rank.pmi, socket_of_rank = socket.socketpair()
                theirs.append(socket_of_rank.detach())
                rank.pmi.setblocking(False)
                env |= {"PMI_FD": str(ranks.PMI_FD), "PMI_RANK": str(rank.number), "PMI_SIZE": str(order.size)}
            if self._must_fork():
                rank.pid = ranks.fork(order.argv, env, theirs, order.cwd, order.person, order.cgroup, complaint)
            else:
                rank.pid = ranks.spawn(order.argv, env, theirs)
        except OSError as error:
            failure = ranks.LaunchError(126, f"cannot start rank {rank.number} ({error.strerror})")
        except ranks.LaunchError as error:
            failure = error
        finally:
            for fd in theirs:
                os.close(fd)
        if rank.pid:
            self._by_pid[rank.pid] = rank
            if rank.pmi:
                self._loop.watch(rank.pmi.fileno(), lambda: self._listen(rank))
        elif failure:
            rank.status = failure.status
            self.spool.add(rank.number, 2, f"{complaint}{failure.text}\n".encode(errors="surrogateescape"))
            self._rank_left(rank)

    # -- MPI -------------------------------------------------------------------------------------------------------

    def _listen(self, rank: Rank) -> None:
        """Act on all that a rank has said on its PMI socket so far."""
        while rank.pmi:
            try:
                data = rank.pmi.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data or not self._pmi:
                self._loop.unwatch(rank.pmi.fileno())
                rank.pmi.close()
                rank.pmi = None
                return
            *lines, rank.line = (rank.line + data).split(b"\n")
            for line in lines:
                self._carry_out(self._pmi.handle(rank.number, line))
            if len(rank.line) > LINE_BYTES_MAX:
                self._carry_out(self._pmi.handle(rank.number, rank.line))
                rank.line = b""

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Reply):
                self._reply(self._ranks[effect.rank], effect.line)
            elif isinstance(effect, Fence):
                self._post({"fence": effect.k, "puts": effect.puts})
            elif isinstance(effect, Publish):
                self._post({"publish": effect.service, "port": effect.port})
            elif isinstance(effect, Abort):
                self._ranks[effect.rank].abort_code = effect.code
                words = effect.message[:WORDS_LENGTH_MAX]
                self._lose(f"rank {effect.rank} called MPI_Abort: {words}", effect.rank, effect.code)
            elif isinstance(effect, Bad):
                self._lose(effect.reason, effect.rank, None if effect.rank is None else self._status_of(effect.rank))

    def _status_of(self, number: int) -> int | None:
        return self._ranks[number].status if number in self._ranks else None

    def _reply(self, rank: Rank, line: bytes) -> None:
        if not rank.pmi:
            return
        try:
            sent_bytes = rank.pmi.send(line, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent_bytes = 0
        except OSError:
            return  # it has just ended
        if sent_bytes < len(line):  # a rank asks one thing at a time, and the socket holds hundreds of answers
            self._lose(f"rank {rank.number} doesn't read the answers to its PMI requests", rank.number)

    def _post(self, body: dict[str, Any]) -> None:
        try:
            messages = self._peers.post(body)
        except OverflowError as error:
            self._lose(str(error))
            return
        for to, seq, body in messages:
            self.tell("peer", to=to, seq=seq, body=body)
        if messages and self._loop.due_s("peers") is None:
            self._loop.after(PEER_AGAIN_S, "peers", self.tell_again)

    # -- the end ---------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take in every process that has ended, ranks and strays, and go on to the next phase when it is time."""
        if self.phase == "ended":
            return  # what ends now belongs to the next attempt
        childless = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                childless = True
                break
            if not pid:
                break
            rank = self._by_pid.pop(pid, None)
            if rank:
                code = os.waitstatus_to_exitcode(status)
                rank.status = code if code >= 0 else 128 - code
                rank.user_s, rank.system_s = usage.ru_utime, usage.ru_stime
                rank.peak_bytes = usage.ru_maxrss << 10
                self._rank_left(rank, -code if code < 0 else 0)
            elif pid == self._sweeper:
                self._sweeper = 0
                self._sweep(again=True)
        if self.phase == "running" and not self._by_pid:
            if childless:
                self._all_dead()
            else:
                self._kill()
        elif self.phase == "killing" and childless:
            self._all_dead()

    def _rank_left(self, rank: Rank, killed_by: int = 0) -> None:
        """Judge what a rank's end means for the others. Its PMI socket is read out first: it may have said goodbye."""
        if rank.number == 0:
            self._input.close()
        self._listen(rank)
        if self._reason is None and rank.status and self._out_of_memory():
            self._lose("out of memory", rank.number, rank.status)
        if self._reason is None and killed_by:
            self._lose(f"rank {rank.number} was killed by {signal_name(killed_by)}", rank.number, rank.status)
        if self._pmi:
            self._carry_out(self._pmi.left(rank.number))

    def _lose(
        self,
        reason: str,
        culprit: int | None = None,
        status: int | None = None,
        grace_s: float = 0.0,
        tell_peers: bool = True,
    ) -> None:
        """The attempt ends, here and on its other nodes. The first reason stays; a shorter grace still counts.

        Peers are told even when all is over here: they may wait in a barrier for ranks that ended before it.
        """
        if self._reason is None:
            self._reason, self._culprit, self._culprit_status = reason, culprit, status
            if tell_peers:
                self._post({"lost": reason, "rank": culprit, "status": status, "grace_s": grace_s})
        if self.phase != "running":
            return
        if grace_s <= 0:
            self._kill()
            return
        due_s = self._loop.due_s("kill")
        if due_s is None or grace_s < due_s:
            self._loop.after(grace_s, "kill", self._kill)
        if not self._terminated:
            self._terminated = True
            contain.kill_all(self._kind, signal.SIGTERM)
            contain.kill_all(self._kind, signal.SIGCONT)  # a stopped process would not hear it

    def _time_is_up(self) -> None:
        self._lose("time limit", grace_s=self.order.grace_s)

    def _watch_memory(self) -> None:
        if self._out_of_memory():
            # If it was a rank itself that the kernel killed, its end is about to be reaped, and tells which.
            victim_s = 0.0 if self.order.cgroup is None else MEMORY_POLL_S
            self._loop.after(victim_s, "memory", lambda: self._lose("out of memory"))
        elif self.phase == "running":
            self._loop.after(MEMORY_POLL_S, "memory", self._watch_memory)

    def _out_of_memory(self) -> bool:
        if self.order.cgroup is not None:
            return contain.oom_kills(self.order.cgroup) > self._oom_kills
        return self.order.mem_bytes is not None and contain.resident_bytes(self._kind) > self.order.mem_bytes

    def _kill(self) -> None:
        """Kill all there is, now; again and again where the walls let a fork slip by."""
        if self.phase not in ("running", "killing"):
            return
        self.phase = "killing"
        contain.kill_all(self._kind, signal.SIGKILL)
        self._loop.after(KILL_AGAIN_S, "kill", self._kill)
        self._loop.after(0, "reap", self.reap)

    def _all_dead(self) -> None:
        self.phase = "sweeping"
        for name in ("kill", "time limit", "memory", "reap"):
            self._loop.forget(name)
        self._input.close()
        for rank in self._ranks.values():
            if rank.pmi:
                self._loop.unwatch(rank.pmi.fileno())
                rank.pmi.close()
                rank.pmi = None
        self._output.drain(self._sweep)

    def _sweep(self, again: bool = False) -> None:
        """Remove the folder for temporary files; a child does it if that may take long, as the leash can't wait."""
        tmp = self.order.tmp
        try:
            if tmp is not None:
                os.rmdir(tmp)
        except FileNotFoundError:
            pass
        except OSError as error:
            if not again:
                self._sweeper = os.fork()
                if not self._sweeper:
                    contain.remove_tree(tmp or "")
                return
            print(f"beo: {self.order.node}: cannot remove '{tmp}': {error.strerror}", flush=True)
        self._end()

    def _end(self) -> None:
        self.phase = "ended"
        self.result = {
            "ranks": [self._ranks[number].result() for number in self.order.ranks],
            "reason": self._reason,
            "culprit": self._culprit,
            "status": self._culprit_status,
        }
        self._output.finish()
        self.tell("ended", result=self.result, spool_length=self.spool.whole_bytes)
        self._over()


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
