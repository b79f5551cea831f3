"""Two heads, workers, a client and an operator in a world of virtual time, a bad network and machines that die.

Real are the cores: `headnode.replica.Replica` with all that is in it, `worker.core.Worker`, `ha.register.Acceptor`.
Fake are disks, wires, shells and wardens. A seed says everything that happens: `Simulation(seed).run()`.
"""

from __future__ import annotations

from random import Random
from typing import Any

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.ha import acts as pacts
from beo.headnode import acts as headacts
from beo.headnode.model import ENDED, Job
from beo.headnode.state import State
from beo.votes import Cfg, PairSettings
from tests.sim import trouble
from tests.sim.client import Client, Operator
from tests.sim.clock import DRIFT, Clock, Violation
from tests.sim.head import HeadHost
from tests.sim.jobs import Jobs
from tests.sim.net import Net
from tests.sim.truth import Truth
from tests.sim.voter import Witness
from tests.sim.worker import CONFIG, Machine
from tests.world import START_S, birth, same, spec

TROUBLE_S = 30.0  # then everything heals
SUBMISSIONS = 12  # besides those in the moment of a trouble
PATIENCE_S = 150.0  # for everything to end after that


class Simulation:
    """One run. What isn't said is chosen by the seed."""

    def __init__(self, seed: int, verbose: bool = False, **words: Any) -> None:
        self.seed = seed
        self.verbose = verbose
        self.config = CONFIG
        self.random = random = Random(seed)
        self.clock = Clock()
        self.healed = self.over = False
        self._nonces = 0

        def choose(name: str, *choices: Any) -> Any:
            chosen = random.choice(choices)
            return words.pop(name, chosen)

        heads = choose("heads", 2, 2, 2, 2, 2, 1)
        self.head_names = ("A", "B")[:heads]
        workers = choose("workers", 0, 1, 2, 3, 3, 3, 4, 5)
        has_witness = choose("witness", False, False, True)
        self.level: str = choose("level", "C", "C", "C", "C", "B", "A")
        self.takeover: str = choose("takeover", "automatic", "automatic", "automatic", "manual")
        self.failback: bool = choose("failback", False, False, True)
        steered = choose("steered", False, True)
        loss = choose("loss", 0.0, 0.0, 0.02, 0.2)
        slow = choose("slow", 0.0, 0.0, 0.1, 0.4)
        every_s = choose("every_s", (0.3, 2.5), (1.0, 6.0), (4.0, 9.0))
        kinds = words.pop("kinds", trouble.KINDS)
        self.prompt_s: float = words.pop("prompt_s", PATIENCE_S)
        self._stream_s: float = words.pop("stream_s", 0.0)
        self._changes_max: int = words.pop("changes_max", 1_000_000)
        self.trouble_s: float = words.pop("trouble_s", TROUBLE_S)
        self.lease_s, silence_s = choose("times_s", (0.6, 0.4), (0.6, 0.4), (0.6, 0.6), (1.5, 0.5))
        assert not words, f"no such choice: {sorted(words)}"
        self.settings = PairSettings(
            level=self.level,
            takeover=self.takeover,
            failback=self.failback,
            lease_s=self.lease_s,
            silence_s=silence_s,
        )

        names = [f"n{n + 1}" for n in range(workers)]
        self.racks = {name: ("r1", "r2")[place % 2] for place, name in enumerate((*self.head_names, *names))}
        self.places = [*self.head_names, *names, Client.NAME, *([Witness.NAME] if has_witness else [])]
        self.net = Net(self.clock, random, loss, slow)
        self.truth = Truth(self)
        self.jobs = Jobs(self)
        self.client = Client(self)
        self.operator = Operator(self)
        self.trouble = trouble.Trouble(self, every_s, kinds)
        self.heads: dict[str, HeadHost] = {}
        self.machines: dict[str, Machine] = {}
        self.witness: Witness | None = None
        born = pacts.Kept(0, Cfg(0, 0, ("A",)), True)
        for name in self.head_names:
            self.heads[name] = HeadHost(self, name, born if name == "A" else pacts.Kept())
        for head in self.heads.values():
            head.start()
        for name in names:
            self.machines[name] = Machine(self, name)
        if has_witness:
            self.witness = Witness(self)
        self._begin(steered, workers)
        self.say(f"{self.settings}, {workers} workers, witness {has_witness}, loss {loss}, slow {slow}, {every_s}")

    def _begin(self, steered: bool, workers: int) -> None:
        random, after = self.random, self.clock.after
        for _ in range(SUBMISSIONS):
            after(random.uniform(0.0, self.trouble_s), self.submit)
        for _ in range(3):
            after(random.uniform(0.0, self.trouble_s), self.client.cancel)
        after(random.uniform(0.5, 4.0), self.trouble.begin)
        after(random.uniform(0.0, 1.0), self.client.read)
        after(1.0, self.operator.mend)
        if workers:
            after(random.uniform(0.0, 3.0), self.operator.operate)
        if self._stream_s:
            after(1.0, self._stream)
        if steered and len(self.heads) > 1:
            after(random.uniform(2.0, 8.0), self.operator.steer)

    # ---- what everybody needs

    def say(self, text: str) -> None:
        """Tell a reader what happens."""
        if self.verbose:
            print(f"{self.clock.s - 100:8.4f} {text}")

    def nonce(self) -> str:
        """A fresh name."""
        self._nonces += 1
        return f"nonce-{self._nonces}"

    def rate(self) -> float:
        """How fast a machine's clock runs."""
        return 1 + self.random.uniform(-DRIFT, DRIFT)

    def voter_name(self, machine: Machine) -> str:
        """The name of a voter: new with each life of its memory."""
        return f"{machine.name}/{machine.agents}"

    def birth(self) -> tuple[ev.Event, ...]:
        """The first entries of the cluster."""
        return (
            *birth(),
            ev.KeyAuthorized("witness", Witness.NAME, "witness", START_S, node="witness:w1"),
            ev.PairSet(self.settings, "root", START_S),
        )

    def overhear(self, message: Any) -> None:
        """A head is told this: for who listens in."""

    def acts(self, head: HeadHost) -> bool:
        """Whether a head may act now, by its own clock."""
        return bool(head.replica and head.time.s < head.replica.pair.acts_until_s)

    def deliver(self, head: HeadHost, effect: headacts.Send) -> None:
        """A head sends on its control plane."""
        name, _, life = effect.peer.decode().partition(" ")
        message: Any = effect.message
        if name == "operator":
            return
        if name == Client.NAME:
            if isinstance(message, ms.SubmittedIs):
                self.truth.releases(head, self.client.key_of(effect.request), message.job)
            self.truth.answers(head, message)
            heard = ms.to_client.decode(ms.encode(message))
            self.net.send(head.name, name, lambda: self.client.hear(effect.request, heard))
        elif name == Witness.NAME:
            assert self.witness
            witness = self.witness
            self.net.send(head.name, name, lambda: witness.hear(head, message) if witness.lives == int(life) else None)
        else:
            self.truth.shows(head, message)
            machine = self.machines[name]
            message = ms.to_agent.decode(ms.encode(message))

            def arrive() -> None:
                if machine.agents != int(life) or not machine.core or isinstance(message, ms.Elsewhere):
                    return
                if isinstance(message, votes.Prepare | votes.Accept | votes.Lease):
                    machine.vote(head, message)
                else:
                    machine.hear(head, message)

            self.net.send(head.name, name, arrive)

    def submit(self) -> None:
        """The client submits something."""
        random = self.random
        ranks = min(random.choice([1, 1, 1, 2, 3, 4]), 2 * len(self.machines) or 1)
        words = {
            "ranks": ranks,
            "nodes": random.choice([0, 0, min(2, ranks, len(self.machines))]),
            "requeue": random.choice(["auto", "auto", "confirm", "confirm", "never"]),
            "batch": random.random() < 0.2,
            "priority": random.choice([0, 0, 5]),
        }
        self.client.submit(ms.Submit(f"k{len(self.client.wishes) + 1}", spec(**words), 1000, 1000, ()))

    def _stream(self) -> None:
        if not self.healed:
            self.submit()
            self.clock.after(self._stream_s, self._stream)

    # ---- a run

    def run(self) -> Simulation:
        """Trouble, then healing, then everything must end. Raises Violation."""
        clock = self.clock
        end_s = clock.s + self.trouble_s
        while clock.s < end_s:
            clock.step()
        if self._stream_s and not any(head.replica and head.replica.pair.in_step for head in self.heads.values()):
            raise Violation("a steady stream of submissions kept the heads out of step")
        self.heal()
        end_s = clock.s + PATIENCE_S
        step = 0
        while True:
            clock.step()
            step += 1
            if step % 64 == 0 and not self._unsettled():
                break
            if clock.s > end_s:
                raise Violation(f"I7: not well {PATIENCE_S:.0f} s after healing: {self._unsettled()}")
        self.over = True
        self._check()
        return self

    def heal(self) -> None:
        """Everything works again."""
        self.say("everything heals")
        self.healed = True
        self.net.heal()
        for head in self.heads.values():
            head.disk.fails = ""
            head.disk.stall_until_s = 0.0

    def _unsettled(self) -> str:
        """What is not yet as it must be in the end, "" if all is."""
        missing = self.client.wishes.keys() - self.client.acknowledged.keys()
        if missing:
            return f"not acknowledged: {sorted(missing)}"
        acting = [head for head in self.heads.values() if self.acts(head)]
        if len(acting) != 1:
            return f"{len(acting)} heads act: {[self._role(head) for head in self.heads.values()]}"
        (primary,) = acting
        assert primary.replica
        if self.machines and (unfinished := self._unfinished(primary.replica.state)):
            return f"jobs that don't end: {unfinished}"
        last = primary.disk.last
        for head in self.heads.values():
            if not head.replica:
                return f"{head.name} doesn't run"
            pair = head.replica.pair
            if head.disk.last != last or head.disk.durable != last.idx or pair.commit != last.idx:
                return f"{head.name} has {head.disk.durable} of {last.idx} entries, {pair.commit} committed"
        if len(self.heads) > 1 and not self.seed % 4 and not primary.replica.pair.in_step:
            return f"not in step: {[self._role(head) for head in self.heads.values()]}"
        return ""

    def _role(self, head: HeadHost) -> str:
        if not head.replica:
            return f"{head.name} is down"
        pair = head.replica.pair
        return f"{head.name} {pair.role} epoch {pair.epoch} {pair.acceptor.acc} chosen {pair.chosen}: {pair.why}"

    def _unfinished(self, state: State) -> list[Job]:
        lost = self.truth.lost_jobs
        return [job for job in state.jobs.values() if job.state not in ENDED and job.id not in lost]

    def _check(self) -> None:
        truth = self.truth
        if faults := self.client.faults():
            raise Violation("; ".join(faults))
        if truth.changes > self._changes_max:
            raise Violation(f"the heads fell out of step and got in step again {truth.changes} times")
        states = [head.replica.state for head in self.heads.values() if head.replica]
        state = states[0]
        for key, number in self.client.acknowledged.items():
            job = state.jobs.get(number)
            if key in truth.excused or number in truth.lost_jobs:
                continue
            if not job or job.key != key:
                raise Violation(f"submission {key} was acknowledged as job {number}, and that is {job}")
            for part in job.attempt.parts if job.attempt and job.state == "done" else ():
                if part.result and (part.node, number, job.attempt_number) not in self.jobs.started:
                    raise Violation(f"job {number} is done, and never ran on {part.node}")
        if not truth.lost_jobs and len(state.jobs) != len(self.client.wishes):
            raise Violation(f"{len(self.client.wishes)} submissions became {len(state.jobs)} jobs")
        for other in (*states[1:], *(head.disk.replay() for head in self.heads.values())):
            if not same(state, other):
                raise Violation("I7: two heads, or one and its replay, have different states")
        if not same(state, State.decode(state.encode())):
            raise Violation("a snapshot gives another state")
        for node in state.nodes.values() if self.machines else ():
            if not truth.lost_jobs and (node.used_slots or node.used_bytes):
                raise Violation(f"{node.name} has {node.used_slots} slots in use, and nothing runs")
