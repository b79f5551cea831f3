"""Many nodes that want the same chunks, in virtual time: who serves whom is decided by the real code of both sides.

Each machine has a link of so many bytes a second, each way, and everything that goes over one has an equal part of it:
a transfer gets the smaller one of two parts, and what that leaves unused is lost, which is less than a real network
does. Messages take a millisecond. Of one seed there is one course of events.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from beo.bulk import choice
from beo.bulk.choice import Choice, Pick, Picked
from beo.bulk.wants import Wants
from beo.bulk.words import DEAD, HEAD, SLOW, Bad, Who, name_of

MESSAGE_S = 0.001
NOTICE_S = 5.0  # fetching.REPLY_S: until a node that has lost its power is taken for dead
REPORT_S = 3.0
LANES = 6  # node.LANES


@dataclass
class Flow:
    """A chunk on its way. server: HEAD or a node's id; free: read by the session, which no slot is counted for."""

    name: bytes
    server: str
    asker: str
    left_bytes: float
    at_s: float
    rate: float = 0.0
    version: int = 0
    free: bool = False


@dataclass
class Node:
    """What beo.bulk.node is, without threads."""

    wants: Wants
    held: dict[bytes, bool] = field(default_factory=dict)
    gained: list[bytes] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    all: bool = True
    is_asking: bool = False
    ask_s: float = 0.0
    busy: int = 0
    done_s: float = 0.0
    life: int = 0


