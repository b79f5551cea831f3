"""When a snapshot of a journal is due, another process makes it (compactor.py), and this looks after that process."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from beo.entries import Position
from beo.errors import BeoError
from beo.journal import Journal

ENTRIES_MIN = 10_000  # a snapshot costs time in proportion to what is on record: rarer with more of it
RUN_S_MAX = 600.0  # a hundred times what 100,000 jobs take: longer, and it is stuck
RETRY_S_MIN = 10.0  # after a failure, doubled with each further one: what failed was the disk, or is a mistake of ours
RETRY_S_MAX = 600.0

log = logging.getLogger("beo.compaction")


@dataclass(slots=True)
class Run:
    """A process that makes the snapshot at `position`. wanted: false once these entries are gone."""

    pid: int
    position: Position
    started_s: float
    wanted: bool = True


class Compaction:
    """The snapshots of one journal, for the thread that owns it. Whatever goes wrong costs another try later."""

    def __init__(self, journal: Journal, folder: Path, module: str) -> None:
        """Look after the journal in `folder`; nothing is started yet. module: see compactor.py."""
        self._journal = journal
        self._folder = folder
        self._module = module
        self._run: Run | None = None
        self._failures = 0
        self._not_before_s = 0.0

    def tick(self, committed: int, records: int, now_s: float) -> None:
        """See how it goes. committed: up to where nothing can be taken back. records: how many the state has."""
        if self._run:
            self._look(self._run, now_s)
        elif now_s >= self._not_before_s and self._is_due(committed, records):
            self._begin(committed, now_s)

    def stop(self) -> None:
        """End the process, if there is one, and leave nothing of it."""
        if self._run:
            _kill(self._run.pid)
            with suppress(ChildProcessError):
                os.waitpid(self._run.pid, 0)
            self._run = None
            self._journal.sweep()

    def _is_due(self, committed: int, records: int) -> bool:
        enough = max(ENTRIES_MIN, 2 * records)
        return committed - self._journal.snapshot_index >= enough and not self._journal.is_adopting

    def _begin(self, index: int, now_s: float) -> None:
        position = self._journal.position(index)
        if not position:
            return
        words = [sys.executable, "-m", self._module, str(self._folder), str(index)]
        quiet = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        try:
            pid = os.posix_spawn(
                words[0],
                words,
                os.environ,
                file_actions=quiet,
                setsigmask=[],
                setsigdef=[signal.SIGTERM, signal.SIGINT],
            )
        except OSError as error:
            self._failed(index, str(error), now_s)
            return
        self._run = Run(pid, position, now_s)

    def _look(self, run: Run, now_s: float) -> None:
        try:
            pid, status = os.waitpid(run.pid, os.WNOHANG)
        except ChildProcessError:  # someone else has reaped it: whether there is a file tells how it went
            pid, status = run.pid, 0
        if run.wanted and self._journal.position(run.position.idx) != run.position:  # what it holds was cut
            run.wanted = False
            if not pid:
                _kill(run.pid)
        if not pid:
            if now_s - run.started_s > RUN_S_MAX:
                _kill(run.pid)
            return
        self._run = None
        if not run.wanted:
            self._journal.sweep()
        elif code := os.waitstatus_to_exitcode(status):
            self._failed(run.position.idx, f"exit code {code}", now_s)
        else:
            self._adopt(run, now_s)

    def _adopt(self, run: Run, now_s: float) -> None:
        try:
            self._journal.adopt_snapshot(run.position.idx)
        except (BeoError, OSError) as error:
            self._failed(run.position.idx, str(error), now_s)
            return
        self._failures = 0
        log.info("a snapshot of entry %d was made in %.1f s", run.position.idx, now_s - run.started_s)

    def _failed(self, index: int, why: str, now_s: float) -> None:
        wait_s = min(RETRY_S_MIN * 2**self._failures, RETRY_S_MAX)
        self._failures += 1
        self._not_before_s = now_s + wait_s
        log.warning("no snapshot of entry %d was made (%s): the next try is in %.0f s", index, why, wait_s)
        self._journal.sweep()


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
