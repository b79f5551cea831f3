"""A whole small cluster without a machine: the head's core, a clock, a journal and nodes that do as a test says.

world = World()
node = world.node("n1", slots=4)
job = world.submit(ranks=2)
node.end(job)
assert world.job(job).state == "done"
"""

from __future__ import annotations

from typing import Any

import msgspec

from beo import events as ev
from beo import messages as ms
from beo.account import Account
from beo.headnode import acts, core
from beo.headnode.model import Job
from beo.headnode.state import State
from beo.settings import Config, UsersConfig
from beo.spec import JobSpec

KEYS = {
    "ann": ("ann", "user"),
    "bob": ("bob", "user"),
    "root": ("root", "admin"),
    "worker": ("worker", "worker"),
    "head": ("head", "head"),
}
"""Who holds which key; the keys are named as their holders."""

DAY_S = 86_400.0
ACCOUNT = Account(1000, "ann", (1000, 50))
"""Whom the head's machine takes everybody's uid for."""

START_S = 1_800_000_000.0
"""The wall clock when a world begins."""


def spec(**words: Any) -> JobSpec:
    """A job's spec: `true` in /, but for what is said."""
    return JobSpec(**{"argv": ("true",), "cwd": "/", **words})


def birth() -> tuple[ev.Event, ...]:
    """The first entries of a cluster: everybody of KEYS may connect."""
    keys = [ev.KeyAuthorized(key, user, role, START_S, 1000) for key, (user, role) in KEYS.items()]
    return (ev.Born("c" * 32, "A", START_S), *keys)


def ranks_ended(first: int, ranks: int, status: int = 0) -> tuple[ev.RankResult, ...]:
    """Results of ranks that ended by themselves, the last of them with this status."""
    last = first + ranks - 1
    return tuple(ev.RankResult(n, status if n == last else 0, 0.1, 0.0, 1024) for n in range(first, first + ranks))


def same(state: State, other: State) -> bool:
    """Whether two states are equal, derived parts included."""

    def derived(some: State) -> tuple[Any, ...]:
        live = {
            node: {key: (found[0].id, found[1].number, found[2]) for key, found in parts.items()}
            for node, parts in sorted(some.live.items())
        }
        order = [list(some.queue), list(some.jobs), list(some.keys), list(some.tokens), list(some.revoked)]
        counts = len(some.queue), some.running, some.held, some.holdings, some.priorities, some.making_room
        return live, some.node_keys, order, counts, some.admins

    return state.encode() == other.encode() and derived(state) == derived(other)


