"""The production cores of head and workers in a world of virtual time, a bad network and machines that die.

Fake are only the disk, the wire and the wardens. A seed says everything that happens, so each run can be had again:
`Simulation(seed).run()`. The wardens are where the truth is: they see what is started, and where, and complain.

Assumed, as in reality: a message is delayed by less than a machine takes to boot (so none outlives its sender's boot).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from beo import events as ev
from beo import messages as ms
from beo.headnode import acts as headacts
from beo.headnode import core as headcore
from beo.headnode.model import ENDED, WAITING, Job
from beo.headnode.state import State
from beo.worker import acts
from beo.worker import core as workercore
from tests.world import ACCOUNT, START_S, Disk, birth, same, settings, spec

NS = 1_000_000_000
CONFIG = settings(lease_s=3.0, heartbeat_s=0.4, peer_silence_s=2.0, grace_s=0.5, attached_grace_s=5.0)
TICK_S = 0.2
DELAY_MAX_S = 2.0
BOOT_S = 2.5  # more than any delay
TROUBLE_S = 40.0  # then everything heals
PATIENCE_S = 120.0  # for everything to end after that
NODES = ("n1", "n2", "n3")
OPERATIONS = (
    ev.JobHeld,
    ev.JobReleased,
    ev.RequeueRequested,
    ev.PrioritySet,
    ev.NodeDrained,
    ev.NodeResumed,
    ev.NodeForgotten,
)


class Violation(AssertionError):
    """An invariant was broken."""


class Clock:
    """Virtual time, and what happens when."""

    def __init__(self) -> None:
        self.s = 100.0
        self._serial = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self._serial += 1
        heapq.heappush(self._heap, (self.s + delay_s, self._serial, act))

    def step(self) -> None:
        """Let the next thing happen."""
        self.s, _, act = heapq.heappop(self._heap)
        act()


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
        sim.starts(self.machine, order)
        self.order, self.result, self.leash_until_ns = order, None, leash_until_ns
        self._serial += 1
        serial = self._serial
        self._watch_leash()
        status = 0 if sim.random.random() < 0.9 else 3
        sim.clock.after(sim.random.choice([0.02, 0.5, 2.0, 8.0]), lambda: self._end(serial, status))

    def _watch_leash(self) -> None:
        if self.leash_until_ns and not self.dead and self.order:
            clock = self.machine.sim.clock
            left_s = self.leash_until_ns / NS - clock.s
            if left_s <= 0:
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
            raise Violation(f"{self.machine.name}: told to forget {self.alive}, which runs")
        self.machine.sim.forgets(self)
        ranks = self.order.spec.ranks if self.order else 0
        self.order = self.result = None
        self.leash_until_ns = 0
        if ranks == 1:
            self.tell("idle")
        else:
            self.die()


class Machine:
    """A worker's machine: its agent (the real core), its wardens, and the files that outlive the agent."""

    def __init__(self, sim: Simulation, name: str) -> None:
        self.sim = sim
        self.name = name
        self.contain = sim.random.choice(["pidns", "pidns", "none"])
        self.boots = 0
        self.agents = 0
        self.epoch = 0
        self.wardens: dict[int, Warden] = {}
        self.next_warden = 1
        self.cut = False  # from the head
        self.core: workercore.Worker | None = None
        self.boot()

    def boot(self) -> None:
        """Start the machine: nothing is known, but the highest epoch."""
        self.boots += 1
        self.incarnation = self.sim.nonce()
        self.seen: dict[tuple[int, int], int] = {}
        self.orders: dict[tuple[int, int], ms.Start] = {}
        self.start_agent()

    def start_agent(self) -> None:
        """Start the agent; it finds the wardens of the one before it."""
        self.agents += 1
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

    def stop_agent(self) -> None:
        """Kill the agent; the wardens stay."""
        self.core = None

    def stop(self) -> None:
        """Power off."""
        self.core = None
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

    @property
    def peer(self) -> bytes:
        """This agent's connection to the head."""
        return f"{self.name} {self.agents}".encode()

    def _tick(self, agent: int) -> None:
        if self.core and agent == self.agents:
            self.tell(acts.Tick())
            self.sim.clock.after(TICK_S, lambda: self._tick(agent))

    def tell(self, item: acts.Input) -> None:
        """Hand something to the agent, if there is one."""
        if self.core:
            self._perform(self.core.handle(item, acts.Now(int(self.sim.clock.s * NS))))

    def _perform(self, effects: list[acts.Effect]) -> None:
        sim = self.sim
        for effect in effects:
            match effect:
                case acts.ToHead():
                    sim.send(self.cut, lambda e=effect: sim.to_head(self.peer, "worker", e.message))  # type: ignore[misc]
                case acts.ToWarden():
                    if effect.warden in self.wardens:
                        self.wardens[effect.warden].hear(effect.message)
                case acts.Launch():
                    self._launch(effect)
                case acts.Ship():
                    raise Violation("there was no output to ship")
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
                    right = effect.peer.address == f"{other.name}:{other.agents}"
                    heard = acts.FromPeer(self.name.encode(), effect.message, f"key-{self.name}")
                    sim.send(not right, lambda o=other, h=heard: o.tell(h))  # type: ignore[misc]
                case acts.Answer():
                    other = sim.machines[effect.channel.decode()]
                    heard = acts.FromPeer(b"", effect.message, f"key-{self.name}")
                    sim.send(False, lambda o=other, h=heard: o.tell(h))  # type: ignore[misc]

    def _launch(self, effect: acts.Launch) -> None:
        assert self.core
        number = effect.warden
        if number not in self.wardens:
            number = self.next_warden
            self.next_warden += 1
            self.wardens[number] = Warden(self, number)
        self.core.launched((effect.order.job, effect.order.attempt), number)
        self.wardens[number].start(effect.order, effect.leash_until_ns)


