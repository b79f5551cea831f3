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
from typing import NamedTuple

from beo.worker.copies import MODULE
from tests.bench import stage, table
from tests.cluster import Cluster, running, wait_for

RANKS = 2
SIZE = 150_000_000  # bytes of each rank: a copy takes some seconds
OFTEN_S, NEVER_S = 25.0, 5.0  # between two copies, from beginning to beginning: three times as long as one takes
ROUNDS = 7
LEAST_STEPS = 30  # of each rank, for a sample
OFTEN, NEVER = 100, 1_000_000_000  # steps between two checkpoints
PROGRAM = str(stage.ROOT / "tests" / "bench" / "working.py")

Step = tuple[float, float]  # when it ended, and how long it took


class Copy(NamedTuple):
    """When copies were made, and the CPU time that took: on all nodes, and of the head with its tree."""

    began_s: float
    ended_s: float
    nodes_s: float
    head_s: float


def flush(folder: Path) -> Iterator[table.Row]:
    """How long a step takes with and without a copy under way."""
    yield from _flush(folder / "often", "a step of a job whose checkpoint is being copied to the head", OFTEN, OFTEN_S)
    yield from _flush(
        folder / "never", "a step while a checkpoint is copied that is as it was at the last copy", NEVER, NEVER_S
    )


def _flush(folder: Path, what: str, every: int, copy_s: float) -> Iterator[table.Row]:
    row = table.Row(what, "ms", "before and after", "1.05 ×")
    slowed = table.Row("the same: by how much it is longer, pair by pair", "%", "", "5 %")
    used = table.Row("the same: what a copy takes of CPU, on each node", "s")
    share = table.Row("the same: of one core, while it is made", "%")
    head = table.Row("the same: what the head with its tree takes of one core meanwhile", "%")
    delay = table.Row("the same: by how much a copy delays the job", "s")
    log = folder / "steps"
    settings = f"checkpoint_copy_s = {copy_s}\n"
    folder.mkdir()
    with running(folder / "beo", workers=RANKS, slots=1, settings=settings) as cluster:
        job = cluster.submit([sys.executable, PROGRAM, str(SIZE), str(log), str(every)], ranks=RANKS)
        wait_for(lambda: all(len(_steps(log, rank)) > 2 * LEAST_STEPS for rank in range(RANKS)), "it computes", 120.0)
        if every == NEVER:
            cluster.beo("ckpt", "take", str(job))
            _copied(cluster)  # it may have begun before
            _copied(cluster)
        copied = [_copied(cluster) for _ in range(ROUNDS)]
        time.sleep(copied[-1].ended_s - copied[-1].began_s)
        cluster.beo("cancel", str(job))
        cluster.wait(job)
    steps = [step for rank in range(RANKS) for step in _steps(log, rank)]
    for one in copied:
        length_s = one.ended_s - one.began_s
        used.beo.append(one.nodes_s / RANKS)
        share.beo.append(100 * one.nodes_s / RANKS / length_s)
        head.beo.append(100 * one.head_s / length_s)
        during = _mean_ms(steps, one.began_s, one.ended_s)
        around = [
            _mean_ms(steps, one.began_s - length_s, one.began_s),
            _mean_ms(steps, one.ended_s, one.ended_s + length_s),
        ]
        if during and all(around):
            row.beo.append(during)
            row.bare.append(sum(around) / 2)
            slowed.beo.append(100 * (during / row.bare[-1] - 1))
            delay.beo.append(length_s * (1 - row.bare[-1] / during))
    yield from (row, slowed, delay, used, share, head)


def _copied(cluster: Cluster) -> Copy:
    """Wait until the next copies have been made."""
    agents = {cluster.pid(f"node{number + 1:02d}") for number in range(RANKS)}
    head = cluster.pid("head")

    def used_s() -> tuple[float, float]:
        # The tree's process is a child of the head that is started when it is first asked for.
        return sum(map(stage.ended_cpu_s, agents)), sum(map(stage.cpu_s, [head, *_children({head})]))

    def is_made() -> bool:
        now = _children(agents, MODULE)
        seen.update(now)
        return not now

    def are_reaped() -> bool:
        return not any(Path(f"/proc/{pid}").exists() for pid in seen)

    seen: set[int] = set()
    wait_for(is_made, "the copy before is made", 120.0)
    wait_for(are_reaped, "their agents have noticed")
    nodes_s, _ = used_s()
    wait_for(lambda: not is_made(), "a copy is being made", 120.0)
    began_s, (_, head_s) = time.time(), used_s()
    wait_for(is_made, "the copy is made", 120.0)
    ended_s, (_, head_after_s) = time.time(), used_s()
    wait_for(are_reaped, "their agents have noticed")
    return Copy(began_s, ended_s, used_s()[0] - nodes_s, head_after_s - head_s)


def _children(parents: set[int], module: str = "") -> list[int]:
    """The processes that these have started, of a module."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            if stage.parent(int(name)) in parents and module in Path(f"/proc/{name}/cmdline").read_text():
                found.append(int(name))
    return found


def _steps(log: Path, rank: int) -> list[Step]:
    path = log.with_name(f"{log.name}-{rank}")
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(ended), float(took)) for ended, took in (line.split() for line in lines[:-1])]


def _mean_ms(steps: list[Step], low_s: float, high_s: float) -> float:
    took = [took_s for ended_s, took_s in steps if low_s < ended_s <= high_s]
    return 1e3 * sum(took) / len(took) if len(took) >= LEAST_STEPS * RANKS else 0.0
