"""What an attempt may use up besides time and memory, so that a job that takes too much is ended and no other suffers.

Each bound ends the attempt with one sentence for its owner. Standard library only: the warden imports it.
"""

from __future__ import annotations

import os

from beo.worker import contain, disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from beo.worker.order import Order
    from beo.worker.spool import Spool

OOM_SCORE = 500
"""Of what a job runs (0-1000): for want of memory the kernel takes a rank before any daemon of the machine."""
MANY_FILES = 5_000
"""Files that an attempt holds on a full disk, from which on it counts as one that has filled it. The same go for as
many bytes as are to stay free."""
NO_ROOM_S = 10.0
"""How long output waits for room on the node's disk: somebody else may be about to make some."""


class Bounds:
    """The bounds of one attempt. crowd: the cgroup of its processes, or "". Asked a few times a second."""

    def __init__(self, order: Order, spool: Spool, crowd: str) -> None:
        self._order = order
        self._spool = spool
        self._crowd = crowd
        self._refused_forks = contain.refused_forks(crowd)
        self._oom_kills = contain.machine_oom_kills()
        self._no_room_since_s: float | None = None

    def broken(self, now_s: float) -> str:
        """The bound that the attempt has broken, in words; "" if it has broken none."""
        return self._processes() or self.output() or self._room_for_output(now_s) or self._disk()

    def output(self) -> str:
        """The same for what it has printed alone: cheap enough for every turn of a loop."""
        most = self._order.output_max_bytes
        if most is None or self._spool.whole_bytes <= most:
            return ""
        return f"it printed more than {_size(most)} on {self._order.node} ([worker] output_max_bytes)"

    def for_want_of_memory(self) -> bool:
        """Whether the kernel has killed anything on this machine for want of memory since the attempt began."""
        return contain.machine_oom_kills() > self._oom_kills

    def _processes(self) -> str:
        if contain.refused_forks(self._crowd) <= self._refused_forks:
            return ""
        return f"it wanted more processes than it may have on {self._order.node} ([worker] processes_max)"

    def _room_for_output(self, now_s: float) -> str:
        if not self._spool.trouble:
            self._no_room_since_s = None
        elif self._no_room_since_s is None:
            self._no_room_since_s = now_s
        elif now_s - self._no_room_since_s > NO_ROOM_S:
            return f"there is no room for its output on {self._order.node}: {self._spool.trouble.lower()}"
        return ""

    def _disk(self) -> str:
        """Only who holds much himself is ended for a disk that is full."""
        tmp = self._order.tmp
        if tmp is None or not disk.is_full(tmp, self._order.free_min_bytes):
            return ""
        files, size_bytes = disk.held(tmp)
        if files < MANY_FILES and size_bytes < disk.floor(os.statvfs(tmp), self._order.free_min_bytes):
            return ""
        return f"it filled the disk of its TMPDIR on {self._order.node} with {files} files of {_size(size_bytes)}"


def _size(size_bytes: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.3g}{unit}"
    return f"{size_bytes}B"
