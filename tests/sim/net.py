"""The network between machines: it loses, doubles, delays and reorders; any two are cut, one way or both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random

from tests.sim.clock import Clock

DELAY_MAX_S = 2.0
QUICK_S = 0.004


class Net:
    """Messages from one machine to another. `ways` that are cut are (from, to)."""

    def __init__(self, clock: Clock, random: Random, loss: float, slow: float) -> None:
        """loss, slow: the share of messages that get lost, and that take up to `DELAY_MAX_S`."""
        self._clock = clock
        self._random = random
        self.loss = loss
        self.slow = slow
        self._cut: dict[tuple[str, str], int] = {}

    def cut(self, ways: Iterable[tuple[str, str]]) -> Callable[[], None]:
        """Cut ways; returns what mends them."""
        ways = list(ways)
        for way in ways:
            self._cut[way] = self._cut.get(way, 0) + 1

        def mend() -> None:
            for way in ways:
                left = self._cut.get(way, 0) - 1
                if left > 0:
                    self._cut[way] = left
                else:
                    self._cut.pop(way, None)

        return mend

    def heal(self) -> None:
        """Be a good network from now on; what is under way may still come late."""
        self._cut.clear()
        self.loss = self.slow = 0.0

    def send(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Deliver something soon, late, twice or never."""
        if (source, target) in self._cut:
            return
        random = self._random.random
        delay_s = 0.0005 + QUICK_S * random()
        if self.loss and random() < self.loss:
            return
        if self.slow:
            if random() < self.slow / 2:
                self._clock.after(random() * DELAY_MAX_S, deliver)
            if random() < self.slow:
                delay_s = random() * DELAY_MAX_S
        self._clock.after(delay_s, deliver)
