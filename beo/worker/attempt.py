"""One attempt's part on one node, from the first rank's start to the last process's end.

Phases: running (its files come in, then ranks live), killing (everything is told to die and is reaped), sweeping (all
dead: the pipes are read to their end), collecting (its results go out), sweeping again (its folders are removed), ended
(the result stands).

A part has the ranks of step 0 here, if there are any, and those of further steps (conductor.py). Where an attempt has
several nodes, its part ends when the *lead*, the warden of the first node, says that all is done.
"""

from __future__ import annotations

import os
import signal
import time

from beo import word
from beo.errors import EXIT_HALTED
from beo.worker import contain, door, pmi, ranks
from beo.worker.bounds import OOM_SCORE, Bounds
from beo.worker.carrying import Carrying
from beo.worker.conductor import Conductor, Stage
from beo.worker.frames import HALTED, LOST, STAGING
from beo.worker.loop import Loop
from beo.worker.order import Order
from beo.worker.peers import Peers
from beo.worker.pipes import NOTICE_S, Input, Output
from beo.worker.pmi import Abort, Bad, Effect, Fence, Pmi, Publish, Reply, Spawn
from beo.worker.spool import Spool
from beo.worker.step import Program, Rank, Step, signal_name
from beo.worker.terminal import HANG_UP_S, TERMINAL_NOTICE_S, Terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MEMORY_POLL_S = 0.25
BOUNDS_POLL_S = 0.25
WORDS_LENGTH_MAX = 500
"""Most of an abort's message that goes into the result; MPI prints all of it on stderr."""
FILES_PER_RANK = 4
FILES_MORE = 64
"""Descriptors that the warden needs for each rank (pipes, PMI socket) and for itself."""
STRAY_ROUNDS = 5
"""How often what a step has left is looked for: each round finds what the one before it has forked."""
FINISH_S = 60.0
"""How long the lead waits for word that the other nodes know that all is done. It may get lost with an agent."""
KILL_AGAIN_S = 0.2
"""Between two rounds of killing."""
PEER_AGAIN_S = 0.3
"""Between two tellings of what a peer has not acknowledged."""


