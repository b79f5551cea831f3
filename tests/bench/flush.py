"""What it costs a running job that its checkpoints are copied to the head meanwhile.

One job computes on both cores of the machine, which are the head's too. Now and then its nodes' copies are made, no
faster than the default allows. How long a step takes while one is made is set beside how long it takes as long before
and after that: others who use the machine come and go more slowly.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from beo.worker.copies import MODULE
from tests.bench import stage, table
from tests.cluster import Cluster, running, wait_for

RANKS = 2
SIZE = 150_000_000  # bytes of each rank: a copy takes some seconds
EVERY_S = 10.0  # between two copies, from beginning to beginning
ROUNDS = 7
LEAST_STEPS = 30  # of each rank, for a sample
PROGRAM = str(stage.ROOT / "tests" / "bench" / "working.py")
SETTINGS = f"checkpoint_copy_s = {EVERY_S}\n"

Step = tuple[float, float]  # when it ended, and how long it took


def flush(folder: Path) -> Iterator[table.Row]:
    """How long a step takes with and without a copy under way."""
    row = table.Row("a step of a job whose checkpoint is being copied to the head", "ms", "before and after", "1.05 ×")
    slowed = table.Row("the same: by how much it is longer, pair by pair", "%", "", "5 %")
    used = table.Row("the same: what copying takes of one core, on each node", "%", "", "", [])
    log = folder / "steps"
    with running(folder / "beo", workers=RANKS, slots=1, settings=SETTINGS) as cluster:
        job = cluster.submit([sys.executable, PROGRAM, str(SIZE), str(log)], ranks=RANKS)
        wait_for(lambda: all(len(_steps(log, rank)) > 2 * LEAST_STEPS for rank in range(RANKS)), "it computes", 120.0)
        copied = [_copied(cluster) for _ in range(ROUNDS)]
        time.sleep(copied[-1][1] - copied[-1][0])
        cluster.beo("cancel", str(job))
        cluster.wait(job)
    steps = [step for rank in range(RANKS) for step in _steps(log, rank)]
    for began_s, ended_s, cpu_s in copied:
        used.beo.append(100 * cpu_s / RANKS / (ended_s - began_s))
        during = _mean_ms(steps, began_s, ended_s)
        length_s = ended_s - began_s
        around = [_mean_ms(steps, began_s - length_s, began_s), _mean_ms(steps, ended_s, ended_s + length_s)]
        if during and all(around):
            row.beo.append(during)
            row.bare.append(sum(around) / 2)
            slowed.beo.append(100 * (during / row.bare[-1] - 1))
    yield row
    yield slowed
    yield used


def _copied(cluster: Cluster) -> tuple[float, float, float]:
    """Wait for the next copies; return from when to when they were made, and what CPU time that took."""
    agents = {cluster.pid(f"node{number + 1:02d}") for number in range(RANKS)}
    wait_for(lambda: not _keepers(agents), "the copy before is made", 120.0)
    wait_for(lambda: _keepers(agents), "a copy is being made", 120.0)
    began_s = time.time()
    used: dict[int, float] = {}

    def is_made() -> bool:
        now = _keepers(agents)
        used.update(now)
        return not now

    wait_for(is_made, "the copy is made", 120.0)
    return began_s, time.time(), sum(used.values())


def _keepers(agents: set[int]) -> dict[int, float]:
    """The processes that copy for these agents, and their CPU time so far."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            line = Path(f"/proc/{name}/cmdline").read_bytes()
            if MODULE.encode() in line and stage.parent(int(name)) in agents:
                found[int(name)] = stage.cpu_s(int(name))
    return found


def _steps(log: Path, rank: int) -> list[Step]:
    path = log.with_name(f"{log.name}-{rank}")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(ended), float(took)) for ended, took in (line.split() for line in lines[:-1])]


def _mean_ms(steps: list[Step], low_s: float, high_s: float) -> float:
    took = [took_s for ended_s, took_s in steps if low_s < ended_s <= high_s]
    return 1e3 * sum(took) / len(took) if len(took) >= LEAST_STEPS * RANKS else 0.0
