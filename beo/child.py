"""A process that belongs to this one: kept running while it is wanted, and ended with this one, however that ends.

It is to ask the kernel for its own end (`end_with_parent`), since nobody else ends it where its parent is killed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from beo.config import Home
from beo.errors import reason

HEALTHY_S = 10.0  # who lived for so long begins with no delay again
DELAY_FIRST_S = 0.1  # before the second start in a row; the first comes at once
DELAY_MAX_S = 5.0
END_S = 3.0  # for a clean end: a stopped one has none, and its parent must end in time
WAIT_S = 0.01  # between two looks whether it has ended
PARENT = "BEO_PARENT"  # whose child it is: one that is adopted before it could ask would never end
_PR_SET_PDEATHSIG = 1

Spawn = Callable[[tuple[str, ...], dict[str, str]], int]


class Child:
    """One of them. For the thread that lives as long as this process: the kernel ends the child with that thread."""

    def __init__(self, name: str, home: Home, argv: Sequence[str], log: logging.Logger, spawn: Spawn | None = None):
        """Nothing is started yet. argv: of Python; spawn: starts it in another way, raising OSError."""
        self._name = name
        self._home = home
        self._argv = tuple(argv)
        self._log = log
        self._spawn = spawn or _spawn
        self.pid = 0
        self._started_s = self._start_s = 0.0
        self._ends = 0  # in a row

    def keep(self, now_s: float) -> None:
        """Start it where it doesn't run, if it is time."""
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return
            self.pid = 0
            self._ended(now_s)
            self._log.warning("%s ended with %d", self._name, os.waitstatus_to_exitcode(status))
        if now_s >= self._start_s:
            env = {**os.environ, "BEO_DIR": str(self._home.path), PARENT: str(os.getpid())}
            self._started_s = now_s
            try:
                self.pid = self._spawn((sys.executable, *self._argv), env)
            except OSError as error:  # no memory or no process is left: no reason to end
                self._ended(now_s)
                self._log.warning("%s can't be started: %s", self._name, reason(error))

    def _ended(self, now_s: float) -> None:
        """It has ended, or never began: say when to start the next one."""
        self._ends = 1 if now_s - self._started_s > HEALTHY_S else self._ends + 1
        wait_s = 0.0 if self._ends == 1 else min(DELAY_MAX_S, DELAY_FIRST_S * 2.0 ** min(self._ends - 2, 30))
        self._start_s = now_s + wait_s

    def drop(self) -> None:
        """End one at once that keeps nothing, without waiting for what it is at; the next one may start right away."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid, self._ends, self._start_s = 0, 0, 0.0

    def close(self) -> None:
        """End it, and wait for that."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            deadline_s = time.monotonic() + END_S
            while not os.waitpid(self.pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline_s:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    break
                time.sleep(WAIT_S)
            self.pid = 0


def _spawn(argv: tuple[str, ...], env: dict[str, str]) -> int:
    return os.posix_spawn(argv[0], argv, env, setsigmask=[], setsigdef=[signal.SIGTERM, signal.SIGINT])


def end_with_parent() -> bool:
    """Let the kernel kill this process when its parent has ended; False where that has happened already."""
    parent = os.environ.pop(PARENT, str(os.getppid()))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return str(os.getppid()) == parent
