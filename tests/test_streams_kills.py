"""Output and input pass every kill: what follows a job reconnects by itself, with no line lost and none doubled."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import PATIENCE_S, Cluster, kill, running, wait_for

LINES = 100  # in one burst of one rank, and as many bytes in each

# Bursts of numbered lines on stdout, and the number of each burst on stderr, until a file appears.
TALKER = f"""
import os, sys, time
rank, burst = os.environ["BEO_RANK"], 0
while not os.path.exists(sys.argv[1]):
    lines = (f"{{rank}} {{burst * {LINES} + k}}".ljust({LINES - 1}) for k in range({LINES}))
    sys.stdout.write("\\n".join(lines) + "\\n")
    sys.stdout.flush()
    print(rank, burst, file=sys.stderr, flush=True)
    burst += 1
    time.sleep(0.02)
"""
ECHO = """
import sys
for line in sys.stdin:
    print(line, end="", flush=True)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("streams") / "beo") as made:
        yield made


def check_numbered(text: str, ranks: int, lines_min: int) -> None:
    """Every rank's lines are there from 0 on, each once, in order; at least so many."""
    said: dict[str, list[int]] = {str(rank): [] for rank in range(ranks)}
    for line in text.splitlines():
        rank, number = line.split()
        said[rank].append(int(number))
    for rank, numbers in said.items():
        assert numbers == list(range(len(numbers))), f"rank {rank}"
        assert len(numbers) >= lines_min, f"rank {rank}"


def grown(path: Path, least_bytes: int) -> None:
    """Wait until a file has grown by so much."""
    before_bytes = path.stat().st_size
    wait_for(lambda: path.stat().st_size >= before_bytes + least_bytes, f"{path.name} grows")


def test_logs_f_and_run_lose_and_double_no_line_while_head_and_agents_are_killed(
    cluster: Cluster, tmp_path: Path
) -> None:
    enough, kept = tmp_path / "enough", tmp_path / "kept"
    talker = [sys.executable, "-c", TALKER, str(enough)]
    job = cluster.submit(talker, ranks=2, nodes=2, output=str(kept))
    files = [tmp_path / name for name in ("logs", "run")]
    errors = [tmp_path / f"{name}-errors" for name in ("logs", "run")]
    follower, runner = (
        cluster.start(*words, stdout=out.open("wb"), stderr=err.open("wb"))
        for words, out, err in zip((["logs", "-f", str(job)], ["run", *talker]), files, errors, strict=True)
    )
    for victims in (["head"], ["node01", "node02"], ["head", "node01"]):
        for file in files:
            grown(file, 20 * LINES * LINES)
        cluster.kill_and_await(*victims)
    for file in files:
        grown(file, 20 * LINES * LINES)
    enough.touch()
    for process in (follower, runner):
        assert process.wait(PATIENCE_S) == 0
    check_numbered(files[0].read_text(), ranks=2, lines_min=20 * LINES)
    check_numbered(files[1].read_text(), ranks=1, lines_min=20 * LINES)
    for file, ranks in zip(errors, (2, 1), strict=True):
        said = [line for line in file.read_text().splitlines() if not line.startswith("beo: ")]
        check_numbered("\n".join(said), ranks, lines_min=20)
    done = cluster.beo("logs", str(job))
    assert (done.stdout, done.returncode) == (files[0].read_text(), 0)
    wait_for(lambda: kept.stat().st_size == len(done.stdout) + len(done.stderr), "the -o file is complete")
    assert cluster.job(job).attempt == 1


def test_run_passes_its_input_on_once_and_its_exit_code_back_over_a_killed_head_and_agent(cluster: Cluster) -> None:
    runner = cluster.start("run", sys.executable, "-c", ECHO, stdin=subprocess.PIPE)
    assert runner.stdin and runner.stdout and runner.stderr
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(runner.stdout or ()))
    reader.start()
    sent = 0
    for victims in ([], ["head"], ["node01", "node02"], ["head"]):
        if victims:
            cluster.kill_and_await(*victims)
        for _ in range(LINES):
            runner.stdin.write(f"{sent}\n")
            sent += 1
        runner.stdin.flush()
        wait_for(lambda: len(said) == sent, f"all {sent} lines come back")  # noqa: B023  # called at once
    runner.stdin.close()
    assert runner.wait(PATIENCE_S) == 7, runner.stderr.read()
    reader.join()
    assert said == [f"{k}\n" for k in range(sent)]
    runner.stdout.close()
    runner.stderr.close()


def test_wait_rides_out_a_killed_head_and_exits_with_the_jobs_code(cluster: Cluster, tmp_path: Path) -> None:
    enough = tmp_path / "enough"
    job = cluster.submit(["sh", "-c", f"while [ ! -e {enough} ]; do sleep 0.05; done; exit 9"])
    cluster.wait_for_state(job, "running")
    waiter = cluster.start("wait", str(job))
    cluster.kill_and_await("head")
    assert waiter.poll() is None
    enough.touch()
    _, err = waiter.communicate(timeout=PATIENCE_S)
    assert waiter.returncode == 9, err


def test_logs_f_goes_on_with_the_next_attempt(cluster: Cluster, tmp_path: Path) -> None:
    enough, file = tmp_path / "enough", tmp_path / "logs"
    job = cluster.submit([sys.executable, "-c", TALKER, str(enough)], requeue="auto")
    follower = cluster.start("logs", "-f", str(job), stdout=file.open("wb"))
    grown(file, LINES * LINES)
    kill([cluster.warden_of(cluster.ranks(job)[0])])
    cluster.wait_for_state(job, "running", attempt=2)
    grown(file, 5 * LINES * LINES)
    enough.touch()
    _, err = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0, err
    numbers = [int(line.split()[1]) for line in file.read_text().splitlines()]
    second = numbers.index(0, 1)
    assert numbers[:second] == list(range(second)) and numbers[second:] == list(range(len(numbers) - second))
    assert "beo: attempt 1 ended" in err and "attempt 2 follows" in err
