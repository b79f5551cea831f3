"""Two heads on hosts of their own: what a client sees of a take-over, and what the second head costs.

The hosts are network namespaces (tests/net/): without root, or without the programs that these need, nothing is
measured. All settings are the defaults.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec

from tests.bench import stage
from tests.bench.load import READY, Rate, Rated
from tests.bench.table import Row
from tests.cluster import kill, send, wait_for
from tests.history import now_ns
from tests.net.hosts import Host, missing, network
from tests.net.site import Site, said

TIMES = 30  # each of kill, stop and cut
SWITCHES = 30
LONG_TIMES = 10
JOBS = 100_000  # in the journal of the last measurement
DISK_BYTES = 1 << 30  # of a head
WINDOW = 64
ORDER_S = 2.0  # of one order to submit, while the journal is filled
IDLE_S = 5.0
IDLES = 3
REPEATS = 5
SILENCE_NS = 250_000_000  # less than any take-over takes, more than a busy machine lets a client wait
AFTER_S = 0.5  # a planned switch is looked at for so long after it
HEAD = "[head]\nqueued_max = 1_000_000\n"  # what is submitted here is never run
# Two ranks exchange growing numbers until rank 0 sees a file; a lost, doubled or wrong one shows in the sum.
PINGPONG = """
import os, sys, time
from mpi4py import MPI
world = MPI.COMM_WORLD
total, rounds, on, other = 0, 0, True, 1 - world.rank
while on:
    total += world.sendrecv(rounds * (world.rank + 1), dest=other, source=other)
    rounds += 1
    on = world.bcast(not os.path.exists(sys.argv[1]))
    time.sleep(0.05)
