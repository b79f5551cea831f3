"""Which processes are dumped of a job whose ranks move."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.worker.moving import HOLDER, ranks_of
from tests.cluster import wait_for

WAITS = "import time; print(flush=True); time.sleep(60)"


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[dict[tuple[int, int], int]]:
    """What looks like holders of ranks of two attempts on one node: (attempt, rank) -> process."""
    found = {}
    for attempt, rank in ((1, 0), (2, 0), (2, 1)):
        env = {**os.environ, "BEO_ATTEMPT": str(attempt), "BEO_RANK": str(rank)}
        argv = [sys.executable, "-c", WAITS, HOLDER, str(tmp_path), "--"]
        found[attempt, rank] = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL)
    yield {key: process.pid for key, process in found.items()}
    for process in found.values():
        process.kill()
        process.wait()


def test_ranks_of_the_next_attempt_are_not_dumped_for_one_that_was_lost(
    tmp_path: Path, holders: dict[tuple[int, int], int]
) -> None:
    wait_for(lambda: len(ranks_of(str(tmp_path), 2)) == 2, "they have begun")
    assert ranks_of(str(tmp_path), 1) == {0: holders[1, 0]}
    assert ranks_of(str(tmp_path), 2) == {0: holders[2, 0], 1: holders[2, 1]}
    assert ranks_of(str(tmp_path), 3) == {}
