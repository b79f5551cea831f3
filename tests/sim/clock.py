"""Virtual time: one true clock for everybody, and a clock of each machine that runs a little wrong."""

from __future__ import annotations

import heapq
import struct
import zlib
from collections.abc import Callable

DRIFT = 0.005  # any two machines' clocks differ by up to twice this in rate: by the 1 % that the protocol allows for
UP_S = 5.0  # a machine's clock shows this much when its services start


class Violation(AssertionError):
    """An invariant was broken."""


class Clock:
    """True time, and what happens when. `trace` is a sum over the moments of all that happened."""

    def __init__(self) -> None:
        self.s = 100.0
        self.trace = 0
        self._serial = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self._serial += 1
        heapq.heappush(self._heap, (self.s + delay_s, self._serial, act))

    def step(self) -> None:
        """Let the next thing happen."""
        self.s, serial, act = heapq.heappop(self._heap)
        self.trace = zlib.crc32(struct.pack(">dQ", self.s, serial), self.trace)
        act()


class BootTime:
    """CLOCK_BOOTTIME of one machine: begins again with each boot, and has a rate of its own."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self._clock = clock
        self._rate = rate
        self.boot()

    def boot(self) -> None:
        """Begin again."""
        self._zero_s = self._clock.s

    @property
    def s(self) -> float:
        """What the machine's clock shows now."""
        return UP_S + (self._clock.s - self._zero_s) * self._rate

    def true_s(self, shown_s: float) -> float:
        """The true time at which it shows this."""
        return self._zero_s + (shown_s - UP_S) / self._rate