print("rank", world.rank, "right" if total == sum(range(rounds)) * (other + 1) else "wrong", flush=True)
"""


class Steady:
    """A client at a steady pace on a host, and what it saw."""

    def __init__(self, host: Host, log: Path) -> None:
        """Start it."""
        self._log = log
        log.touch()
        errors = log.with_suffix(".errors").open("wb")
        words = [sys.executable, "-m", "tests.bench.steady", str(log)]
        self._process = host.start(*words, stdin=subprocess.PIPE, stdout=errors, stderr=errors)
        wait_for(self._log.read_text, "the first submission")

    def _acknowledged_ns(self) -> list[int]:
        lines = self._log.read_text().splitlines(keepends=True)
        return [int(line.split()[1]) for line in lines if line.endswith("\n")]

    def gap_ms(self, since_ns: int) -> float:
        """From that moment to the acknowledgement that ends the silence which then began."""

        def found() -> float:
            times = self._acknowledged_ns()
            ends = (after for before, after in pairwise(times) if after > since_ns and after - before > SILENCE_NS)
            return (next(ends, since_ns) - since_ns) / 1e6

        return wait_for(found, "the next acknowledgement")

    def longest_ms(self, since_ns: int) -> float:
        """The longest silence from then on."""
        return max(after - before for before, after in pairwise(self._acknowledged_ns()) if after > since_ns) / 1e6

    def end(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def takeover(folder: Path) -> Iterator[Row]:
    """From a fault of the primary to the next acknowledgement, and of a planned switch, while an MPI job runs.

    Raises RuntimeError where that job was harmed.
    """
    if not _can():
        return
    enough = folder / "enough"
    with pair(folder) as site:
        job = _submit_mpi(site, enough)
        steady = Steady(site.client, folder / "steady")
        for what, act, heal in (
            ("head killed", _kill, _nothing),
            ("machine of the head stopped", _stop, Host.go_on),
            ("machine of the head cut off", lambda host: _timed(site.net.cut, host), site.net.mend),
        ):
            row = Row(f"{what} → the next submission is acknowledged", "ms", "", "median 1,000, worst 1,500")
            row.beo = [_sample(site, steady, act, heal) for _ in range(TIMES)]
            yield row
        row = Row("`beo ha switchover`: the longest that a client at a steady pace hears nothing", "ms", "", "300")
        row.beo = [_switch_over(site, steady) for _ in range(SWITCHES)]
        yield row
        steady.end()
        enough.touch()
        _check_mpi(site, job)


def takeover_long(folder: Path) -> Iterator[Row]:
    """The same with a long journal."""
    if not _can():
        return
    with pair(folder) as site:
        said(site.client, "drain", ",".join(host.name for host in site.workers))  # else the jobs run meanwhile
        _fill(site, folder)
        steady = Steady(site.client, folder / "steady")
        row = Row(f"head killed, {JOBS:,} jobs in the journal → the next submission is acknowledged", "ms")
        row.beo = [_sample(site, steady, _kill, _nothing) for _ in range(LONG_TIMES)]
        steady.end()
        yield row


def _can() -> bool:
    return os.geteuid() == 0 and not missing()


@contextmanager
def pair(folder: Path, heads: int = 2, workers: int = 3) -> Iterator[Site]:
    """A cluster on hosts, in step where it has two heads."""
    with network(folder, 0) as net:
        site = Site(net, folder, heads, workers, lambda _: HEAD, disk_bytes=DISK_BYTES)
        if heads > 1:
            site.await_step()
        yield site


def _sample(site: Site, steady: Steady, act: Callable[[Host], int], heal: Callable[[Host], object]) -> float:
    primary = site.primary
    gap_ms = steady.gap_ms(act(primary))
    heal(primary)
    site.await_step()
    return gap_ms


def _timed(act: Callable[[Host], object], host: Host) -> int:
    since_ns = now_ns()
    act(host)
    return since_ns


def _kill(host: Host) -> int:
    pids = host.daemons("head")
    since_ns = now_ns()
    kill(pids)
    return since_ns


def _stop(host: Host) -> int:
    pids = host.daemons("head")
    since_ns = now_ns()
    send(pids, signal.SIGSTOP)
    host.stop()
    return since_ns


def _nothing(_: Host) -> None:
    """A supervisor has started another head."""


def _switch_over(site: Site, steady: Steady) -> float:
    before = site.primary
    since_ns = now_ns()
    done = before.beo("ha", "switchover")
    if done.returncode:
        raise RuntimeError(done.stderr)
    wait_for(lambda: site.primary != before, "the other head acts")
    time.sleep(AFTER_S)
    site.await_step()
    return steady.longest_ms(since_ns)


def _submit_mpi(site: Site, enough: Path) -> str:
    words = ["submit", "-q", "-n", "2", "-N", "2", sys.executable, "-c", PINGPONG, str(enough)]
    job = site.said(*words).strip()
    wait_for(lambda: "running" in site.said("queue", job), "the MPI job runs")
    return job


def _check_mpi(site: Site, job: str) -> None:
    """Raise RuntimeError where the take-overs did anything to the job."""
    site.said("wait", job)
    lines = sorted(site.said("logs", job).splitlines())
    [row] = msgspec.json.decode(site.said("queue", "--all", "--json", job))
    if lines != ["rank 0 right", "rank 1 right"] or row["attempt"] != 1:
        raise RuntimeError(f"the MPI job was harmed: {lines}, {row}")


def _fill(site: Site, folder: Path) -> None:
    """Submit so many jobs, from where the load client can reach the head."""
    load = Loaded(site.client, folder)
    count = 0
    while count < JOBS:
        count += load.rate(ORDER_S, WINDOW)[0]
    load.end()


class Loaded:
    """A load client (load.py) on a host: submissions as fast as they go."""

    def __init__(self, host: Host, folder: Path) -> None:
        """Start it."""
        words = [sys.executable, "-m", "tests.bench.load", str(host.beo_dir)]
        errors = (folder / "load.errors").open("wb")
        self._process = host.start(*words, stdin=subprocess.PIPE, stderr=errors)
        assert self._process.stdout
        if self._process.stdout.readline().strip() != READY:
            raise RuntimeError(f"a client doesn't start: see {errors.name}")

    def rate(self, seconds: float, window: int) -> tuple[int, float]:
        """How many were acknowledged in so many seconds with so many under way; the median wait, ms."""
        assert self._process.stdin and self._process.stdout
        order = Rate(time.monotonic() + stage.JOIN_S, seconds, window, "small")
        self._process.stdin.write(f"{msgspec.json.encode(order).decode()}\n")
        self._process.stdin.flush()
        rated = msgspec.json.decode(self._process.stdout.readline(), type=Rated)
        return rated.count, rated.p50_ms

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def duplex(folder: Path) -> Iterator[Row]:
    """Two heads in step beside one, in turn, in one run: CPU at rest, and durable submissions."""
    if not _can():
        return
    (folder / "two").mkdir()
    (folder / "one").mkdir()
    with pair(folder / "two", workers=1) as two, pair(folder / "one", heads=1, workers=1) as one:
        idle = Row("CPU of the heads at rest, two in step", "%", "one head")
        for _ in range(IDLES):
            for site, samples in ((two, idle.beo), (one, idle.bare)):
                samples.append(_cpu_percent(site))
        yield idle
        loads = [Loaded(site.client, folder / name) for site, name in ((two, "two"), (one, "one"))]
        for window in (1, 8, WINDOW):
            rates = Row(f"durable submissions to two heads in step: {window} under way", "1/s", "one head", "half")
            waits = Row(f"submission to answer, two heads in step: {window} under way, median", "ms", "one head", "2 ×")
            for _ in range(REPEATS):
                for load, counts, medians in (
                    (loads[0], rates.beo, waits.beo),
                    (loads[1], rates.bare, waits.bare),
                ):
                    count, p50_ms = load.rate(1.0, window)
                    counts.append(count)
                    medians.append(p50_ms)
            yield rates
            yield waits
        for load in loads:
            load.end()


def _cpu_percent(site: Site) -> float:
    pids = [pid for host in site.heads for pid in host.daemons("head")]
    before_s = sum(map(stage.cpu_s, pids))
    time.sleep(IDLE_S)
    return 100 * (sum(map(stage.cpu_s, pids)) - before_s) / IDLE_S
