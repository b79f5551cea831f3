"""Machines that are switched on together, in virtual time: beo/boot/storm.py says who sends to whom, the rest is here.

Every port has a speed in each direction, which those share that send by it at that moment. A machine fetches its kernel
and initrd from the head, then the image as the head says; it compares the hash, begins to run, and says that it has it.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from random import Random

from beo.boot.storm import TURNS, Here, Later, Storm, There

KERNEL_BYTES, IMAGE_BYTES = 17_000_000, 97_000_000
LINK_BYTES_S = 117e6  # of 1 Gbit/s, what TCP over Ethernet leaves
SPREAD_S = 5.0  # between the firmware of the fastest and of the slowest
AGAIN_S = (3.0, 6.0)  # what the init waits before it asks again, as it says in beo/worker/boot/init
HASH_S = 1.0  # for the SHA-256 of an image on an old PC
RUN_S = 6.0  # from there until a worker runs and serves its image
SILENT_S = 20.0  # wget's patience with who says nothing
HEAD = "head"


class Flow:
    """Bytes on their way."""

    def __init__(self, sender: str, receiver: str, left: float, then: Callable[[], None]) -> None:
        self.sender, self.receiver, self.left, self.then = sender, receiver, left, then


class World:
    """One morning. peers: whether machines give their image to others."""

    def __init__(self, nodes: int, seed: int, peers: bool = True, dying: int = 0, lying: int = 0) -> None:
        """dying: so many of those that have it are cut off while they serve; lying: so many give something else."""
        self._random = Random(seed)
        self._peers = peers
        self._storm = Storm(self._random.uniform, *(() if peers else (1 << 30,)))
        self.now_s = 0.0
        self._numbers = count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._flows: list[Flow] = []
        self._dead: set[str] = set()
        self._waiting: deque[str] = deque()
        self._turns = 0
        self.names = [f"10.0.{number // 250}.{number % 250}" for number in range(nodes)]
        self._bad = {self.names[number] for number in range(lying)}
        self._dying = dying
        self._direct: set[str] = set()  # who was sent something else, and asks the head alone
        self.course: list[float] = []  # when each machine ran
        self.head_bytes = 0
        self.later = self.wrong = self.cut = 0
        for name in self.names:
            self._at(self._random.uniform(0.0, SPREAD_S), lambda name=name: self._kernel(name))  # type: ignore[misc]

    def _at(self, time_s: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time_s, next(self._numbers), then))

    def _after(self, wait_s: float, then: Callable[[], None]) -> None:
        self._at(self.now_s + wait_s, then)

    def _send(self, sender: str, receiver: str, size: int, then: Callable[[], None]) -> None:
        if sender in self._dead:
            self._after(SILENT_S, lambda: self._ask_again(receiver))
            return
        self.head_bytes += size if sender == HEAD else 0
        self._flows.append(Flow(sender, receiver, size, then))

    def _kernel(self, name: str) -> None:
        self._storm.gone(name)
        self._waiting.append(name)
        self._next_turns()

    def _next_turns(self) -> None:
        while self._waiting and self._turns < TURNS:
            self._turns += 1
            name = self._waiting.popleft()
            self._send(HEAD, name, KERNEL_BYTES, lambda name=name: self._kernel_came(name))  # type: ignore[misc]

    def _kernel_came(self, name: str) -> None:
        self._turns -= 1
        self._next_turns()
        self._ask(name)

    def _ask_again(self, name: str) -> None:
        self.cut += 1
        self._ask(name)

    def _ask(self, name: str) -> None:
        match self._storm.choose(name, "sha", self.now_s, name in self._direct):
            case Here():
                self._send(HEAD, name, IMAGE_BYTES, lambda: self._came(name, HEAD))
            case There(address):
                sender = address.partition(":")[0]
                self._send(sender, name, IMAGE_BYTES, lambda: self._came(name, sender))
            case Later():
                self.later += 1
                self._after(self._random.uniform(*AGAIN_S), lambda: self._ask(name))

    def _came(self, name: str, sender: str) -> None:
        if sender == HEAD:
            self._storm.over()
        if sender in self._bad:
            self.wrong += 1
            self._direct.add(name)
            self._after(HASH_S + self._random.uniform(*AGAIN_S), lambda: self._ask(name))
            return
        self._after(HASH_S + RUN_S, lambda: self._runs(name))

    def _runs(self, name: str) -> None:
        self.course.append(self.now_s)
        if self._peers:
            self._storm.have(name, f"{name}:80", "sha", self.now_s)
        if self._dying:
            self._dying -= 1
            self._after(1.0, lambda: self._dies(name))

    def _dies(self, name: str) -> None:
        self._dead.add(name)
        for flow in [flow for flow in self._flows if flow.sender == name]:
            self._flows.remove(flow)
            self._after(SILENT_S, lambda to=flow.receiver: self._ask_again(to))  # type: ignore[misc]

    def run(self, end_s: float = 3_600.0) -> None:
        """Let it happen, until all run."""
        while (self._timers or self._flows) and len(self.course) < len(self.names):
            out = Counter(flow.sender for flow in self._flows)
            into = Counter(flow.receiver for flow in self._flows)
            speed = {flow: LINK_BYTES_S / max(out[flow.sender], into[flow.receiver]) for flow in self._flows}
            next_s = min((self.now_s + flow.left / rate for flow, rate in speed.items()), default=end_s)
            if self._timers:
                next_s = min(next_s, self._timers[0][0])
            for flow, rate in speed.items():
                flow.left -= rate * (next_s - self.now_s)
            self.now_s = next_s
            assert self.now_s < end_s, "it never comes to an end"
            done = [flow for flow in self._flows if flow.left <= 1.0]
            self._flows = [flow for flow in self._flows if flow.left > 1.0]
            for flow in done:
                flow.then()
            while self._timers and self._timers[0][0] <= self.now_s:
                heapq.heappop(self._timers)[2]()

    def done_s(self, part: float = 1.0) -> float:
        """When so many of them ran."""
        return self.course[round(part * len(self.names)) - 1]
