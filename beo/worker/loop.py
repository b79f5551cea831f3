"""A loop of one thread: descriptors that become ready, timers that run out, and what to do once per turn."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
BROKEN = 0
"""Nothing but the errors, which are always told: the other end of a pipe was closed."""
_ALWAYS = select.EPOLLERR | select.EPOLLHUP
_TURN_S_MAX = 3600.0  # epoll counts milliseconds in 31 bits: 24 days at most


class Loop:
    """Calls back until `stop`. Timers have names: setting one again moves it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, tuple[int, Callable[[], None]]] = {}
        self._timers: dict[Hashable, tuple[float, Callable[[], None]]] = {}
        self._running = True
        self.each_turn: list[Callable[[], None]] = []
        """Called at the end of every turn, when all that was ready has been dealt with."""

    def watch(self, fd: int, callback: Callable[[], None], events: int = READ) -> None:
        """Call `callback` whenever `fd` is ready for `events` (or broken)."""
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = events, callback

    def unwatch(self, fd: int) -> None:
        """Forget `fd`; must come before it is closed."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, delay_s: float, name: Hashable, callback: Callable[[], None]) -> None:
        """Call `callback` once, `delay_s` from now."""
        self._timers[name] = (time.monotonic() + delay_s, callback)

    def due_s(self, name: Hashable) -> float | None:
        """Seconds until the timer `name`; None if it isn't set."""
        timer = self._timers.get(name)
        return None if timer is None else timer[0] - time.monotonic()

    def forget(self, name: Hashable) -> None:
        """Take the timer `name` back, if it is set."""
        self._timers.pop(name, None)

    def stop(self) -> None:
        """Let `run` return after this turn."""
        self._running = False

    def run(self) -> None:
        """Turn until `stop`."""
        while self._running:
            timeout_s = _TURN_S_MAX
            if self._timers:
                timeout_s = min(moment for moment, _ in self._timers.values()) - time.monotonic()
                timeout_s = min(max(0.0, timeout_s), _TURN_S_MAX)
            for fd, found in self._epoll.poll(timeout_s):
                # An earlier callback of this turn may have closed it, or be waiting for something else by now.
                events, callback = self._watched.get(fd, (0, None))
                if callback and found & (events | _ALWAYS):
                    callback()
            if self._timers:
                now = time.monotonic()
                for name in [name for name, (moment, _) in self._timers.items() if moment <= now]:
                    timer = self._timers.pop(name, None)
                    if timer:
                        timer[1]()
            for callback in self.each_turn:
                callback()
