"""The head is killed, stopped and restarted under all that clients and jobs do: nobody notices more than a pause."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from beo import contact, submission
from beo.client import Cluster as Client
from tests.cluster import LEASE_S, Cluster, running, send, wait_for
from tests.doses import dose
from tests.history import History

KILLS = 6
KILLS_SLOW = dose(300)
SEED = 20261122
LIFE_MIN_S, LIFE_MAX_S = 0.05, 0.6  # of a head that answers, until it is killed
CLIENTS = 2
PACE_MAX_S = 0.12  # between two submissions of a client
LINE_S = 0.02  # between two lines of what is followed

# A line each LINE_S until a file appears.
CHATTER = f"""
import os, sys, time
line = 0
while not os.path.exists(sys.argv[1]):
    print("line", line, flush=True)
    line += 1
    time.sleep({LINE_S})
"""
# Two ranks that exchange growing numbers until rank 0 sees the file; a lost, doubled or wrong one shows in the sum.
PINGPONG = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
total, rounds, on, other = 0, 0, True, 1 - world.rank
while on:
    total += world.sendrecv(rounds * (world.rank + 1), dest=other, source=other)
    rounds += 1
    on = world.bcast(not os.path.exists(sys.argv[1]))
print("rank", world.rank, "right" if total == sum(range(rounds)) * (other + 1) else "wrong", flush=True)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("head") / "beo", slots=4) as made:
        yield made


class Submitters:
    """Client threads that submit short jobs until they are told to stop, over whatever happens to the head."""

    def __init__(self, cluster: Cluster, history: History, seed: int) -> None:
        self._cluster, self._history = cluster, history
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self.longest_s = 0.0
        self._threads = [threading.Thread(target=self._run, args=(k, random.Random(seed + k))) for k in range(CLIENTS)]

    def __enter__(self) -> Submitters:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _run(self, number: int, dice: random.Random) -> None:
        try:
            with self._cluster.client() as own:
                count = 0
                while not self._stop.wait(dice.uniform(0, PACE_MAX_S)):
                    self._submit(own, f"{number}-{count}", dice)
                    count += 1
        except BaseException as error:
            self._errors.append(error)

    def _submit(self, own: Client, tag: str, dice: random.Random) -> None:
        spec = submission.new_spec(
            self._history.argv(tag, dice.uniform(0, 0.1)), cwd="/tmp", env={"PATH": "/bin:/usr/bin"}
        )
        key = contact.new_key()
        began_s = time.monotonic()
        for _ in range(1 + (dice.random() < 0.2)):  # now and then once more, as after an answer that was lost
            self._history.acknowledged(tag, own.submit(spec, key))
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(KILLS, marks=pytest.mark.timeout(240)),
        pytest.param(KILLS_SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(1_500)]),
    ],
)
def test_many_kills_of_the_head_lose_no_job_and_no_line(cluster: Cluster, tmp_path: Path, kills: int) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    history = History(tmp_path / "notes")
    enough = tmp_path / "enough"
    long_ones = {f"long-{k}" for k in range(3)}
    for tag in sorted(long_ones):
        history.acknowledged(tag, cluster.submit(history.argv(tag)))
    mpi = cluster.submit([sys.executable, "-c", PINGPONG, str(enough)], ranks=2, nodes=2)
    chatter = cluster.submit([sys.executable, "-c", CHATTER, str(enough)])
    for job in (mpi, chatter):
        cluster.wait_for_state(job, "running")
    reader = cluster.start("logs", "-f", str(chatter), stdout=(tmp_path / "said").open("wb"))
    waiter = cluster.start("wait", str(mpi), str(chatter))
    runner = cluster.start("run", sys.executable, "-c", CHATTER, str(enough), stdout=(tmp_path / "run").open("wb"))
    wait_for(lambda: (tmp_path / "run").stat().st_size, "beo run prints")

    def submit(own: Client, tag: str) -> None:
        history.acknowledged(tag, own.submit(submission.new_spec(history.argv(tag, 0))))

    cluster.kill("supervisor")  # it would wait longer and longer before it starts a head that ends so often
    with Submitters(cluster, history, SEED) as submitters, cluster.client() as own:
        for k in range(kills):
            time.sleep(dice.uniform(LIFE_MIN_S, LIFE_MAX_S))
            # Every other one dies on the very acknowledgement: nothing may have been said that isn't durable.
            cluster.kill_head_and_restart(partial(submit, own, f"last-word-{k}") if k % 2 else lambda: None)
    print(f"{len(history.jobs)} jobs acknowledged, the slowest after {submitters.longest_s:.2f} s")
    cluster.up()
    enough.touch()

    assert len(history.jobs) > kills
    cluster.check(history, adopted=long_ones)
    for process in (reader, waiter, runner):
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    for name in ("said", "run"):
        lines = (tmp_path / name).read_text().splitlines()
        assert lines == [f"line {k}" for k in range(len(lines))] and len(lines) > 100
    assert cluster.output(chatter) == (tmp_path / "said").read_text()
    for job in (mpi, chatter):
        assert (cluster.job(job).state, cluster.job(job).attempt) == ("done", 1)
    assert sorted(cluster.output(mpi).splitlines()) == ["rank 0 right", "rank 1 right"]


def test_a_head_that_was_stopped_for_longer_than_the_lease_loses_nobody(cluster: Cluster, tmp_path: Path) -> None:
    history = History(tmp_path / "notes")
    for tag in ("auto", "confirm"):
        history.acknowledged(tag, cluster.submit(history.argv(tag), requeue=tag))
        wait_for(lambda tag=tag: history.lives(tag), "the job lives")  # type: ignore[misc]
    head = cluster.pid("head")
    before = {node: cluster.node(node).incarnation for node in ("node01", "node02")}
    send([head], signal.SIGSTOP)
    time.sleep(LEASE_S + 0.5)  # the time itself is what is tested
    send([head], signal.SIGCONT)
    cluster.wait_for_head()
    for node in before:
        cluster.wait_for_node(node, "up")
    auto, _ = history.jobs
    cluster.wait_for_state(auto, "running", attempt=2)  # its leash had run out
    cluster.check(history, adopted=["confirm"])
    assert cluster.pid("head") == head
