"""A worker's machine: the real core of its agent, wardens that see what is started, and a vote in the agent's memory.

The wardens are where the truth about jobs is: I3, one attempt starts at most once, two attempts of a job never live
together, and none starts after the end. Assumed, as in reality: no message is delayed for longer than a machine takes
to boot, so none outlives its sender's boot.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from beo import messages as ms
from beo import votes
from beo.errors import EXIT_HALTED
from beo.ha.register import Acceptor
from beo.worker import acts
from beo.worker import core as workercore
from tests.sim.clock import BootTime, Violation
from tests.sim.voter import PRESENT_S, answer
from tests.world import settings

if TYPE_CHECKING:
    from tests.sim.head import HeadHost
    from tests.sim.world import Simulation

NS = 1_000_000_000
CONFIG = settings(lease_s=3.0, heartbeat_s=0.4, peer_silence_s=2.0, grace_s=0.5, attached_grace_s=5.0)
TICK_S = 0.2
BOOT_S = 2.5  # more than any delay


class Warden:
    """One warden: starts the ranks of a part, ends them, and keeps the result until it is committed."""

    def __init__(self, machine: Machine, number: int) -> None:
        self.machine = machine
        self.number = number
        self.order: ms.Start | None = None
        self.result: dict[str, Any] | None = None
        self.leash_until_ns = 0
        self.dead = False
        self._serial = 0

    @property
    def alive(self) -> tuple[int, int] | None:
        """The (job, attempt) whose ranks live here."""
        return (self.order.job, self.order.attempt) if self.order and not self.result and not self.dead else None

    def start(self, order: ms.Start, leash_until_ns: int) -> None:
        """Start the ranks of this node's part."""
        sim = self.machine.sim
        sim.jobs.starts(self.machine, order)
        self.order, self.result, self.leash_until_ns = order, None, leash_until_ns
        self._serial += 1
        serial = self._serial
        self._watch_leash()
        status = 0 if sim.random.random() < 0.9 else 3
        sim.clock.after(sim.random.choice([0.02, 0.5, 2.0, 8.0]), lambda: self._end(serial, status))

    def _watch_leash(self) -> None:
        if self.leash_until_ns and not self.dead and self.order:
            clock = self.machine.sim.clock
            left_s = self.machine.time.true_s(self.leash_until_ns / NS) - clock.s
            if left_s <= 1e-6:
                self.die()
            else:
                clock.after(left_s, self._watch_leash)

    def die(self) -> None:
        """End, with everything in it."""
        if not self.dead:
            self.dead = True
            self.machine.wardens.pop(self.number, None)
            self.machine.tell(acts.WardenClosed(self.number, 0))

    def _end(self, serial: int, status: int, reason: str = "") -> None:
        if serial != self._serial or self.dead or not self.order or self.result:
            return
        part = self.part
        ranks = [
            {"rank": n, "status": status, "user_s": 0.0, "system_s": 0.0, "peak_bytes": 1}
            for n in range(part.first_rank, part.first_rank + part.ranks)
        ]
        culprit = part.first_rank if status and not reason else None
        self.result = {"ranks": ranks, "reason": reason or ("a rank failed" if status else ""), "culprit": culprit}
        self.tell("ended", result=self.result, spool_length=0)

    def halt(self) -> None:
        """End at the next safe point."""
        sim, serial = self.machine.sim, self._serial
        sim.clock.after(sim.random.choice([0.01, 0.2]), lambda: self._end(serial, EXIT_HALTED))

    @property
    def part(self) -> ms.Peer:
        """This node's part."""
        assert self.order
        return next(part for part in self.order.parts if part.node == self.machine.name)

    def tell(self, op: str, **words: Any) -> None:
        """Send the agent a message."""
        if self.order:
            words = {"job": self.order.job, "attempt": self.order.attempt, **words}
        self.machine.tell(acts.FromWarden(self.number, {"op": op, **words}))

    def tell_state(self) -> None:
        """The first word on a connection."""
        phase = "idle" if not self.order else "ended" if self.result else "running"
        self.tell("state", phase=phase, result=self.result, spool_length=0)

    def hear(self, message: dict[str, Any]) -> None:
        """Do what the agent asks."""
        op = message["op"]
        if op == "exit":
            self.die()
        elif op == "leash" and self.order:
            self.leash_until_ns = max(self.leash_until_ns, message["until_ns"])
        elif self.order and (message.get("job"), message.get("attempt")) == (self.order.job, self.order.attempt):
            if op == "end":
                serial = self._serial
                self.machine.sim.clock.after(message["grace_s"], lambda: self._end(serial, 143, message["reason"]))
            elif op == "committed":
                self._committed()

    def _committed(self) -> None:
        if self.result is None:
            raise Violation(f"I3: {self.machine.name}: told to forget {self.alive}, which runs")
        self.machine.sim.jobs.forgets(self)
        ranks = self.order.spec.ranks if self.order else 0
        self.order = self.result = None
        self.leash_until_ns = 0
        if ranks == 1:
            self.tell("idle")
        else:
            self.die()