class Disk:
    """A journal: appended entries are durable at once, or, while `slow`, only when `flush` says so."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.durable = 0
        self.slow = False

    def append(self, index: int, event: ev.Event) -> None:
        """Append one entry."""
        self.entries.append(ev.encode(event))
        assert index == len(self.entries), "an entry got another index than its place in the journal"

    def lose_tail(self) -> None:
        """What a crash does: only what is durable stays."""
        del self.entries[self.durable :]

    def replay(self, upto: int | None = None) -> State:
        """The state after all entries, or after some."""
        state = State()
        for entry in self.entries[:upto]:
            state.apply(ev.decode(entry))
        state.changed.clear()
        return state


class Node:
    """A worker played by the test. It joins and pings when told, and starts what it is asked to (`running`)."""

    def __init__(self, world: World, name: str, slots: int, mem_bytes: int, contain: str) -> None:
        self._world = world
        self.name = name
        self.slots = slots
        self.mem_bytes = mem_bytes
        self.contain = contain
        self.criu = ""  # whether it can move programs; it hasn't told
        self.incarnation = f"{name}-1"
        self.boot = "boot-1"
        self.address = f"{name}:1"
        self.running: set[tuple[int, int]] = set()
        self.ended: set[tuple[int, int]] = set()
        self.heard: list[Any] = []
        self.obeys = True  # starts what it is asked to start

    @property
    def peer(self) -> bytes:
        """What the head answers to."""
        return self.name.encode()

    def tell(self, message: ms.AgentReport) -> None:
        """Say something to the head."""
        self._world.handle(acts.Asked(self.peer, 0, "worker", message))
        self._world.turn()

    def join(self) -> None:
        """Introduce this incarnation, with what is running."""
        running = tuple(sorted(self.running))
        facts = {"contain": self.contain} | ({ms.CRIU: self.criu} if self.criu else {})
        where = (self.boot, self.address, "key-" + self.name, self.slots, self.mem_bytes, facts, running)
        self.tell(ms.Join(self.name, self.incarnation, *where))

    def ping(self) -> None:
        """Say what runs and what has ended."""
        running, ended = tuple(sorted(self.running)), tuple(sorted(self.ended))
        self.tell(ms.Ping(self.name, self.incarnation, int(self._world.boot_s * 1e9), running, ended))

    def come(self) -> Node:
        """Join and ping: ready for work."""
        self.join()
        self.ping()
        return self

    def reborn(self, *, boot: bool = False) -> Node:
        """Take a new incarnation; after a boot nothing runs any more."""
        name, _, number = self.incarnation.rpartition("-")
        self.incarnation = f"{name}-{int(number) + 1}"
        if boot:
            self.boot += "'"
            self.running.clear()
            self.ended.clear()
        return self

    def hear(self, message: Any) -> None:
        """Take a message of the head."""
        self.heard.append(message)
        if isinstance(message, ms.Start) and self.obeys and message.incarnation == self.incarnation:
            self.running.add((message.job, message.attempt))

    def commands(self, kind: type) -> list[Any]:
        """The messages of one kind that came, oldest first."""
        return [message for message in self.heard if isinstance(message, kind)]

    def end(self, job: int, status: int = 0, reason: str = "", culprit: int = -1, note: str = "") -> None:
        """Let this node's part of a job end, and tell the head."""
        attempt = self._world.job(job).attempt
        assert attempt is not None
        part = next(p for p in attempt.parts if p.node == self.name)
        ranks = part.ranks
        if self._world.job(job).spec.batch:  # its script runs on the first node
            ranks = 1 if part is attempt.parts[0] else 0
        result = ev.PartResult(ranks_ended(part.first_rank, ranks, status), reason, culprit, note)
        self.running.discard((job, attempt.number))
        self.tell(ms.Ended(self.name, self.incarnation, job, attempt.number, result))

    def keep(self, *jobs: int, newest_s: float = 0.0) -> None:
        """Tell that the vault keeps something of these jobs, and when its newest checkpoint was taken."""
        self.tell(ms.VaultsAre(self.name, self.incarnation, tuple(ms.Kept(job, 1 << 20, newest_s) for job in jobs)))

    def gone(self, job: int, attempt: int = 1, reason: str = "its warden was killed") -> None:
        """Attest that a part is not alive."""
        self.running.discard((job, attempt))
        self.tell(ms.Gone(self.name, self.incarnation, job, attempt, reason))


