"""The control plane: submissions, jobs, restarts, memory; each beside a bare loop in the same run."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from tests.bench import stage
from tests.bench.stage import PYTHON, Load, Served
from tests.bench.table import Row
from tests.cluster import Cluster, wait_for

RATE_S = 0.5
REPEATS = 5
WINDOW = 64  # submissions under way in a client that doesn't wait for each
JOBS = 1_000
RECOVERIES = 10
QUEUED = 10_000
FLOOR_STARTS = 2_000
OWNERS = 2
OWNERS_REPEATS = 3
SPAWNER = Path(__file__).with_name("spawner.py")


def submissions(folder: Path) -> Iterator[Row]:
    """Durable submissions per second, to a head without workers, which has nothing else to do."""
    rows = []
    with ExitStack() as ends:
        head = ends.enter_context(stage.head(folder / "head"))
        bare = ends.enter_context(stage.bare(folder / "bare"))
        loads = [ends.enter_context(stage.loading(served.home, 8)) for served in (head, bare)]
        for clients, window, environment, aim in (
            (1, 1, "small", "bare: 5,600"),
            (1, 1, "login", ""),
            (8, 1, "small", ""),
            (8, 1, "login", ""),
            (8, 8, "small", "bare: 22,000"),
            (1, WINDOW, "small", ""),
            (1, WINDOW, "login", ""),
        ):
            who = f"{clients} client{'s' * (clients > 1)}, {window} under way"
            row = Row(f"durable submissions: {who}, {environment} environment", "1/s", "loop", aim)
            waits = Row(f"submission to answer: {who}, {environment} environment, median", "ms", "loop")
            for _ in range(REPEATS):
                for load, rates, medians_ms in ((loads[0], row.beo, waits.beo), (loads[1], row.bare, waits.bare)):
                    results = load.rate(clients, RATE_S, window, environment)
                    rates.append(sum(result.count for result in results) / RATE_S)
                    medians_ms.append(statistics.median(result.p50_ms for result in results))
            rows += [row, waits] if (clients, window) == (1, 1) else [row]
    yield from rows


def jobs(folder: Path) -> Iterator[Row]:
    """Separate `true` jobs per second, from the first submission to the last end."""
    floor = Row("the floor: posix_spawn of `true`, two threads", "1/s", "no cluster")
    for slots, environment in ((2, "small"), (8, "small"), (8, "login")):
        row = Row(f"`true` jobs: 2 workers × {slots} slots, {environment} environment", "1/s", "loop + posix_spawn")
        row.aim = "bare: 2,000-2,700"
        used = Row(f"CPU of the head per job: × {slots} slots, {environment} environment", "ms", "loop")
        agents = Row(f"CPU of the agents per job: × {slots} slots, {environment} environment", "ms")
        with ExitStack() as ends:
            cluster = ends.enter_context(stage.cluster(folder / f"{slots}-{environment}", slots))
            bare = ends.enter_context(stage.bare(folder / f"bare-{slots}-{environment}", 2 * slots))
            real = ends.enter_context(stage.loading(cluster.home))
            loop = ends.enter_context(stage.loading(bare.home))
            heads, workers = [cluster.pid("head")], [cluster.pid("node01"), cluster.pid("node02")]
            for _ in range(REPEATS):
                with _cpu(heads, JOBS, used.beo), _cpu(workers, JOBS, agents.beo):
                    row.beo.append(JOBS / real.batch(JOBS, WINDOW, environment).seconds)
                with _cpu([bare.pid], JOBS, used.bare):
                    row.bare.append(JOBS / loop.batch(JOBS, WINDOW, environment).seconds)
                floor.bare.append(_floor())
        yield row
        yield used
        yield agents
    yield floor


def owners(folder: Path) -> Iterator[Row]:
    """`true` jobs of two users in turn, beside those of one: a rank of another user is forked, not spawned."""
    if os.geteuid() != 0:
        return  # a worker that isn't root runs nobody else's jobs
    row = Row("`true` jobs of two users in turn: 2 workers × 8 slots", "1/s", "of one user")
    with ExitStack() as ends:
        cluster = ends.enter_context(stage.cluster(folder / "cluster", 8))
        load = ends.enter_context(stage.loading(cluster.home))
        for _ in range(OWNERS_REPEATS):
            row.beo.append(JOBS / load.batch(JOBS, WINDOW, "small", OWNERS).seconds)
            row.bare.append(JOBS / load.batch(JOBS, WINDOW, "small").seconds)
    yield row


class _cpu:
    def __init__(self, pids: list[int], count: int, into: list[float]) -> None:
        self._pids, self._count, self._into = pids, count, into

    def __enter__(self) -> None:
        self._before_s = sum(map(stage.cpu_s, self._pids))

    def __exit__(self, *_: object) -> None:
        self._into.append(1e3 * (sum(map(stage.cpu_s, self._pids)) - self._before_s) / self._count)


def _floor() -> float:
    return float(subprocess.check_output([PYTHON, "-I", "-S", str(SPAWNER), str(FLOOR_STARTS)]))


def recovery(folder: Path) -> Iterator[Row]:
    """From `kill -9` until a head answers again, and until an agent has given its next sign of life."""
    heads = Row("head killed → answers again", "ms", "loop, started at once", "issue: a median of 10")
    agents = Row("agent killed → its node gives signs of life again", "ms")
    with ExitStack() as ends:
        cluster = ends.enter_context(stage.cluster(folder / "cluster"))
        bare = ends.enter_context(stage.bare(folder / "bare"))
        for _ in range(RECOVERIES):
            _new_supervisor(cluster)
            heads.beo.append(_time_ms(lambda: cluster.kill("head"), lambda: stage.await_answer(cluster.home)))
            heads.bare.append(_time_ms(bare.kill, bare.start))
            agents.beo.append(_agent_back_ms(cluster, "node01"))
    yield heads
    yield agents


def _new_supervisor(cluster: Cluster) -> None:
    """One that hasn't seen any daemon end: its delay for those that end again and again is not what is measured."""
    cluster.kill("supervisor")
    cluster.up()