class Machine:
    """One worker: its agent, its wardens, and the files that outlive the agent."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.time = BootTime(sim.clock, sim.rate())
        self.contain = sim.random.choice(["pidns", "pidns", "none"])
        self.boots = 0
        self.agents = 0
        self.epoch = 0
        self.wardens: dict[int, Warden] = {}
        self.next_warden = 1
        self.core: workercore.Worker | None = None
        self.acceptor = Acceptor("")
        self.paused = False
        self._inbox: list[acts.Input] = []
        self._questions: list[tuple[HeadHost, votes.HeadQuestion]] = []
        self.boot()

    def boot(self) -> None:
        """Start the machine: nothing is known, but the highest epoch."""
        self.boots += 1
        self.time.boot()
        self.incarnation = self.sim.nonce()
        self.seen: dict[tuple[int, int], int] = {}
        self.orders: dict[tuple[int, int], ms.Start] = {}
        self.start_agent()

    def start_agent(self) -> None:
        """Start the agent; it finds the wardens of the one before it, and is a voter that nobody knows yet."""
        self.agents += 1
        self.paused = False
        self._inbox.clear()
        self._questions.clear()
        self.acceptor = Acceptor(self.sim.voter_name(self))
        facts = {"contain": self.contain}
        address = f"{self.name}:{self.agents}"
        node = acts.Node(self.name, f"boot-{self.boots}", address, f"key-{self.name}", 2, 1 << 30, facts)
        self.core = workercore.Worker(node, CONFIG.worker, self.sim.nonce)
        seen = tuple((index, *key) for key, index in self.seen.items())
        wardens = tuple(sorted(self.wardens))
        self.tell(acts.Begin(self.incarnation, self.epoch, seen, tuple(self.orders.values()), wardens))
        for warden in list(self.wardens.values()):
            warden.tell_state()
        self._tick(self.agents)
        self._present(self.agents)

    def stop_agent(self) -> None:
        """Kill the agent; the wardens stay."""
        self.core = None
        self.paused = False

    def stop(self) -> None:
        """Power off."""
        self.stop_agent()
        for warden in self.wardens.values():
            warden.dead = True
        self.wardens.clear()

    def revive_agent(self) -> None:
        """Start the agent, if none runs."""
        if not self.core:
            self.start_agent()

    def revive(self) -> None:
        """Switch on, if it isn't on."""
        if not self.core:
            self.boot()

    def pause(self, for_s: float) -> None:
        """Stop the agent's process; what comes waits. The wardens go on."""
        if self.core and not self.paused:
            self.paused = True
            agent = self.agents
            self.sim.clock.after(for_s, lambda: self._resume(agent))

    def _resume(self, agent: int) -> None:
        if self.core and self.paused and agent == self.agents:
            self.paused = False
            inbox, self._inbox = self._inbox, []
            questions, self._questions = self._questions, []
            for item in inbox:
                self.tell(item)
            for question in questions:
                self.vote(*question)
            self._tick(agent)
            self._present(agent)

    @property
    def peer(self) -> bytes:
        """This agent's connection to a head."""
        return f"{self.name} {self.agents}".encode()

    def _tick(self, agent: int) -> None:
        if self.core and agent == self.agents and not self.paused:
            self.tell(acts.Tick())
            self.sim.clock.after(TICK_S, lambda: self._tick(agent))

    # ---- its vote

    def _present(self, agent: int) -> None:
        if self.core and agent == self.agents and not self.paused:
            for head in self.sim.heads.values():
                self._say(head, votes.Present(self.acceptor.voter, self.name, self.sim.racks.get(self.name, "")))
            self.sim.clock.after(PRESENT_S, lambda: self._present(agent))

    def vote(self, head: HeadHost, message: votes.HeadQuestion) -> None:
        """Answer a head's question to the voter."""
        if self.paused:
            self._questions.append((head, message))
        elif self.core:
            ballot = answer(self.acceptor, message, self.time.s)
            if isinstance(ballot, votes.Accepted) and isinstance(message, votes.Accept):
                self.sim.truth.accepted(message.cfg, self.acceptor.voter)
            self._say(head, ballot)
            if isinstance(ballot, votes.Accepted | votes.Granted):
                self.tell(acts.Rises(head.name, ballot.epoch))

    def _say(self, head: HeadHost, message: Any) -> None:
        peer = self.peer
        self.sim.net.send(self.name, head.name, lambda: head.asked(peer, "worker", message))

    # ---- its jobs

    def hear(self, head: HeadHost, message: ms.HeadCommand) -> None:
        """A head's command."""
        self.tell(acts.FromHead(message, head.name))

    def tell(self, item: acts.Input) -> None:
        """Hand something to the agent, if there is one, now or when it goes on."""
        if self.paused:
            self._inbox.append(item)
        elif self.core:
            self._perform(self.core.handle(item, acts.Now(int(self.time.s * NS))))

    def _perform(self, effects: list[acts.Effect]) -> None:
        sim = self.sim
        for effect in effects:
            match effect:
                case acts.ToHead():
                    for head in sim.heads.values():
                        if effect.head in ("", head.name):
                            self._say(head, effect.message)
                case acts.Follow():
                    pass  # there is no bulk plane here
                case acts.ToWarden():
                    if effect.warden in self.wardens:
                        self.wardens[effect.warden].hear(effect.message)
                case acts.Launch():
                    self._launch(effect)
                case acts.Ship():
                    raise Violation("there was no output to ship")
                case acts.Say():
                    self._say_halt(effect.job, effect.attempt)
                case acts.Copy():
                    self._copy(effect.order.job, effect.order.attempt)
                case acts.Empty():
                    pass  # there are no files
                case acts.Remember():
                    key = (effect.order.job, effect.order.attempt)
                    self.orders[key], self.seen[key] = effect.order, effect.order.index
                case acts.Seen():
                    self.seen[effect.job, effect.attempt] = 0
                case acts.Drop():
                    self.orders.pop((effect.job, effect.attempt), None)
                case acts.Reborn():
                    assert self.core
                    self.incarnation, self.seen = effect.incarnation, dict(self.core.seen)
                case acts.Epoch():
                    self.epoch = effect.epoch
                case acts.ToPeer():
                    other = sim.machines[effect.peer.node]
                    if effect.peer.address == f"{other.name}:{other.agents}":
                        self._word(other, self.name.encode(), effect.message)
                case acts.Answer():
                    self._word(sim.machines[effect.channel.decode()], b"", effect.message)

    def _copy(self, job: int, attempt: int) -> None:
        """Copy what is kept to the tree, which takes its time."""
        bundle = hashlib.sha256(f"{self.name} {job}.{attempt}".encode()).hexdigest()
        copied = acts.Copied(job, attempt, bundle, 1, at_end=True)
        self.sim.clock.after(self.sim.random.choice([0.01, 0.3, 3.0]), lambda: self.tell(copied))

    def _say_halt(self, job: int, attempt: int) -> None:
        """Ask ranks to halt; two programs of three take checkpoints, and do."""
        for warden in self.wardens.values():
            if warden.alive == (job, attempt) and job % 3:
                warden.halt()

    def _word(self, other: Machine, channel: bytes, message: ms.AgentWord) -> None:
        heard = acts.FromPeer(channel, message, f"key-{self.name}")
        self.sim.net.send(self.name, other.name, lambda: other.tell(heard))

    def _launch(self, effect: acts.Launch) -> None:
        assert self.core
        number = effect.warden
        if number not in self.wardens:
            number = self.next_warden
            self.next_warden += 1
            self.wardens[number] = Warden(self, number)
        self.core.launched((effect.order.job, effect.order.attempt), number)
        self.wardens[number].start(effect.order, effect.leash_until_ns)
