"""Long polls: who waits for which jobs, and until when. Each one is answered once."""

from __future__ import annotations

from heapq import heappop, heappush

import msgspec

from beo.headnode.decide import User

WAITS_MAX = 100_000  # jobs waited for at one time, over all long polls: about 30 MB; more are answered at once


class Waiter(msgspec.Struct, eq=False):
    """One long poll. open: those of its jobs that have not ended. known: the progress that it has seen, or empty.

    user: who asked.
    """

    peer: bytes
    request: int
    jobs: tuple[int, ...]
    open: set[int]
    until_s: float
    known: str
    user: User


class Waiters:
    """Every long poll of this head."""

    def __init__(self) -> None:
        """Make none."""
        self._serial = 0
        self._waits = 0
        self._waiters: dict[int, Waiter] = {}  # by serial
        self._by_job: dict[int, dict[int, Waiter]] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap; those of answered ones go when their time comes

    def __len__(self) -> int:
        """How many have not been answered."""
        return len(self._waiters)

    def add(self, waiter: Waiter) -> bool:
        """Take a long poll, or refuse it: there are too many."""
        if self._waits + len(waiter.open) > WAITS_MAX:
            return False
        self._serial += 1
        self._waits += len(waiter.open)
        self._waiters[self._serial] = waiter
        for job in sorted(waiter.open):
            self._by_job.setdefault(job, {})[self._serial] = waiter
        heappush(self._deadlines, (waiter.until_s, self._serial))
        return True

    def changed(self, job: int, progress: str, ended: bool) -> list[Waiter]:
        """Return those to be answered because a job has changed; they are off the list."""
        answered = []
        for serial, waiter in list(self._by_job.get(job, {}).items()):
            if ended:
                self._close(serial, waiter, job)
            if not waiter.open or (waiter.known and waiter.known != progress):
                answered.append(self._take(serial))
        return answered

    def late(self, now_s: float) -> list[Waiter]:
        """Return those whose time has come; they are off the list."""
        answered = []
        while self._deadlines and self._deadlines[0][0] <= now_s:
            serial = heappop(self._deadlines)[1]
            if serial in self._waiters:
                answered.append(self._take(serial))
        return answered

    def _take(self, serial: int) -> Waiter:
        waiter = self._waiters.pop(serial)
        for job in sorted(waiter.open):
            self._close(serial, waiter, job)
        return waiter

    def _close(self, serial: int, waiter: Waiter, job: int) -> None:
        waiter.open.discard(job)
        self._waits -= 1
        waiting = self._by_job[job]
        del waiting[serial]
        if not waiting:
            del self._by_job[job]