def _time_ms(*acts: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    for act in acts:
        act()
    return 1e3 * (time.perf_counter() - began_s)


def _agent_back_ms(cluster: Cluster, node: str) -> float:
    with cluster.client() as own:
        own.info()
        began_s = time.monotonic()
        cluster.kill(node)

        def heard() -> bool:
            asked_s = time.monotonic()
            view = next(view for view in own.nodes() if view.name == node)
            return view.state == "up" and asked_s - view.silent_s > began_s

        wait_for(heard, f"{node} is back")
        return 1e3 * (time.monotonic() - began_s)


def memory(folder: Path) -> Iterator[Row]:
    """Memory (PSS) of the daemons at rest, and of a head with a long queue."""
    with ExitStack() as ends:
        cluster = ends.enter_context(stage.cluster(folder / "cluster"))
        bare = ends.enter_context(stage.bare(folder / "bare"))
        head = ends.enter_context(stage.head(folder / "head"))
        wait_for(lambda: cluster.wardens("node01"), "a spare warden")
        bare_mb = [stage.pss_bytes(bare.pid) / 1e6]
        yield Row("memory of a head at rest", "MB", "loop", "60", [_mb(cluster.pid("head"))], bare_mb)
        yield Row("memory of an agent at rest", "MB", "", "30", [_mb(cluster.pid("node01"))])
        wardens = cluster.wardens("node01")
        nothing = subprocess.Popen([PYTHON, "-I", "-S", str(SPAWNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert nothing.stdin and nothing.stdout
            nothing.stdin.write(b".")
            nothing.stdin.flush()
            nothing.stdout.read(1)  # by now it has loaded all that it loads
            row = Row("memory of a spare warden, both processes", "MB", "two idle `python -I -S`", "5 each")
            row.beo = [sum(map(_mb, wardens))]
            row.bare = [2 * _mb(nothing.pid)]
            yield row
            job = cluster.submit(["/bin/sleep", "1000"])
            (rank,) = wait_for(lambda: list(cluster.ranks(job).values()), "a rank")
            keeper = cluster.warden_of(rank)
            pair = [pid for node in ("node01", "node02") for pid in cluster.wardens(node)]
            pair = [pid for pid in pair if pid == keeper or stage.parent(pid) == keeper]
            yield Row(
                "memory of a warden at work, both processes",
                "MB",
                row.bare_is,
                "5 each",
                [sum(map(_mb, pair))],
                row.bare,
            )
        finally:
            nothing.kill()
            nothing.communicate()
        yield from _queue_memory(head)


def _queue_memory(head: Served) -> Iterator[Row]:
    for nth, environment in enumerate(("small", "login"), 1):
        with stage.loading(head.home) as load:
            before_mb = _mb(head.pid)
            count = _submit(load, environment)
            grown_kb = 1e3 * (_mb(head.pid) - before_mb) / count
        yield Row(f"memory of the head per queued job, {environment} environment", "kB", "", "10", [grown_kb])
        name = f"memory of a head with {nth * QUEUED:,} queued jobs or more"
        yield Row(name, "MB", "", "100 with 10,000" if nth == 1 else "", [_mb(head.pid)])


def _submit(load: Load, environment: str) -> int:
    count = 0
    while count < QUEUED:
        count += load.rate(1, RATE_S, WINDOW, environment)[0].count
    return count


def _mb(pid: int) -> float:
    return stage.pss_bytes(pid) / 1e6
