"""How soon a job with a gigabyte of state computes again: after kill -9 of a whole worker, and after a drain."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beo import nodeset
from beo.worker import remains
from tests.bench import stage, table
from tests.cluster import LEASE_S, Cluster, running, wait_for

RANKS = 3
SIZE = 341_000_000  # bytes of each rank: a gigabyte in all
ROUNDS = 3
PROGRAM = str(stage.ROOT / "tests" / "bench" / "stepping.py")


def restart(_: Path) -> Iterator[table.Row]:
    """On four nodes of this machine, one of them a spare; raid5."""
    lost: list[float] = []
    killed: list[float] = []
    moved: list[float] = []
    for _round in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="beo-bench-") as folder:
            with running(Path(folder) / "beo", workers=RANKS + 1, slots=1) as cluster:
                moved.append(_drained(cluster, Path(folder) / "steps-1"))
            with running(Path(folder) / "beo2", workers=RANKS + 1, slots=1) as cluster:
                since_kill_s, since_loss_s = _killed(cluster, Path(folder) / "steps-2")
                killed.append(since_kill_s)
                lost.append(since_loss_s)
    what = "a job of 3 × 341 MB computes again"
    yield table.Row(f"{what}, after its worker's loss was declared", "s", "", "3 s", lost, [])
    yield table.Row(f"{what}, after kill -9 of that worker, with a lease of {LEASE_S:g} s", "s", "", "", killed, [])
    yield table.Row(f"{what}, after `beo drain` of a node", "s", "", "", moved, [])


def _begin(cluster: Cluster, log: Path) -> int:
    job = cluster.submit([sys.executable, PROGRAM, str(SIZE), str(log)], ranks=RANKS, requeue="auto")
    wait_for(lambda: len(_steps(log)) > 120, "two checkpoints", 120.0)  # the slots are there
    return job


def _steps(log: Path) -> list[float]:
    """When each step was done, by the wall clock."""
    return [float(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def _again(cluster: Cluster, job: int, log: Path) -> float:
    """Return when the second attempt has done its first step."""
    cluster.wait_for_state(job, "running", 2)
    with cluster.client() as own:
        (detail,) = own.show((str(job),))
    started_s = next(attempt.started_s for attempt in detail.attempts if attempt.number == 2)

    def first() -> float:
        return next((time_s for time_s in _steps(log) if time_s > started_s), 0.0)

    return wait_for(first, "it computes again", 60.0)


def _end(cluster: Cluster, job: int) -> None:
    cluster.beo("cancel", str(job))
    cluster.wait(job)


def _drained(cluster: Cluster, log: Path) -> float:
    job = _begin(cluster, log)
    node = nodeset.expand(cluster.job(job).nodes)[-1]
    began_s = time.time()
    cluster.beo("drain", node)
    again_s = _again(cluster, job, log)
    _end(cluster, job)
    return again_s - began_s


def _killed(cluster: Cluster, log: Path) -> tuple[float, float]:
    job = _begin(cluster, log)
    node = nodeset.expand(cluster.job(job).nodes)[-1]
    cluster.kill("supervisor")  # or it would start the node again
    began_s = time.time()
    cluster.kill_worker(node)
    for vault in Path("/tmp").glob(f"{remains.mark(cluster.home.cluster().cluster, node)}-vaults-*"):
        for entry in vault.iterdir():
            shutil.rmtree(entry)
    again_s = _again(cluster, job, log)
    with cluster.client() as own:
        lost_s = next(row.time_s for row in own.journal() if row.kind == "NodeLost")
    _end(cluster, job)
    return again_s - began_s, again_s - lost_s
