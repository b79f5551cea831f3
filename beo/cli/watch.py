"""Following a job to its end, over any number of attempts and restarts of the head: `beo run` and `beo logs -f`."""

from __future__ import annotations

import select
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from beo import messages as m
from beo.cli.waiting import StatusLine
from beo.client import ENDED, WAIT_SLICE_S, Cluster
from beo.contact import tell
from beo.errors import BeoError
from beo.follow import Console, Source
from beo.records import STDOUT, Record
from beo.table import escape
from beo.wire import Waker

STEP_S = 1.0
PATIENT_S = 1.0  # a wait that is over so soon needs no explanation
LINE_SIZE_MAX_BYTES = 64 * 1024  # a labelled line that is longer is broken


class Watch:
    """The present view of a job, kept by a thread with a connection of its own, and a waker that tells of changes."""

    def __init__(self, cluster: Cluster, job: int, attached: bool = False) -> None:
        """Begin to watch. `attached`: keep the job of a `beo run` alive."""
        self.job = job
        self.waker = Waker()
        self._view: m.JobView | None = None
        self._error: BeoError | None = None
        thread = threading.Thread(target=self._look, args=(Cluster(cluster.home), attached), daemon=True)
        thread.start()

    @property
    def view(self) -> m.JobView | None:
        """The job as last heard of, None at first; raises what the head refused with."""
        if self._error:
            raise self._error
        return self._view

    def wait(self, timeout_s: float) -> None:
        """Return at a change, at a call of the waker, or after timeout_s."""
        select.select([self.waker], [], [], timeout_s)
        self.waker.clear()

    def _look(self, cluster: Cluster, attached: bool) -> None:
        known = "nothing"  # so that the first answer comes at once
        try:
            while True:
                view = cluster.look(self.job, known, WAIT_SLICE_S, attached)
                known = f"{view.state}/{view.attempt}"
                self._view = view
                self.waker.wake()
                if view.state in ENDED:
                    break
        except BeoError as error:
            self._error = error
            self.waker.wake()
        cluster.close()


class Printer:
    """Writes records to standard output and standard error, byte for byte, or line by line with the rank in front."""

    def __init__(self, rank: int | None = None, label: bool = False) -> None:
        """Print one rank only where `rank` is given; put the rank in front of each line where `label`."""
        self._rank = rank
        self._label = label
        self._begun: dict[tuple[int, int], bytes] = {}  # lines whose ends have not come

    def write(self, found: Iterable[Record]) -> None:
        """Print records; what was printed has left this process when it returns."""
        for rank, fd, data in found:
            if self._rank is None or rank == self._rank:
                self._put(fd, self.labelled(rank, fd, data) if self._label else data)
        sys.stdout.flush()
        sys.stderr.flush()

    def close(self) -> None:
        """Print the lines that were never ended."""
        for (rank, fd), line in sorted(self._begun.items()):
            self._put(fd, b"%d: %s\n" % (rank, line))
        self._begun.clear()
        sys.stdout.flush()
        sys.stderr.flush()

    def _put(self, fd: int, data: bytes) -> None:
        (sys.stdout if fd == STDOUT else sys.stderr).buffer.write(data)

    def labelled(self, rank: int, fd: int, data: bytes) -> bytes:
        """Return the lines that `data` completes, each with its rank in front."""
        *lines, rest = (self._begun.pop((rank, fd), b"") + data).split(b"\n")
        if len(rest) > LINE_SIZE_MAX_BYTES:
            lines.append(rest)
        elif rest:
            self._begun[rank, fd] = rest
        return b"".join(b"%d: %s\n" % (rank, line) for line in lines)


def follow_job(
    cluster: Cluster,
    watch: Watch,
    printer: Printer,
    attempt: int = 1,
    source: Source | None = None,
    on_wake: Callable[[], None] = lambda: None,
) -> m.JobView:
    """Print a job's output from `attempt` on until the job ended; returns how it ended.

    `source` is read for rank 0 of that attempt, and in use as long as that lasts. `on_wake` is called now and then, and
    soon after the watch's waker was.
    """
    line = StatusLine()
    while True:
        view = _wait_for(watch, line, on_wake, attempt)
        if view.attempt < attempt:
            break
        with source or nullcontext():
            wake_on = (watch.waker.fileno(),)
            learn = cluster.learn_heads
            console = Console(cluster.bulk, watch.job, attempt, source=source, wake_on=wake_on, learn=learn)
            try:
                while not console.ended:
                    printer.write(console.step(STEP_S))
                    watch.waker.clear()
                    on_wake()
            finally:
                console.close()
        view = _wait_for(watch, line, on_wake, attempt + 1)
        if view.attempt == attempt:
            break
        tell(f"attempt {attempt} ended{_outcome(cluster, watch.job, attempt)}; attempt {attempt + 1} follows")
        attempt, source = attempt + 1, None  # what was read is gone: a further attempt finds its input at its end
    printer.close()
    return view


def _wait_for(watch: Watch, line: StatusLine, on_wake: Callable[[], None], attempt: int) -> m.JobView:
    """Return the job as soon as it ended or that attempt began; says on a terminal why it waits."""
    began_s = time.monotonic()
    while True:
        view = watch.view
        if view and (view.state in ENDED or view.attempt >= attempt):
            line.show("")
            return view
        if view and view.state in ("queued", "held") and time.monotonic() - began_s >= PATIENT_S:
            line.show(f"job {watch.job}: {escape(view.reason) or 'waits for its turn'}")
        watch.wait(STEP_S)
        on_wake()


def _outcome(cluster: Cluster, job: int, attempt: int) -> str:
    (detail,) = cluster.show([str(job)], patience_s=None)
    told = [escape(found.outcome) for found in detail.attempts if found.number == attempt and found.outcome]
    return f" ({told[0]})" if told else ""