class Simulation:
    """One head, three workers, one client that doesn't give up, and trouble."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = Clock()
        self.loss = self.random.choice([0.0, 0.02, 0.2])
        self.slow = self.random.choice([0.0, 0.1, 0.5])  # of the messages; they take up to DELAY_MAX_S
        self.healed = False
        self._nonces = 0
        self.disk = Disk()
        self.head: headcore.Head | None = None
        self._lives = 0
        self.started: set[tuple[str, int, int]] = set()  # (node, job, attempt)
        self.acknowledged: dict[str, int] = {}  # key -> job
        self.wishes: dict[str, ms.Submit] = {}
        self.operated: Counter[str] = Counter()  # entries by which somebody ran the cluster
        self.ends = 0  # parts that ended by themselves and are on record
        self.start_head()
        self.machines: dict[str, Machine] = {}
        for name in NODES:
            self.machines[name] = Machine(self, name)

    def nonce(self) -> str:
        """A fresh name."""
        self._nonces += 1
        return f"nonce-{self._nonces}"

    # ---- the wire

    def send(self, cut: bool, deliver: Callable[[], None]) -> None:
        """Deliver something soon, late, twice or never."""
        random = self.random
        if cut or (not self.healed and random.random() < self.loss):
            return
        for _ in range(1 if self.healed or random.random() > self.slow / 2 else 2):
            slow = not self.healed and random.random() < self.slow
            self.clock.after(random.uniform(0.001, DELAY_MAX_S if slow else 0.02), deliver)

    def to_head(self, peer: bytes, key: str, message: Any, request: int = 0) -> None:
        """A message reaches the head's machine."""
        if self.head:
            message = ms.to_head.decode(ms.encode(message))
            self._handle(headacts.Asked(peer, request, key, message, ACCOUNT))
            self._handle(headacts.Turn())

    # ---- the head

    def start_head(self) -> None:
        """Start a head from what is on the disk."""
        state = self.disk.replay()
        self._lives += 1
        self.head = headcore.Head(state, CONFIG, self.nonce, "bulk:1", "test")
        self._handle(headacts.Begin(() if state.index else birth()))
        self._tick_head(self._lives)

    def kill_head(self) -> None:
        """Kill the head; of what wasn't fsynced, a part may be on the disk all the same."""
        self.head = None
        del self.disk.entries[self.random.randint(self.disk.durable, len(self.disk.entries)) :]
        self.disk.durable = len(self.disk.entries)

    def _tick_head(self, life: int) -> None:
        if self.head and life == self._lives:
            self._handle(headacts.Tick())
            self._handle(headacts.Turn())
            self.clock.after(TICK_S, lambda: self._tick_head(life))

    def _handle(self, item: Any) -> None:
        assert self.head
        effects = self.head.handle(item, headacts.Now(self.clock.s, START_S + self.clock.s))
        appended = False
        for effect in effects:
            if isinstance(effect, headacts.Append):
                self.disk.append(effect.index, effect.event)
                appended = True
                self._look_at_entry(effect.event)
            elif isinstance(effect, headacts.Send):
                self._deliver(effect)
        if appended:
            life, index = self._lives, len(self.disk.entries)
            self.clock.after(self.random.uniform(0.001, 0.05), lambda: self._durable(life, index))

    def _durable(self, life: int, index: int) -> None:
        if self.head and life == self._lives:
            self.disk.durable = max(self.disk.durable, index)
            self._handle(headacts.Durable(self.disk.durable))

    def _deliver(self, effect: headacts.Send) -> None:
        if effect.peer == b"operator":
            return
        if effect.peer == b"client":
            if isinstance(effect.message, ms.SubmittedIs):
                key = f"{effect.request}"
                self.send(False, lambda: self._acknowledge(key, effect.message.job))  # type: ignore[union-attr]
            return
        name, _, agent = effect.peer.decode().partition(" ")
        machine = self.machines[name]

        def arrive() -> None:
            if machine.agents == int(agent):
                message = ms.to_agent.decode(ms.encode(effect.message))
                machine.tell(acts.FromHead(message))  # type: ignore[arg-type]

        self.send(machine.cut, arrive)

    # ---- the client

    def _acknowledge(self, key: str, job: int) -> None:
        if self.acknowledged.setdefault(key, job) != job:
            raise Violation(f"submission {key} is job {self.acknowledged[key]} and job {job}")

    def _submit(self, key: str) -> None:
        if key in self.acknowledged:
            return
        self.send(False, lambda: self.to_head(b"client", "ann", self.wishes[key], int(key)))
        self.clock.after(1.0, lambda: self._submit(key))

    def _wish(self) -> None:
        key = str(len(self.wishes) + 1)
        random = self.random
        ranks = random.choice([1, 1, 1, 2, 3, 4])
        words = {
            "ranks": ranks,
            "nodes": random.choice([0, 0, min(2, ranks)]),
            "requeue": random.choice(["auto", "auto", "confirm", "confirm", "never"]),
            "batch": random.random() < 0.2,
            "priority": random.choice([0, 0, 5]),
        }
        self.wishes[key] = ms.Submit(key, spec(**words), 1000, 1000, ())
        self._submit(key)

    def _cancel(self) -> None:
        if self.acknowledged:
            job = self.random.choice(sorted(self.acknowledged.values()))
            self.send(False, lambda: self.to_head(b"client", "ann", ms.Cancel((str(job),))))

    def _operate(self) -> None:
        """Somebody runs the cluster: holds jobs, lets them run again, drains nodes, forgets lost ones."""
        if self.healed:
            return
        random = self.random
        job, node = str(random.randint(1, max(1, len(self.wishes)))), random.choice(NODES)
        known = self.head.state.jobs.get(int(job)) if self.head else None
        wishes: list[ms.ClientRequest] = [
            ms.Hold((job,)),
            ms.Release((job,)),
            ms.Requeue(((int(job), known.attempt_number if known else 0),), random.random() < 0.3),
            ms.SetPriority((job,), random.randint(-5, 5)),
            ms.Drain(node, "a new disk"),
            ms.Resume(node),
            ms.ForgetNodes(node),
        ]
        self._say(random.choice(wishes))
        self.clock.after(random.uniform(0.1, 1.5), self._operate)

    def _say(self, wish: ms.ClientRequest) -> None:
        who = "ann" if isinstance(wish, ms.Hold) and self.random.random() < 0.5 else "root"
        self.send(False, lambda: self.to_head(b"operator", who, wish))

    def _let_all_go(self) -> None:
        """What is held is released and what is drained takes work again, so that everything can end."""
        if self.head:
            state = self.head.state
            held = tuple(str(job.id) for job in state.jobs.values() if job.state == "held")
            drained = ",".join(node.name for node in state.nodes.values() if node.drain)
            if held:
                self._say(ms.Release(held))
            if drained:
                self._say(ms.Resume(drained))
        self.clock.after(1.0, self._let_all_go)

    # ---- the truth

    def _look_at_entry(self, event: ev.Event) -> None:
        assert self.head
        nodes = self.head.state.nodes
        if isinstance(event, ev.Started) and any(nodes[part.node].drain for part in event.parts):
            raise Violation(f"job {event.job} is placed on a drained node")
        if isinstance(event, OPERATIONS):
            self.operated[type(event).__name__] += 1

    def starts(self, machine: Machine, order: ms.Start) -> None:
        """A warden starts a part: it may, if that never happened before and no other attempt of the job lives."""
        what = (machine.name, order.job, order.attempt)
        if what in self.started:
            raise Violation(f"{what} is started twice")
        self.started.add(what)
        for other in self.machines.values():
            for warden in other.wardens.values():
                if warden.alive and warden.alive[0] == order.job and warden.alive[1] != order.attempt:
                    raise Violation(f"{what} starts while {warden.alive} lives on {other.name}")
        job = self._on_record(order.job)
        if job.state in ENDED | WAITING or job.attempt_number > order.attempt:
            raise Violation(f"{what} starts though the job is {job.state}, attempt {job.attempt_number}")

    def forgets(self, warden: Warden) -> None:
        """A warden is told that its result is safe: then it is on record, or nobody needs it any more."""
        order = warden.order
        assert order and warden.result
        job = self._on_record(order.job)
        attempt = job.attempt
        if not attempt or attempt.number != order.attempt or job.state in ENDED:
            return
        part = next(part for part in attempt.parts if part.node == warden.machine.name)
        if part.state == "live":
            raise Violation(f"{warden.machine.name} forgot the end of job {order.job}, which is on no record")
        self.ends += 1

    def _on_record(self, number: int) -> Job:
        # The tip of a living head is ahead of the disk by what nobody has seen: near enough, and much faster.
        state = self.head.state if self.head else self.disk.replay(self.disk.durable)
        if number not in state.jobs:
            raise Violation(f"job {number} runs, and is on no record")
        return state.jobs[number]

    # ---- trouble

    def _trouble(self) -> None:
        if self.healed:
            return
        random = self.random
        machine = self.machines[random.choice(NODES)]
        trouble = random.random()
        if trouble < 0.25 and self.head:
            self.kill_head()
            self.clock.after(random.choice([0.1, 1.0, 5.0]), self._revive_head)
        elif trouble < 0.45 and machine.core:
            machine.stop_agent()
            self.clock.after(random.choice([0.1, 1.0, 8.0]), machine.revive_agent)
        elif trouble < 0.6 and machine.core:
            machine.stop()
            self.clock.after(BOOT_S + random.choice([0.1, 5.0]), machine.revive)
        elif trouble < 0.85:
            machine.cut = True
            self.clock.after(random.choice([0.5, 2.0, 5.0, 8.0]), lambda: setattr(machine, "cut", False))
        elif machine.wardens:
            machine.wardens[random.choice(sorted(machine.wardens))].die()
        self.clock.after(random.uniform(0.5, 4.0), self._trouble)

    def _revive_head(self) -> None:
        if not self.head:
            self.start_head()

    # ---- a run

    def run(self) -> Simulation:
        """Trouble, then healing, then everything must end. Raises Violation."""
        begin_s = self.clock.s
        for _ in range(12):
            self.clock.after(self.random.uniform(0.0, TROUBLE_S - 5), self._wish)
        for _ in range(3):
            self.clock.after(self.random.uniform(0.0, TROUBLE_S), self._cancel)
        self.clock.after(self.random.uniform(0.0, 3.0), self._trouble)
        self.clock.after(self.random.uniform(0.0, 3.0), self._operate)
        while self.clock.s < begin_s + TROUBLE_S:
            self.clock.step()
        self.healed = True
        for machine in self.machines.values():
            machine.cut = False
        self._let_all_go()
        while not self._all_ended():
            self.clock.step()
            if self.clock.s > begin_s + TROUBLE_S + PATIENCE_S:
                raise Violation(f"jobs that never end: {self._unfinished()}")
        self._check()
        return self

    def _unfinished(self) -> list[Job]:
        return [job for job in self.head.state.jobs.values() if job.state not in ENDED] if self.head else []

    def _all_ended(self) -> bool:
        return bool(self.head) and len(self.acknowledged) == len(self.wishes) and not self._unfinished()

    def _check(self) -> None:
        assert self.head
        state = self.head.state
        for key, number in self.acknowledged.items():
            job = state.jobs.get(number)
            if not job or job.key != key:
                raise Violation(f"submission {key} was acknowledged as job {number}, and that is {job}")
            for part in job.attempt.parts if job.attempt and job.state == "done" else ():
                if part.result and (part.node, number, job.attempt_number) not in self.started:
                    raise Violation(f"job {number} is done, and never ran on {part.node}")
        if len(state.jobs) != len(self.wishes):
            raise Violation(f"{len(self.wishes)} submissions became {len(state.jobs)} jobs")
        if not same(state, self.disk.replay()) or not same(state, State.decode(state.encode())):
            raise Violation("a replay gives another state")
        for node in state.nodes.values():
            if node.used_slots or node.used_bytes:
                raise Violation(f"{node.name} has {node.used_slots} slots in use, and nothing runs")