class World:
    """The head's core with everything around it. Each act is followed by what a turn of the real loop does."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or settings()
        self.boot_s = 1_000.0
        self.wall_s = START_S
        self.disk = Disk()
        self.nodes: dict[str, Node] = {}
        self.sent: list[acts.Send] = []
        self.forgotten: list[int] = []
        self.requests = 0
        self._nonces = 0
        self._begin(State(), birth())

    def _begin(self, state: State, first: tuple[ev.Event, ...] = ()) -> None:
        self.head = core.Head(state, self.config, self._nonce, "bulk:1", "test")
        self.handle(acts.Begin(first))
        self.turn()

    def _nonce(self) -> str:
        self._nonces += 1
        return f"nonce-{self._nonces}"

    @property
    def now(self) -> acts.Now:
        """The clocks."""
        return acts.Now(self.boot_s, self.wall_s)

    @property
    def state(self) -> State:
        """The head's tip."""
        return self.head.state

    def job(self, number: int) -> Job:
        """A job as the head has it."""
        return self.state.jobs[number]

    # ---- the loop

    def handle(self, item: acts.Begin | acts.Asked | acts.Durable | acts.Tick | acts.Turn) -> None:
        """Hand one input to the core, and carry its effects out."""
        self._perform(self.head.handle(item, self.now))

    def turn(self) -> None:
        """What follows on the messages of one turn: placing, and the disk's word."""
        self.handle(acts.Turn())
        if not self.disk.slow:
            self.flush()

    def flush(self) -> None:
        """Everything appended is durable now."""
        self.disk.durable = len(self.disk.entries)
        self.handle(acts.Durable(self.disk.durable))

    def _perform(self, effects: list[acts.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, acts.Append):
                self.disk.append(effect.index, effect.event)
            elif isinstance(effect, acts.Send):
                node = self.nodes.get(effect.peer.decode())
                if node:
                    node.hear(effect.message)
                else:
                    self.sent.append(effect)
            elif isinstance(effect, acts.Forget):
                self.forgotten += effect.jobs

    def restart(self) -> None:
        """Kill the head and start it again from what is durable."""
        self.disk.lose_tail()
        self._begin(self.disk.replay())

    def tick(self) -> None:
        """Let the head look at its clock."""
        self.handle(acts.Tick())
        self.turn()

    def wait(self, seconds: float, *alive: Node) -> None:
        """Let time pass; the nodes named ping twice a second meanwhile."""
        end_s = self.boot_s + seconds
        while self.boot_s < end_s:
            step_s = min(0.5, end_s - self.boot_s) if alive else end_s - self.boot_s
            self.boot_s += step_s
            self.wall_s += step_s
            for node in alive:
                node.ping()
            self.tick()

    # ---- who is there

    def node(self, name: str, slots: int = 4, mem_bytes: int = 1 << 34, contain: str = "pidns") -> Node:
        """A node that has joined and is ready for work."""
        self.nodes[name] = Node(self, name, slots, mem_bytes, contain)
        node = self.nodes[name].come()
        self.tick()
        return node

    def ask(self, message: ms.ClientRequest, who: str = "ann", client: bytes = b"client") -> int:
        """Ask the head something; returns the request's id."""
        self.requests += 1
        self.handle(acts.Asked(client, self.requests, who, message, ACCOUNT))
        self.turn()
        return self.requests

    def answers(self, request: int) -> list[Any]:
        """The answers to a request so far."""
        return [sent.message for sent in self.sent if sent.request == request]

    def answer(self, message: ms.ClientRequest, who: str = "ann") -> Any:
        """Ask, and return the one answer, which must be there."""
        (answer,) = self.answers(self.ask(message, who))
        return answer

    def submit(self, who: str = "ann", key: str = "", **words: Any) -> int:
        """Submit a job; returns its id."""
        wish = ms.Submit(key or f"key {self.requests}", spec(**words), 1000, 1000, (1000,))
        answer = self.answer(wish, who)
        assert isinstance(answer, ms.SubmittedIs), answer
        return answer.job

    def row(self, job: int) -> ms.JobView:
        """A job's row of `beo queue`."""
        jobs: ms.JobsAre = self.answer(ms.ListJobs((str(job),)))
        return jobs.jobs[0]

    def why(self, job: int) -> tuple[str, ...]:
        """What `beo show` says about where a job is."""
        details: ms.DetailsAre = self.answer(ms.ShowJob((str(job),)))
        return details.jobs[0].why

    def replays(self) -> bool:
        """Whether a replay of the journal, and a snapshot of it, give the state that the head has."""
        replayed = self.disk.replay()
        decoded = State.decode(self.state.encode())
        return same(self.state, replayed) and same(self.state, decoded)


def settings(**words: Any) -> Config:
    """The default settings, but for [head], [worker] and [users] words said here (`lease_s=3.0`), and for priorities.

    Here every user may raise a job's as he likes.
    """
    config = Config(users=UsersConfig(priority_max=1_000))
    head = {k: v for k, v in words.items() if k in config.head.__struct_fields__}
    worker = {k: v for k, v in words.items() if k in config.worker.__struct_fields__}
    users = {k: v for k, v in words.items() if k not in head and k in config.users.__struct_fields__}
    assert len(head) + len(worker) + len(users) == len(words), f"no such setting among {sorted(words)}"
    return Config(
        msgspec.structs.replace(config.head, **head),
        msgspec.structs.replace(config.worker, **worker),
        msgspec.structs.replace(config.users, **users),
    )
