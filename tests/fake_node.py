"""One node whose agent is its real core and its real memory, among fakes: a head, wardens, peers, and a clock to move.

It carries the core's effects out as the agent does, one by one and in order, and can be killed between any two of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from beo import messages as ms
from beo.settings import WorkerConfig
from beo.spec import JobSpec
from beo.worker import acts, core
from beo.worker.memory import Memory

NS = core.NS
CONFIG = WorkerConfig(lease_s=3.0, heartbeat_s=0.5, peer_silence_s=4.0)
EPOCH = 3
BULK = "head:7421"
Key = tuple[int, int]
JOB: Key = (7, 1)


class Killed(Exception):
    """The agent was killed between two effects."""


@dataclass
class Life:
    """What a warden that acts by itself holds. met: it has told the present agent its state."""

    key: Key
    leash_ns: int
    ended: bool = False
    spool_bytes: int = 0
    met: bool = True
    read: int = 0


class Node:
    """One node: its agent's core and memory, and records of all that it says to head, wardens, peers and shipper."""

    def __init__(self, folder: Path, contain: str = "pidns", config: WorkerConfig = CONFIG) -> None:
        self.folder, self.contain, self.config, self.boot = folder, contain, config, "boot-1"
        self.boot_ns = 1_000 * NS
        self.index = 100  # of the head's journal
        self.names = (f"inc-{n}" for n in itertools.count(1))
        self.numbers = itertools.count(1)  # of wardens
        self.wardens: dict[int, list[dict[str, Any]]] = {}  # those that live -> what each was told
        self.launched: list[acts.Launch] = []
        self.kill_before: Callable[[acts.Effect], bool] = lambda _: False
        self.acts = 0  # effects carried out by all agents
        self.kill_at = -1  # the act before which the agent is killed, to be followed by another at once
        self.lives: dict[int, Life] = {}  # of wardens that act by themselves, see `wardens_turn`
        self.begin()

    # ---- the agent

    def begin(self) -> None:
        """Start an agent, the first one or the next."""
        self.to_head: list[ms.AgentReport] = []
        self.to_whom: list[tuple[str, ms.AgentReport]] = []  # the same, with the head that it is for
        self.followed: list[acts.Follow] = []
        self.to_peers: list[tuple[str, ms.AgentWord]] = []
        self.answers: list[ms.AgentWord] = []
        self.shipping: dict[Key, acts.Ship] = {}
        self.stdin: list[acts.StdinTaken] = []
        self.emptied: list[int] = []  # jobs of which nothing is kept any more
        self.memory = Memory(self.folder, self.boot, next(self.names))
        about = acts.Node("n1", self.boot, "10.0.0.1:7", "k1", 4, 1 << 30, {"contain": self.contain})
        self.worker = core.Worker(about, self.config, lambda: next(self.names))
        known = self.memory.identity
        wardens = tuple(sorted(self.wardens))
        self.take(acts.Begin(known.incarnation, known.epoch, self.memory.seen, self.memory.orders(), wardens))

    def restart(self) -> None:
        """Kill the agent and start another; the wardens live on, and tell it nothing yet."""
        self.memory.close()
        for life in self.lives.values():
            life.met = False
        self.begin()

    def reboot(self) -> None:
        """The machine starts anew: nothing lives."""
        self.memory.close()
        self.boot, self.wardens = self.boot + "'", {}
        self.begin()

    def take(self, item: acts.Input) -> list[acts.Effect]:
        """Give the core an input and carry its effects out."""
        effects = self.worker.handle(item, acts.Now(self.boot_ns))
        for effect in effects:
            if self.kill_before(effect):
                raise Killed
            self.acts += 1
            if self.acts - 1 == self.kill_at:
                self.restart()
                break
            self.carry_out(effect)
        return effects

    def carry_out(self, effect: acts.Effect) -> None:
        """Do what the agent would do."""
        match effect:
            case acts.ToHead():
                msgspec.msgpack.decode(ms.encode(effect.message))  # it can be sent
                self.to_head.append(effect.message)
                self.to_whom.append((effect.head, effect.message))
            case acts.Follow():
                self.followed.append(effect)
            case acts.ToPeer():
                self.to_peers.append((effect.peer.node, effect.message))
            case acts.Answer():
                self.answers.append(effect.message)
            case acts.ToWarden():
                if effect.warden in self.wardens:
                    self.wardens[effect.warden].append(json.loads(json.dumps(effect.message)))
            case acts.Launch():
                number = effect.warden or next(self.numbers)
                self.wardens.setdefault(number, [])
                self.lives[number] = Life((effect.order.job, effect.order.attempt), effect.leash_until_ns)
                self.worker.launched((effect.order.job, effect.order.attempt), number)
                self.launched.append(effect)
            case acts.Ship():
                self.shipping[effect.job, effect.attempt] = effect
            case acts.StdinTaken():
                self.stdin.append(effect)
            case acts.Empty():
                self.emptied += effect.jobs
            case acts.Remember():
                self.memory.remember(effect.order)
            case acts.Seen():
                self.memory.saw(0, effect.job, effect.attempt)
            case acts.Drop():
                self.memory.drop(effect.job, effect.attempt)
            case acts.Reborn():
                self.memory.reborn(effect.incarnation, self.worker.seen)
            case acts.Epoch():
                self.memory.obey(effect.epoch)

    # ---- time

    def wait(self, seconds: float, answered: bool = False) -> None:
        """Let time pass, with ticks; answered: a head answers every PING."""
        until_ns = self.boot_ns + int(seconds * NS)
        while self.boot_ns < until_ns:
            self.boot_ns = min(until_ns, self.boot_ns + NS // 4)
            self.tick()
            if answered and self.pings():
                self.pong()

    def sleep(self, seconds: float) -> None:
        """Let time pass while the agent is stopped."""
        self.boot_ns += int(seconds * NS)

    def tick(self) -> None:
        self.take(acts.Tick())

    # ---- the head

    @property
    def incarnation(self) -> str:
        return self.worker.incarnation

    def head(self, message: ms.HeadCommand, head: str = "") -> None:
        """A head's command; unless another is named, of the head that acts."""
        self.take(acts.FromHead(message, head or self.worker.primary))

    def welcome(self) -> Node:
        """The head takes the node in, and answers its first PING."""
        self.tick()
        self.head(ms.Welcome(EPOCH, self.incarnation, BULK))
        self.pong()
        return self

    def pong(self, settled: int = 0, sent_ns: int | None = None) -> None:
        sent_ns = self.boot_ns if sent_ns is None else sent_ns
        self.head(ms.Pong(EPOCH, self.incarnation, sent_ns, self.config.lease_s, settled))

    def order(
        self, key: Key = JOB, requeue: str = "confirm", nodes: tuple[str, ...] = ("n1",), **other: Any
    ) -> ms.Start:
        """A START for this node, as the head would send it."""
        self.index += 1
        parts = tuple(ms.Peer(name, "inc", f"{name}:7", "k", rank, 1) for rank, name in enumerate(nodes))
        spec = JobSpec(argv=("true",), cwd="/", ranks=len(nodes), requeue=requeue)  # type: ignore[arg-type]
        fields: dict[str, Any] = {"epoch": EPOCH, "incarnation": self.incarnation, "index": self.index, **other}
        return ms.Start(
            fields["epoch"], fields["incarnation"], fields["index"], *key, "c", "nonce", "ada", 0, 0, (), spec, parts
        )

    def start(self, key: Key = JOB, requeue: str = "confirm", nodes: tuple[str, ...] = ("n1",)) -> int:
        """START a part; the number of its warden."""
        self.head(self.order(key, requeue, nodes))
        return self.worker.held[key].warden

    def kill(self, key: Key = JOB) -> None:
        self.head(ms.Kill(EPOCH, self.incarnation, *key, "cancelled by ada", 5.0))

    def commit(self, key: Key = JOB) -> None:
        self.head(ms.Committed(EPOCH, *key))

    def dead(self, incarnation: str = "") -> None:
        self.head(ms.Dead(EPOCH, incarnation or self.incarnation))

    def said(self, *kinds: type) -> list[Any]:
        """What the head was told since the last time it was asked for this."""
        found = [message for message in self.to_head if isinstance(message, kinds)]
        self.to_head = [message for message in self.to_head if not isinstance(message, kinds)]
        return found

    def pings(self) -> list[ms.Ping]:
        return self.said(ms.Ping)

    def last_ping(self) -> ms.Ping:
        self.pings()
        self.wait(0.5)
        return self.pings()[-1]

    # ---- wardens

    def hear(self, warden: int, op: str, **words: Any) -> None:
        self.take(acts.FromWarden(warden, {"op": op, **words}))

    def part_says(self, op: str, key: Key = JOB, **words: Any) -> None:
        self.hear(self.worker.held[key].warden, op, job=key[0], attempt=key[1], **words)

    def ends(self, key: Key = JOB, spool_length: int = 0, **how: Any) -> None:
        """The part's ranks end, and its warden tells how."""
        self.part_says("ended", key, result=result(**how), spool_length=spool_length)

    def shipped(self, key: Key = JOB) -> None:
        self.take(acts.Shipped(*key))

    def tells_state(self, warden: int, key: Key | None = JOB, ended: bool = False, spool_length: int = 0) -> None:
        """A warden meets a new agent."""
        if key is None:
            self.hear(warden, "state", phase="idle")
            return
        state = {"phase": "ended" if ended else "running", "result": result() if ended else None}
        self.hear(warden, "state", job=key[0], attempt=key[1], spool_length=spool_length, **state)

    def dies(self, warden: int, spool_bytes: int = 0) -> None:
        """A warden is killed, and with it all that it holds."""
        del self.wardens[warden]
        self.take(acts.WardenClosed(warden, spool_bytes))

    def told(self, warden: int, op: str) -> list[dict[str, Any]]:
        """What a warden was told, of one kind."""
        return [message for message in self.wardens[warden] if message["op"] == op]

    # ---- wardens that act by themselves

    def alive(self) -> dict[int, Key]:
        """The parts that live, by warden."""
        return {number: life.key for number, life in self.lives.items() if not life.ended}

    def wardens_turn(self, ends: Key | None = None) -> None:
        """Every warden does what it was told; the part `ends` ends by itself; the head takes all output."""
        for number, life in list(self.lives.items()):
            if not life.met:
                life.met = True
                self.tells_state(number, life.key, life.ended, life.spool_bytes)
            unread, life.read = self.wardens[number][life.read :], len(self.wardens[number])
            for message in unread:
                if message["op"] == "leash":
                    life.leash_ns = message["until_ns"]
            words = {message["op"] for message in unread}
            leash_is_out = not life.ended and 0 < life.leash_ns <= self.boot_ns
            if "exit" in words or leash_is_out or ("committed" in words and life.ended):
                del self.lives[number]
                self.dies(number, life.spool_bytes)
            elif life.key == ends and not life.ended:
                life.ended, life.spool_bytes = True, 10
                self.hear(number, "ended", job=ends[0], attempt=ends[1], result=result(), spool_length=10)
        for key, ship in list(self.shipping.items()):
            if ship.final:
                self.shipping.pop(key, None)
                self.shipped(key)

    # ---- peers

    def peer(self, message: ms.AgentWord, channel: bytes = b"", key: str = "k") -> None:
        self.take(acts.FromPeer(channel, message, key))

    def to_peer(self, *kinds: type) -> list[tuple[str, Any]]:
        found = [(node, message) for node, message in self.to_peers if isinstance(message, kinds)]
        self.to_peers = []
        return found


def result(status: int | None = 0, **why: Any) -> dict[str, Any]:
    """How a part of one rank ended, in a warden's words."""
    rank = {"rank": 0, "status": status, "user_s": 0.1, "system_s": 0.0, "peak_bytes": 4096}
    return {"ranks": [rank], "reason": None, "culprit": None, "status": None, **why}