class World:
    """One head's machine, and so many nodes, which all want the same chunks from the beginning on."""

    def __init__(
        self, nodes: int, chunks: int, size_bytes: int, rate: float, seed: int = 0, peers: bool = True
    ) -> None:
        self.rng = random.Random(seed)
        self.size_bytes, self.rate, self.peers = size_bytes, rate, peers
        self.names = [name_of(1, f"{number:064x}") for number in range(chunks)]
        self.now_s = 0.0
        self.nodes: dict[str, Node] = {}
        for number in range(nodes):
            wants = Wants(random.Random(seed * 100_003 + number).shuffle)
            wants.add(0, self.names)
            self.nodes[f"n{number}"] = Node(wants)
        self.lost: dict[str, bool] = {}  # node -> whether it says that it is gone
        self.choice: Choice | None = Choice(self.rng.randrange, peers)
        self.flows: dict[tuple[str, bytes], Flow] = {}
        self._from: dict[str, dict[tuple[str, bytes], Flow]] = {HEAD: {}, **{one: {} for one in self.nodes}}
        self._to: dict[str, dict[tuple[str, bytes], Flow]] = {one: {} for one in self.nodes}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.head_bytes = self.peer_bytes = 0
        self.questions = 0
        self.uploads_max = self.head_flows_max = 0
        self.course: list[tuple[float, int]] = []  # (when, how many chunks had come to nodes in all)
        self._came = 0
        self._unfinished = nodes
        for one in self.nodes:
            self.at(self.rng.random() * 0.1, lambda one=one: self._ask(one))  # type: ignore[misc]

    # ---- time

    def at(self, when_s: float, what: Callable[[], None]) -> None:
        """Let something happen."""
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, what))

    def run(self, until_s: float) -> None:
        """Go on until every node has everything, or until then."""
        while self._events and self._unfinished:
            when_s, _, what = heapq.heappop(self._events)
            if when_s > until_s:
                return
            self.now_s = when_s
            what()

    # ---- trouble

    def lose(self, nodes: Sequence[str], with_word: bool) -> None:
        """These nodes are gone; with_word: connections to them end, else they just fall silent."""
        for one in nodes:
            self._unfinished -= one not in self.lost and bool(len(self.nodes[one].wants))
            self.lost[one] = with_word
            for flow in list(self._to[one].values()):
                self._end(flow)
            for flow in list(self._from[one].values()):
                if with_word:
                    self._failed(flow, DEAD)
                else:
                    self._stall(flow)

    def kill_head(self, gap_s: float) -> None:
        """The head dies, and another one, which knows nothing of who has what, acts after so long."""
        self.choice = None
        for flow in list(self._from[HEAD].values()):
            self._end(flow)
            if flow.free:
                self.at(self.now_s + gap_s, lambda flow=flow: self._read(flow.asker, flow.name))  # type: ignore[misc]
            else:
                self._failed_at_head(flow, gap_s)
        self.at(self.now_s + gap_s, self._rise)

    def _rise(self) -> None:
        self.choice = Choice(self.rng.randrange, self.peers)

    # ---- the nodes

    def _ask(self, one: str) -> None:
        node = self.nodes[one]
        if one in self.lost or node.is_asking:
            return
        lanes = LANES - node.busy if self.now_s >= node.ask_s else 0
        everything, node.all = node.all, False
        if everything:
            node.gained = list(node.held)
        who = Who(
            one, one, everything, tuple(node.gained), (), tuple(node.bad), node.wants.window() if lanes else (), lanes
        )
        node.gained, node.bad = [], []
        node.is_asking = True
        self.at(self.now_s + MESSAGE_S, lambda: self._hear(who))

    def _hear(self, who: Who) -> None:
        if self.choice is None:  # the session asks again
            self.at(self.now_s + 0.05, lambda: self._hear(who))
            return
        self.questions += 1
        picked = self.choice.handle(who, dict.fromkeys(who.wants, True), self.now_s)
        self.at(self.now_s + MESSAGE_S, lambda: self._told(who.id, picked))

    def _told(self, one: str, picked: Picked) -> None:
        if one in self.lost:
            return
        node = self.nodes[one]
        node.is_asking = False
        node.all = node.all or picked.again
        for pick in picked.picks:
            if node.wants.start(pick.name):
                self._start(one, pick)
            else:
                node.bad.append(Bad(pick.name, "", DEAD))
        node.ask_s = self.now_s + picked.wait_s
        self._go_on(one)

    def _go_on(self, one: str) -> None:
        """Ask again when node.py would."""
        node = self.nodes[one]
        if node.is_asking:
            return
        at_s = self.now_s + REPORT_S
        if (node.wants.waiting and node.busy < LANES) or node.gained or node.bad or node.all:
            at_s = min(at_s, max(self.now_s, node.ask_s))
        self.at(at_s, lambda: self._ask(one))

    # ---- the network

    def _start(self, one: str, pick: Pick) -> None:
        flow = Flow(pick.name, pick.server, one, float(self.size_bytes), self.now_s)
        self.nodes[one].busy += 1
        if pick.server in self.lost:
            self._add(flow)
            if self.lost[pick.server]:
                self._failed(flow, DEAD)
            else:
                self._stall(flow)
        elif pick.server == HEAD and self.choice is None:
            self._failed_at_head(flow, 0.1)
        else:
            self._add(flow)

    def _read(self, one: str, name: bytes) -> None:
        """By the session: where the head's own server was of no use."""
        if one in self.lost:
            return
        if self.choice is None:
            self.at(self.now_s + 0.05, lambda: self._read(one, name))
            return
        self._add(Flow(name, HEAD, one, float(self.size_bytes), self.now_s, free=True))

    def _add(self, flow: Flow) -> None:
        key = (flow.asker, flow.name)
        assert key not in self.flows, "one chunk twice"
        self.flows[key] = self._from[flow.server][key] = self._to[flow.asker][key] = flow
        counted = sum(not other.free for other in self._from[flow.server].values())
        if flow.server == HEAD:
            self.head_flows_max = max(self.head_flows_max, counted)
        else:
            self.uploads_max = max(self.uploads_max, counted)
        self._share(flow)

    def _end(self, flow: Flow) -> None:
        key = (flow.asker, flow.name)
        if self.flows.pop(key, None):
            del self._from[flow.server][key], self._to[flow.asker][key]
        flow.version = -1
        self._share(flow)

    def _share(self, changed: Flow) -> None:
        """Give everybody who shares a link with this one his part anew."""
        ups, downs = self._from[changed.server], self._to[changed.asker]
        for flow in {id(one): one for one in (*ups.values(), *downs.values())}.values():
            rate = self.rate / max(len(self._from[flow.server]), len(self._to[flow.asker]))
            if self.lost.get(flow.server) is False:
                rate = 0.0
            if rate == flow.rate:
                continue
            flow.left_bytes -= flow.rate * (self.now_s - flow.at_s)
            flow.at_s, flow.rate = self.now_s, rate
            flow.version += 1
            if rate:
                due_s = self.now_s + max(0.0, flow.left_bytes) / rate
                self.at(due_s, lambda flow=flow, version=flow.version: self._arrive(flow, version))  # type: ignore[misc]

    def _arrive(self, flow: Flow, version: int) -> None:
        if flow.version != version:
            return
        self._end(flow)
        node = self.nodes[flow.asker]
        node.busy -= 1
        node.wants.end(flow.name)
        node.held[flow.name] = True
        node.gained.append(flow.name)
        self._came += 1
        self.course.append((self.now_s, self._came))
        if flow.server == HEAD:
            self.head_bytes += self.size_bytes
        else:
            self.peer_bytes += self.size_bytes
        if not len(node.wants):
            node.done_s = self.now_s
            self._unfinished -= 1
        self._go_on(flow.asker)

    def _stall(self, flow: Flow) -> None:
        flow.version += 1
        flow.left_bytes -= flow.rate * (self.now_s - flow.at_s)
        flow.rate, flow.at_s = 0.0, self.now_s
        version = flow.version
        self.at(self.now_s + NOTICE_S, lambda: self._failed(flow, SLOW) if flow.version == version else None)

    def _failed(self, flow: Flow, why: str) -> None:
        self._end(flow)
        if flow.asker in self.lost:
            return
        node = self.nodes[flow.asker]
        node.busy -= 1
        node.bad.append(Bad(flow.name, flow.server, why))
        node.wants.again(flow.name)
        self._go_on(flow.asker)

    def _failed_at_head(self, flow: Flow, gap_s: float) -> None:
        self.nodes[flow.asker].bad.append(Bad(flow.name, HEAD, DEAD))
        self.at(self.now_s + gap_s, lambda: self._read(flow.asker, flow.name))
        self._go_on(flow.asker)

    # ---- what came of it

    def check(self) -> None:
        """Assert that everyone who is still there has everything, and that nobody served more than he should."""
        for one, node in self.nodes.items():
            assert one in self.lost or len(node.held) == len(self.names), (one, len(node.held))
        assert self.uploads_max <= choice.FANOUT, self.uploads_max
        assert self.head_flows_max <= choice.HEAD_SLOTS_MAX, self.head_flows_max

    def done_s(self, part: float = 1.0) -> float:
        """When this part of the nodes that are still there had everything."""
        times = sorted(node.done_s for one, node in self.nodes.items() if one not in self.lost)
        return times[max(0, round(part * len(times)) - 1)]