class Attempt:
    """Runs an `Order` behind walls that are already there.

    kind: of the walls. folder: for the spool. tell: sends a message to the agent, if there is one. over: called when
    the result stands. crowd: the cgroup that limits its processes, if there is one.
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
        crowd: str = "",
    ) -> None:
        self.order = order
        self.phase = "running"
        self.result: dict[str, Any] | None = None
        self.spool = Spool(os.path.join(folder, f"{order.job}.{order.attempt}.spool"), order.free_min_bytes)
        self._bounds = Bounds(order, self.spool, crowd)
        self._kind = kind
        self._outer = outer
        self._loop = loop
        self._tell = tell
        self._over = over
        self._by_pid: dict[int, Rank] = {}
        notice_s = NOTICE_S if order.terminal is None else TERMINAL_NOTICE_S
        self._output = Output(self.spool, loop, order.size > 1, self._tell_output, notice_s)
        self._input = Input(loop, self._tell_input)
        self._terminal = Terminal(order.terminal, self._output, self._input) if order.terminal is not None else None
        self._serial = 0
        self._reason: str | None = None
        self._culprit: int | None = None
        self._culprit_status: int | None = None
        self._terminated = False
        self._oom_kills = 0
        self._sweeper = 0
        self._childless = False
        self._own_ended = False  # the ranks of step 0 here
        self._finishing = False  # all is done: what is still here is ended, and its end means nothing
        self._door: door.Door | None = None
        self._peers = Peers(node for node in order.nodes if node != order.node)
        services: dict[str, str] = {}
        program = Program(order.argv, order.cwd, {})
        self._own = Step(0, 0, order.size, dict.fromkeys(order.ranks, program), self._output, self._carry_out)
        self._own.input = self._input if order.stdin else None
        self._own.terminal = self._terminal
        if order.pmi:
            space = {**order.pmi["space"], "PMI_process_mapping": order.pmi["mapping"]}
            universe, nodes = order.pmi["universe"], self._peers.nodes
            self._own.pmi = Pmi(
                order.ranks, order.size, nodes, order.pmi["kvsname"], universe, space=space, services=services
            )
            if order.pmi["back"]:
                self._own.pmi.resume()
            self._own.peers = nodes
        self._services = services
        stage = Stage(
            self._output,
            lambda node, body: self._post(body, [node]),
            self._peers.pending,
            self._begin,
            self._kill_step,
            self._carry_out,
            self._lose,
            self._finish,
        )
        self._conductor = Conductor(order, loop, stage, services)
        self._carrying: Carrying | None = None
        if order.is_carrying:
            self._carrying = Carrying(
                order,
                kind,
                folder,
                loop,
                self._post,
                lambda: bool(self._peers.pending()),
                self._go,
                lambda why, again: self._lose((LOST if again else STAGING) + why),
                self._collected,
            )
        self._went = False  # the ranks were started
        self._early: list[int] = []  # signals that came before
        self._halting = self._noticed = False
        self._wanted_end = False  # somebody wants it to end: then none of its results is kept
        self._alone = False  # its agent has ended it, so another node may be gone
        self._trouble = ""  # why results aren't kept

    # -- from the agent --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have the files carried in, if there are any, and start every rank."""
        if self._carrying:
            self._carrying.stage()
        else:
            self._go()

    def _go(self) -> None:
        """Start every rank; one that cannot start ends with 126 or 127 and a line on its stderr."""
        if self._went or self.phase != "running" or self._reason is not None:
            return
        self._went = True
        order = self.order
        if order.time_limit_s is not None:
            self._loop.after(order.time_limit_s, "time limit", self._time_is_up)
            before_s = min(order.notice.before_s, order.time_limit_s / 2)
            self._loop.after(order.time_limit_s - before_s, "notice", self._time_is_short)
        if order.cgroup is not None:
            self._oom_kills = contain.oom_kills(order.cgroup)
        contain.allow_files(FILES_PER_RANK * len(order.ranks) + FILES_MORE)
        if order.shm_max_bytes is not None:
            try:
                contain.limit_shm(self._kind, order.shm_max_bytes)
            except OSError as error:
                print(f"beo: warden: /dev/shm isn't limited ({error})", flush=True)
        try:
            self._make_tmp()
            failure = None
        except ranks.LaunchError as error:
            failure = error
        for rank in self._start_ranks(self._own, failure):
            self._rank_left(rank)
        if order.mem_bytes or order.cgroup:
            self._loop.after(MEMORY_POLL_S, "memory", self._watch_memory)
        self._loop.after(BOUNDS_POLL_S, "bounds", self._watch_bounds)
        for number in self._early:
            self._signal(number)
        if not self._by_pid:
            self._loop.after(0, "reap", self.reap)

    def end(self, reason: str, grace_s: float, wanted: bool = False) -> None:
        """Let the attempt end: SIGTERM to everything, SIGKILL after the grace. May be repeated.

        wanted: by somebody. Else another node may be gone.
        """
        self._wanted_end = self._wanted_end or wanted
        self._alone = self._alone or not wanted
        if self.phase == "collecting" and self._carrying:
            self._carrying.cut_short(wanted)
        self._lose(reason, grace_s=grace_s)

    def signal(self, serial: int, number: int) -> None:
        """Send a signal to every rank and what it runs in its process group, once for each serial number."""
        if serial <= self._serial or not 0 < number < 65:
            return
        self._serial = serial
        if number in (signal.SIGSTOP, signal.SIGCONT):  # a job that is suspended must be so as a whole
            contain.kill_all(self._kind, number)
        elif self._went:
            self._signal(number)
        else:
            self._early.append(number)

    def _signal(self, number: int) -> None:
        for step in (self._own, *self._conductor.steps.values()):
            if step.family == 0:  # who has started another one passes the signal on, if he wants to
                step.signal(number)

    def feed(self, offset: int, data: bytes, eof: bool, window: tuple[int, int] = (0, 0)) -> None:
        """Input for rank 0 from `offset` on; what is known is skipped, what doesn't fit is left to be resent.

        window: the size that rank 0's terminal has from now on; (0, 0): nothing is said of it.
        """
        if not self._went:
            return  # it is sent again, and then there is a rank to read it
        if self._terminal and any(window):
            self._terminal.resize(window)
        self._input.feed(offset, data, eof)

    def hear(self, node: str, seq: int, body: dict[str, Any]) -> None:
        """A message of a peer's warden; acknowledged, and acted upon the first time it comes."""
        new, seq = self._peers.heard(node, seq)
        if new:
            if "lost" in body:
                grace_s = float(body.get("grace_s") or 0)
                self._wanted_end = self._wanted_end or bool(body.get("wanted"))
                self._lose(str(body["lost"]), body.get("rank"), body.get("status"), grace_s, tell_peers=False)
            elif "carry" in body:
                if self._carrying and self.phase != "ended":
                    self._carrying.hear(node, body)
            elif self.phase in ("running", "killing"):
                self._act(node, body)
        self.tell("peer_ack", to=node, seq=seq)

    def _act(self, node: str, body: dict[str, Any]) -> None:
        if "step" in body:
            self._conductor.hear(node, body)
        elif "finish" in body:
            self._finishing = True
            self._kill()
        elif body.get("world"):
            self._conductor.hear_world(node, body)
        elif self._own.pmi and "fence" in body:
            self._carry_out(self._own, self._own.pmi.fence(node, body["fence"], body["puts"]))
        elif "publish" in body:
            pmi.set_service(self._services, str(body["publish"]), body["port"])

    def acknowledged(self, node: str, seq: int) -> None:
        """A peer's warden has our messages up to `seq`."""
        self._peers.acknowledged(node, seq)
        self._conductor.flow()
        if self._finishing and not self._peers.pending():
            self._finished()
        if self._carrying and self.phase == "collecting":
            self._carrying.flow()

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
        if self._carrying:
            self._carrying.forget()
        self.spool.delete()

    def pids(self) -> dict[str, int]:
        """Rank -> number of its process, as seen from outside the walls; of those that have not been reaped."""
        outer = {rank.number: self._outer.pid_of(pid) for pid, rank in self._by_pid.items()}
        return {str(number): pid for number, pid in sorted(outer.items()) if pid}

    def turn(self) -> None:
        """At the end of the loop's turn: see to the output that it has brought."""
        self._output.turn()
        if self.phase == "running" and (broken := self._bounds.output()):
            self._lose(broken)

    def tell(self, op: str, **words: Any) -> None:
        """Send the agent a message about this attempt."""
        self._tell({"op": op, "job": self.order.job, "attempt": self.order.attempt, **words})

    def _tell_output(self, length_bytes: int, trouble: str) -> None:
        stalled = {"stalled": trouble} if trouble else {}
        self.tell("output", spool_length=length_bytes, **stalled)

    def _tell_input(self) -> None:
        window = {"window": self._terminal.window} if self._terminal else {}
        self.tell("stdin", have=self._input.have, closed=self._input.closed, **window)

    # -- starting --------------------------------------------------------------------------------------------------

    def _make_tmp(self) -> None:
        """The folder for temporary files, and in it the door for steps. Only then is it the job's: nobody meddles."""
        tmp, person = self.order.tmp, self.order.person
        if tmp is None:
            return
        try:
            os.mkdir(tmp, 0o700)
            path = os.path.join(tmp, door.NAME)
            if self.order.may_have_steps and len(os.fsencode(path)) <= door.PATH_LENGTH_MAX:
                enter = self._conductor.enter
                self._door = door.Door(path, self._kind, person.uid, person.gid, self._loop, enter)
                self.order.env["BEO_STEPS"] = path
            for name, text in self.order.files.items():
                with open(os.path.join(tmp, name), "w", encoding="utf-8") as file:
                    file.write(text)
                os.chmod(file.name, 0o644)
            if not person.is_us:
                os.chown(tmp, person.uid, person.gid)
        except OSError as error:
            text = f"cannot make the folder for temporary files '{tmp}' ({error.strerror})"
            raise ranks.LaunchError(126, text) from None

    def _start_ranks(self, step: Step, failure: ranks.LaunchError | None = None) -> list[Rank]:
        was = contain.offer(OOM_SCORE)  # for who is started now; this process itself must stay
        failed = step.start(self.order, self._loop, failure)
        contain.offer(was)
        for rank in step.ranks.values():
            if rank.pid:
                self._by_pid[rank.pid] = rank
        return failed

    def _begin(self, step: Step) -> list[Rank]:
        """Start the ranks of a further step, unless all is about to end."""
        if self.phase != "running" or self._reason is not None or self._finishing:
            step.void = True
            return []
        contain.allow_files(FILES_PER_RANK * (len(self._by_pid) + len(step.ranks)) + door.CLIENTS_MAX + FILES_MORE)
        return self._start_ranks(step)

    # -- MPI -------------------------------------------------------------------------------------------------------

    def _carry_out(self, step: Step, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Reply):
                self._carry_out(step, step.reply(effect.rank, effect.line))
            elif isinstance(effect, Fence):
                world = {"world": step.number} if step.number else {}
                self._post({"fence": effect.k, "puts": effect.puts, **world}, step.peers)
            elif isinstance(effect, Publish):
                self._post({"publish": effect.service, "port": effect.port})
            elif isinstance(effect, Spawn):
                self._conductor.spawn(step, effect)
            elif isinstance(effect, Abort):
                step.ranks[effect.rank].abort_code = effect.code
                words = effect.message[:WORDS_LENGTH_MAX]
                self._conductor.fail(step, f"rank {effect.rank} called MPI_Abort: {words}", effect.rank)
            elif isinstance(effect, Bad):
                self._conductor.fail(step, effect.reason, effect.rank)

    def _post(self, body: dict[str, Any], nodes: list[str] | None = None) -> None:
        try:
            messages = self._peers.post(body, nodes)
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
        self._childless = False
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self._childless = True
                break
            if not pid:
                break
            rank = self._by_pid.pop(pid, None)
            if rank:
                rank.step.live.discard(pid)
                self._rank_left(rank, rank.ended(status, usage))
            elif pid == self._sweeper:
                self._sweeper = 0
                self._sweep(again=True)
            elif self._carrying:
                self._carrying.reaped(pid, status)
        if self.phase == "running":
            self._look_for_end()
        elif self.phase == "killing" and self._childless:
            self._all_dead()

    def _look_for_end(self) -> None:
        if self._reason is not None or self._finishing:
            if not self._by_pid and not (self._finishing and self._peers.pending()):
                self._finished()
        elif self._went and not self._own.live and not self._own_ended:
            self._own_ended = True
            self._conductor.own_ranks_ended()

    def _finish(self) -> None:
        """The lead's: all is done, on every node. Its own part ends when the others know."""
        if self._finishing or self._reason is not None:
            return
        self._finishing = True
        self._post({"finish": True})
        if self._peers.pending():
            self._loop.after(FINISH_S, "finish", self._finished)
        else:
            self._finished()

    def _finished(self) -> None:
        self._loop.forget("finish")
        if self.phase != "running":
            return
        if self._childless and not self._by_pid:
            self._all_dead()
        else:
            self._kill()

    def _rank_left(self, rank: Rank, killed_by: int = 0) -> None:
        """Judge what a rank's end means for the others. Its PMI socket is read out first: it may have said goodbye."""
        if rank.step.number:
            if self._reason is None and rank.status and not rank.step.void and self._out_of_memory():
                self._lose("out of memory", rank.number, rank.status)
            self._conductor.rank_left(rank.step, rank, signal_name(killed_by) if killed_by else "")
            return
        if rank.number == 0:
            self._input.close()
        self._own.listen(rank, self._loop)
        if self._reason is None and rank.status and self._out_of_memory():
            self._lose("out of memory", rank.number, rank.status)
        if self._reason is None and killed_by:
            why = f"rank {rank.number} was killed by {signal_name(killed_by)}"
            if killed_by == signal.SIGKILL and self._bounds.for_want_of_memory():
                why += f" when {self.order.node} had no memory left: say with --mem how much it needs"
            self._lose(why, rank.number, rank.status)
        if self._own.pmi and not (self.order.is_once and rank.status == EXIT_HALTED):
            self._carry_out(self._own, self._own.pmi.left(rank.number))

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
        if self._finishing:  # too late: it has ended well, and who is silent now has ended too
            self._finished()
            return
        if self._reason is None:
            self._reason, self._culprit, self._culprit_status = reason, culprit, status
            if tell_peers:
                wanted = {"wanted": True} if self._wanted_end else {}
                self._post({"lost": reason, "rank": culprit, "status": status, "grace_s": grace_s, **wanted})
        if self.phase != "running":
            return
        if grace_s <= 0 or not self._by_pid:
            self._kill()
            return
        due_s = self._loop.due_s("kill")
        if due_s is None or grace_s < due_s:
            self._loop.after(grace_s, "kill", self._kill)
        if not self._terminated:
            self._terminated = True
            if self._terminal:  # it hangs up: a shell in it ignores SIGTERM, but not this
                contain.kill_all(self._kind, signal.SIGHUP)
                self._loop.after(HANG_UP_S, "terminate", self._terminate)
                contain.kill_all(self._kind, signal.SIGCONT)
            else:
                self._terminate()

    def _terminate(self) -> None:
        contain.kill_all(self._kind, signal.SIGTERM)
        contain.kill_all(self._kind, signal.SIGCONT)  # a stopped process would not hear it

    def _time_is_short(self) -> None:
        """Let the ranks take a last checkpoint; those of a job that goes on end with it."""
        notice = self.order.notice
        if self.phase != "running":
            return
        if notice.word:
            try:
                word.write(notice.word, word.encoded("halt" if notice.goes_on else "checkpoint", "limit"))
            except OSError as error:
                print(f"beo: warden: no word for its ranks ({error})", flush=True)
        if notice.signal:
            self._noticed = True
            self._signal(notice.signal)

    def halt(self, grace_s: float) -> None:
        """The job is to go on elsewhere: signal its ranks, and end them when they haven't ended after the grace."""
        if self._halting or not self.order.notice.signal:
            return
        self._halting = True
        if self._went:
            self._signal(self.order.notice.signal)
        self._loop.after(grace_s, "halt", lambda: self._lose(HALTED, grace_s=self.order.grace_s))

    def _time_is_up(self) -> None:
        self._lose("time limit", grace_s=self.order.grace_s)

    def _watch_bounds(self) -> None:
        if self.phase != "running":
            return
        if broken := self._bounds.broken(time.monotonic()):
            self._lose(broken)
        self._loop.after(BOUNDS_POLL_S, "bounds", self._watch_bounds)

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

    def _kill_step(self, step: Step) -> None:
        """Kill the ranks of a step and all that they have started, as far as it shows: by descent, or by its mark."""
        for _ in range(STRAY_ROUNDS):
            step.signal(signal.SIGKILL)
            if not contain.kill_marked(self._kind, f"BEO_STEP={step.number}", step.live):
                return

    def _all_dead(self) -> None:
        self.phase = "sweeping"
        for name in ("kill", "terminate", "time limit", "memory", "bounds", "reap", "finish"):
            self._loop.forget(name)
        self._input.close()
        self._own.close(self._loop)
        self._conductor.close()
        if self._door:
            self._door.close()
        self.spool.free_min_bytes = 0  # it prints no more, and what is left must not wait for others to make room
        self._output.drain(self._collect)

    def _collect(self) -> None:
        if not self._carrying:
            self._sweep()
            return
        self.phase = "collecting"
        self._carrying.collect(wanted=self._went and not self._wanted_end, alone=self._alone)

    def _collected(self, trouble: str) -> None:
        self._trouble = "" if self._wanted_end else trouble
        self.phase = "sweeping"
        self._sweep()

    def _sweep(self, again: bool = False) -> None:
        """Remove the attempt's folders; a child does it if that may take long, as the leash can't wait."""
        left = {}
        for folder in filter(None, (self.order.tmp, self.order.carried.work)):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                left[folder] = error.strerror
        if left and not again:
            self._sweeper = os.fork()
            if not self._sweeper:
                contain.remove_trees(left)
            return
        for folder, why in left.items():
            print(f"beo: {self.order.node}: cannot remove '{folder}': {why}", flush=True)
        self._end()

    def _end(self) -> None:
        self.phase = "ended"
        here = [self._own.ranks[number] for number in self.order.ranks]
        if self._noticed and (self._culprit is not None or (self._reason is None and any(r.status for r in here))):
            # A rank has ended with an error after it heard that its time is short: for that reason, then.
            self._reason, self._culprit, self._culprit_status = "time limit", None, None
        self.result = {
            "ranks": [rank.result() for rank in here],
            "steps": self._conductor.results,
            "more": self._conductor.results_more,
            "reason": self._reason,
            "culprit": self._culprit,
            "status": self._culprit_status,
            **({"trouble": self._trouble} if self._trouble else {}),
        }
        self._output.finish()
        self.tell("ended", result=self.result, spool_length=self.spool.whole_bytes)
        self._over()
