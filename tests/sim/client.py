"""Who asks the heads: a client that doesn't give up, and an operator who runs the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beo import messages as ms
from tests.sim.check import Acted, Seen, check_reigns, check_views
from tests.sim.clock import Violation

if TYPE_CHECKING:
    from tests.sim.head import HeadHost
    from tests.sim.world import Simulation

PATIENCE_S = 0.7  # without an answer the other head is asked
PAUSE_S = 0.1
READ_S = (0.2, 1.0)


class Client:
    """Submits under keys, and repeats until it is acknowledged; asks for its jobs, and who acts."""

    NAME = "client"

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.at = "A"
        self.acknowledged: dict[str, int] = {}  # key -> job
        self.wishes: dict[str, ms.Submit] = {}
        self.waits: list[float] = []  # from a submission to its acknowledgement
        self.views: list[Seen] = []
        self.acts: list[Acted] = []
        self.told: dict[int, int] = {}  # job -> when it was acknowledged, ns
        self._since: dict[str, float] = {}
        self._request = 0
        self._keys: dict[int, str] = {}
        self._asked: dict[int, tuple[str, Any, float]] = {}  # request -> key, message, when

    def submit(self, wish: ms.Submit) -> None:
        """Submit, again and again until it is acknowledged."""
        self.wishes[wish.key] = wish
        self._since[wish.key] = self.sim.clock.s
        self._try(wish.key)

    def _try(self, key: str) -> None:
        if key in self.acknowledged:
            return
        number = self._ask(key, self.wishes[key], self.at)

        def silent() -> None:
            if self._asked.pop(number, None):
                self._turn()
                self._try(key)

        self.sim.clock.after(PATIENCE_S, silent)

    def _turn(self) -> None:
        names = sorted(self.sim.heads)
        self.at = names[(names.index(self.at) + 1) % len(names)]

    def _ask(self, key: str, message: Any, at: str) -> int:
        self._request += 1
        number, head = self._request, self.sim.heads[at]
        self._asked[number] = key, message, self.sim.clock.s
        self._keys[number] = key
        self.sim.net.send(self.NAME, head.name, lambda: head.asked(b"client", "ann", message, number))
        return number

    def key_of(self, request: int) -> str:
        """The key that a request submits under."""
        return self._keys[request]

    def read(self) -> None:
        """Ask, now and then, who acts and how a job fares."""
        sim = self.sim
        if sim.over:
            return
        at = sim.random.choice(sorted(sim.heads))
        if self.acknowledged and sim.random.random() < 0.7:
            job = sim.random.choice(sorted(self.acknowledged.values()))
            self._ask("", ms.ListJobs((str(job),)), at)
        else:
            self._ask("", ms.Info(), at)
        sim.clock.after(sim.random.uniform(*READ_S), self.read)

    def hear(self, request: int, answer: Any) -> None:
        """An answer came."""
        asked = self._asked.pop(request, None)
        if not asked:
            return
        key, message, asked_s = asked
        if isinstance(answer, ms.Elsewhere) and not key:
            return
        if isinstance(answer, ms.Elsewhere):
            name = answer.head.partition(":")[0]
            if name in self.sim.heads and name != self.at:
                self.at = name
            else:
                self._turn()
            self.sim.clock.after(PAUSE_S, lambda: self._try(key))
        elif isinstance(answer, ms.SubmittedIs):
            self._acknowledge(key, answer.job)
        elif isinstance(message, ms.Submit):
            raise Violation(f"{key} is refused: {answer}")
        else:
            self._saw(message, answer, int(asked_s * 1e9), int(self.sim.clock.s * 1e9))

    def _acknowledge(self, key: str, job: int) -> None:
        if self.acknowledged.setdefault(key, job) != job and key not in self.sim.truth.excused:
            raise Violation(f"submission {key} is job {self.acknowledged[key]} and job {job}")
        if job not in self.told:
            self.told[job] = int(self.sim.clock.s * 1e9)
            waited_s = self.sim.clock.s - self._since[key]
            self.waits.append(waited_s)
            if waited_s > self.sim.prompt_s:
                raise Violation(f"{key} was acknowledged after {waited_s:.1f} s, and only one thing was wrong")
            self.sim.say(f"client: {key} is job {job}")

    def _saw(self, message: Any, answer: Any, asked_ns: int, now_ns: int) -> None:
        if isinstance(answer, ms.InfoIs):
            self.acts.append(Acted(answer.head, answer.epoch, asked_ns, now_ns))
        elif isinstance(answer, ms.JobsAre):
            self.views += [Seen(row.id, row.state, row.attempt, asked_ns, now_ns) for row in answer.jobs]
        elif isinstance(answer, ms.Failed) and isinstance(message, ms.ListJobs):
            self.views.append(Seen(int(message.select[0]), "", 0, asked_ns, now_ns))

    def faults(self) -> list[str]:
        """What of all that it was told can't be: two heads that act at a time, or a job that goes back."""
        truth = self.sim.truth
        views = [] if truth.lost_jobs else [view for view in self.views if view.job not in truth.requeued]
        return check_reigns(self.acts) + check_views(views, self.told)

    def cancel(self) -> None:
        """Cancel one of its jobs."""
        if self.acknowledged:
            job = self.sim.random.choice(sorted(self.acknowledged.values()))
            self._ask("", ms.Cancel((str(job),)), self.at)


