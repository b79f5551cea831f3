"""When chunks of bundles are looked through for those that nobody needs: another process does it (bulk/sweeper.py)."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from beo.config import Home
from beo.headnode import vaults
from beo.headnode.model import ENDED
from beo.headnode.state import State
from beo.settings import FilesConfig

MODULE = "beo.bulk.sweeper"
RUN_S_MAX = 3_600.0  # a hundred times what a full tree takes: longer, and it is stuck

log = logging.getLogger("beo.head")


def needed(state: State, now_s: float) -> set[tuple[int, str]]:
    """Return (uid, bundle) of what jobs need: inputs until they are over, copies of checkpoints as long as vaults."""
    inputs = {(job.uid, job.spec.bundle) for job in state.jobs.values() if job.spec.bundle and job.state not in ENDED}
    kept = [job for job in state.jobs.values() if job.copies and not vaults.is_over(state, job.id, now_s)]
    return inputs | {(job.uid, copy.bundle) for job in kept for copy in job.copies}


class Sweeping:
    """The sweeps of one head, for its control loop. Whatever goes wrong costs another try later."""

    def __init__(self, home: Home, config: FilesConfig) -> None:
        """Nothing is started yet."""
        self._home = home
        self._every_s, self._spare_s = config.sweep_s, config.spare_s
        self._pid = 0
        self._began_s = 0.0
        self._due_s: float | None = None  # None: this head doesn't serve the tree

    def tick(self, serves: bool, bundles: Callable[[], Iterable[tuple[int, str]]], now_s: float) -> None:
        """See how it goes. serves: this head acts, and the tree is there; bundles(): those that are needed."""
        if self._pid:
            self._look(serves, now_s)
        if not serves:
            self._due_s = None
        elif self._due_s is None:
            self._due_s = now_s + self._every_s
        elif now_s >= self._due_s and not self._pid:
            self._due_s = now_s + self._every_s
            self._begin(bundles(), now_s)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._pid:
            _kill(self._pid)
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0

    def _begin(self, bundles: Iterable[tuple[int, str]], now_s: float) -> None:
        fd = os.memfd_create("need")
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(msgspec.json.encode({"bundles": sorted(bundles), "spare_s": self._spare_s}))
            os.lseek(fd, 0, os.SEEK_SET)
            self._pid = os.posix_spawn(
                sys.executable,
                (sys.executable, "-P", "-m", MODULE),
                {**os.environ, "BEO_DIR": str(self._home.path)},
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, 0)],
                setsigmask=[],
                setsigdef=[signal.SIGTERM, signal.SIGINT],
            )
            self._began_s = now_s
        except OSError as error:
            log.warning("no sweep can be started: %s", error)
        finally:
            os.close(fd)

    def _look(self, serves: bool, now_s: float) -> None:
        try:
            pid, _ = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid = self._pid
        if pid:
            self._pid = 0
        elif not serves or now_s - self._began_s > RUN_S_MAX:
            _kill(self._pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
