"""The agent's eye on processes: what `beo ps` and `beo kill` ask of this node. A thread, so that no heartbeat waits.

A walk of /proc takes as long as the machine has processes. Which of them are ranks is the wardens' to tell: they are
asked first, and one that doesn't answer in time is done without.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from beo import messages as ms
from beo import wire
from beo.worker import processes
from beo.worker.acts import LookInside

WARDEN_S = 0.5  # for a warden to tell its ranks' pids
PENDING_MAX = 64  # questions at a time; what comes on top is not answered, and the head names this node
KEYS_MAX = 256  # strikes remembered, so that one that is asked for again is not done again

log = logging.getLogger("beo.inspector")


class _Question:
    """A question that waits for the wardens' word."""

    def __init__(self, effect: LookInside, until_s: float) -> None:
        self.message = effect.message
        self.wardens = effect.wardens
        self.open = {number for _, _, number in effect.wardens}
        self.until_s = until_s


class Inspector:
    """All methods are for the agent's control thread, which is woken by its own waker for `news`."""

    def __init__(self, node: str, agent: wire.Waker, ask: Callable[[int, dict[str, Any]], None]) -> None:
        """ask(warden, message) sends to a warden."""
        self._node = node
        self._agent = agent
        self._ask = ask
        self._roots: dict[int, int] = {}  # warden -> its PID 1, outside
        self._ranks: dict[int, dict[int, int]] = {}  # warden -> pid -> rank, as told last
        self._questions: list[_Question] = []
        self._work: queue.SimpleQueue[Callable[[], ms.Processes | ms.Hits | None] | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[ms.Processes | ms.Hits] = queue.SimpleQueue()
        self._struck: dict[str, tuple[ms.Hit, ...]] = {}  # by key; the thread's own
        self._thread = threading.Thread(target=self._run, name="beo-inspector", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._work.put(None)
        self._thread.join()

    def hear(self, warden: int, message: dict[str, Any]) -> None:
        """Note what a warden tells of its processes."""
        op = message.get("op")
        if op == "hello" and isinstance(message.get("pid"), int):
            self._roots[warden] = message["pid"]
        elif op == "state":
            pids = message.get("pids")
            told = pids.items() if isinstance(pids, dict) else ()
            self._ranks[warden] = {pid: int(rank) for rank, pid in told if rank.isdigit() and isinstance(pid, int)}
            for question in self._questions:
                question.open.discard(warden)

    def gone(self, warden: int) -> None:
        """A warden has gone."""
        self._roots.pop(warden, None)
        self._ranks.pop(warden, None)

    def look(self, effect: LookInside) -> None:
        """Take a question of the head."""
        if len(self._questions) >= PENDING_MAX or self._work.qsize() >= PENDING_MAX:
            return
        question = _Question(effect, time.monotonic() + WARDEN_S)
        self._questions.append(question)
        for number in sorted(question.open):
            self._ask(number, {"op": "state"})

    def news(self) -> list[ms.Processes | ms.Hits]:
        """Hand over what can be worked on now, and return what the head is to be told."""
        now_s = time.monotonic()
        for question in [q for q in self._questions if not q.open or now_s >= q.until_s]:
            self._questions.remove(question)
            self._begin(question)
        found: list[ms.Processes | ms.Hits] = []
        while not self._news.empty():
            found.append(self._news.get())
        return found

    def _begin(self, question: _Question) -> None:
        message = question.message
        attempts = {
            (job, attempt): processes.Inmates(job, attempt, self._roots[number], dict(self._ranks.get(number, {})))
            for job, attempt, number in question.wardens
            if number in self._roots
        }
        if isinstance(message, ms.Inspect):
            self._work.put(lambda: self._inspect(message, attempts))
        else:
            self._work.put(lambda: self._strike(message, attempts))

    # ---- the thread

    def _run(self) -> None:
        while work := self._work.get():
            try:
                answer = work()
            except OSError as error:  # no descriptors left, say
                log.warning("can't look at processes: %s", error)
                continue
            if answer:
                self._news.put(answer)
                self._agent.wake()

    def _inspect(self, message: ms.Inspect, attempts: dict[tuple[int, int], processes.Inmates]) -> ms.Processes:
        rows, more = processes.look(attempts.values(), min(message.limit, ms.PROCESSES_MAX))
        return ms.Processes(self._node, message.incarnation, message.ask, processes.machine(), tuple(rows), more)

    def _strike(self, message: ms.Strike, attempts: dict[tuple[int, int], processes.Inmates]) -> ms.Hits:
        hits = self._struck.get(message.key)
        if hits is None:
            hits = tuple(
                hit
                for attempt, target in message.targets
                for hit in processes.hit(attempts.get((target.job, attempt)), target, message.signal)
            )
            self._struck[message.key] = hits
            if len(self._struck) > KEYS_MAX:
                del self._struck[next(iter(self._struck))]
        return ms.Hits(self._node, message.incarnation, message.ask, hits)