class Operator:
    """Runs the cluster: holds jobs, drains nodes, steers the heads, mends what must be mended by hand."""

    NAME = "operator"

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self._idle_s = 0.0

    def say(self, message: Any, who: str = "root") -> None:
        """Say something to every head: the one that acts does it."""
        for head in self.sim.heads.values():
            self._say_to(head, message, who)

    def _say_to(self, head: HeadHost, message: Any, who: str = "root") -> None:
        self.sim.net.send("client", head.name, lambda: head.asked(b"operator", who, message, 1))

    def operate(self) -> None:
        """Do something, now and then."""
        sim = self.sim
        if sim.healed:
            return
        random = sim.random
        job = str(random.randint(1, max(1, len(sim.client.wishes))))
        acting = sim.truth.primary
        known = acting.replica.state.jobs.get(int(job)) if acting and acting.replica else None
        wishes: list[Any] = [
            ms.Hold((job,)),
            ms.Release((job,)),
            ms.Requeue(((int(job), known.attempt_number if known else 0),), random.random() < 0.3),
            ms.SetPriority((job,), random.randint(-5, 5)),
        ]
        if sim.machines:
            node = random.choice(sorted(sim.machines))
            wishes += [ms.Drain(node, "a new disk"), ms.Resume(node), ms.ForgetNodes(node)]
            known_nodes = acting.replica.state.nodes if acting and acting.replica else {}
            wishes += [ms.ForgetNodes(name) for name in sorted(known_nodes) if known_nodes[name].state == "lost"]
        wish = random.choice(wishes)
        self.say(wish, "ann" if isinstance(wish, ms.Hold) and random.random() < 0.5 else "root")
        sim.clock.after(random.uniform(0.1, 2.0), self.operate)

    def steer(self) -> None:
        """Wish, now and then, that another head acts, or that nobody takes over."""
        sim = self.sim
        if sim.healed:
            return
        head = sim.heads[sim.random.choice(sorted(sim.heads))]
        word = sim.random.choice(["switchover", "switchover", "takeover", "freeze", "thaw"])
        if head.replica:
            sim.say(f"operator: {word} at {head.name}")
            self._say_to(head, ms.Steer(word))
        sim.clock.after(sim.random.uniform(2.0, 8.0), self.steer)

    def mend(self) -> None:
        """What needs a person.

        A damaged disk is wiped when the other head acts, which is forced where one has nothing and nobody acts;
        manual heads are told to take over.
        """
        sim = self.sim
        acting = [head for head in sim.heads.values() if head.replica and sim.acts(head)]
        self._idle_s = 0.0 if acting else self._idle_s + 1.0
        for head in sim.heads.values():
            other = sim.heads.get(head.other)
            has_nothing = head.disk.damaged or head.disk.last.idx == 0
            if not has_nothing or not head.powered or not other:
                continue
            if other in acting and head.disk.damaged:
                head.wipe()
            elif self._idle_s > 6.0 and other.replica and other.disk.last.idx:
                self._say_to(other, ms.Steer("force"))
        if self._idle_s > 4.0 and (sim.healed or sim.takeover == "manual"):
            up = [head for head in sim.heads.values() if head.replica]
            if up:
                head = sim.random.choice(up)
                sim.say(f"operator: takeover at {head.name}")
                self._say_to(head, ms.Steer("takeover"))
        if sim.healed:
            self.let_all_go()
        if not sim.over:
            sim.clock.after(1.0, self.mend)

    def let_all_go(self) -> None:
        """What is held is released, what is drained takes work again, a freeze ends, so that everything can end."""
        acting = self.sim.truth.primary
        if acting and acting.replica:
            state = acting.replica.state
            held = tuple(str(job.id) for job in state.jobs.values() if job.state == "held")
            drained = ",".join(node.name for node in state.nodes.values() if node.drain)
            if held:
                self.say(ms.Release(held))
            if drained:
                self.say(ms.Resume(drained))
            if state.pair.frozen:
                self._say_to(acting, ms.Steer("thaw"))
