"""An agent is killed: what runs on its node does not notice, not even MPI programs that talk across it."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ROOT, Cluster, kill, running, send, wait_for
from tests.doses import dose
from tests.history import History
from tests.test_head_kills import CHATTER, Submitters

NODES = ("node01", "node02")
HEAT = ("jobs/heat2d.py", "--n", "64")
HEAT_S = 4.0
SEED = 4  # of the moments of killing
KILLS, KILLS_SLOW = 6, dose(100)

# Rank 1 holds back until it is told, so that rank 0 waits for it inside MPI_Init, which `import MPI` calls.
HELD_BACK = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
rank = os.environ["BEO_RANK"]
(folder / rank).touch()
while rank == "1" and not (folder / "go").exists():
    time.sleep(0.005)
from mpi4py import MPI
print("sum", MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank + 1), flush=True)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("agent") / "beo") as made:
        yield made


def test_a_killed_agent_comes_back_as_the_same_incarnation_at_the_same_address(cluster: Cluster) -> None:
    before = {node: (cluster.node(node).incarnation, cluster.node(node).address) for node in NODES}
    cluster.kill_and_await(*NODES)
    for node in NODES:
        cluster.wait_for_node(node, "up")
        assert (cluster.node(node).incarnation, cluster.node(node).address) == before[node]


def test_an_mpi_job_over_two_nodes_computes_the_same_while_both_agents_are_killed(cluster: Cluster) -> None:
    job = cluster.submit([sys.executable, *HEAT, "--seconds", str(HEAT_S), "--report-every", "100"], ranks=2, nodes=2)
    wait_for(lambda: "step 100 " in cluster.output(job), "the job computes")
    ranks = cluster.ranks(job)
    cluster.kill_and_await("node01")
    cluster.kill_and_await(*NODES)
    assert cluster.job(job).state == "running", "it ended before all was killed: make it longer"
    [view] = cluster.wait(job)
    assert (view.state, view.exit_code, view.attempt) == ("done", 0, 1), view.reason
    assert len(ranks) == 2
    result = re.search(r"^steps (\d+) checksum (\w+) error", cluster.output(job), re.MULTILINE)
    assert result
    alone = subprocess.run(
        [sys.executable, *HEAT, "--steps", result[1]], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert f"steps {result[1]} checksum {result[2]} error" in alone.stdout


@pytest.mark.parametrize("victim", [0, 1], ids=["of_the_rank_that_waits", "of_the_rank_that_comes"])
def test_an_agent_killed_during_mpi_init_is_waited_for(cluster: Cluster, tmp_path: Path, victim: int) -> None:
    job = cluster.submit([sys.executable, "-c", HELD_BACK, str(tmp_path)], ranks=2, nodes=2)
    wait_for(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "both ranks run")
    rank0 = cluster.ranks(job)[0]
    wait_for(lambda: "mpi" in Path(f"/proc/{rank0}/maps").read_text(), "rank 0 loads MPI")
    with cluster.client() as own:
        [detail] = own.show([str(job)])
    node = next(node for node, first, _, _ in detail.attempts[0].parts if first == victim)
    old = cluster.pid(node)
    kill([old])
    (tmp_path / "go").touch()
    [view] = cluster.wait(job)
    assert (view.state, view.exit_code, view.attempt) == ("done", 0, 1), view.reason
    assert cluster.output(job) == "sum 3\n" * 2
    assert cluster.pid(node) != old


def test_an_agent_outlives_the_wardens_that_wait_for_a_job(cluster: Cluster) -> None:
    before = {node: cluster.pid(node) for node in NODES}
    for _ in range(8):
        send([pid for node in NODES for pid in cluster.wardens(node)], signal.SIGKILL)
        (view,) = cluster.wait(cluster.submit(["true"], requeue="auto"))
        assert view.state == "done"
    assert {node: cluster.pid(node) for node in NODES} == before, "an order was for one that had just gone"


def test_what_an_attempt_left_in_tmp_while_its_agent_was_killed_goes_when_the_next_agent_begins(
    cluster: Cluster,
) -> None:
    job = cluster.submit(["sh", "-c", "echo $TMPDIR $BEO_NODE"])
    cluster.wait(job)
    tmp, node = cluster.output(job).split()
    wait_for(lambda: not Path(tmp).exists(), "it is swept")
    Path(tmp).mkdir()
    (Path(tmp) / "left").touch()
    cluster.kill_and_await(node)
    wait_for(lambda: not Path(tmp).exists(), "it is swept again")


def test_jobs_that_start_and_end_around_killed_agents_run_once_each(cluster: Cluster, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    history = History(tmp_path / "notes")
    tags = [f"job-{k}" for k in range(24)]
    for k, tag in enumerate(tags):
        history.acknowledged(tag, cluster.submit(history.argv(tag, dice.uniform(0, 0.4)), ranks=1 + k % 2))
        if k % 6 == 3:
            time.sleep(dice.uniform(0, 0.2))
            cluster.kill_and_await(NODES[k // 6 % 2])
    cluster.check(history, adopted=tags)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_many_kills_of_agents_lose_no_job_and_no_line_and_start_none_again(tmp_path: Path, kills: int) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    enough = tmp_path / "enough"
    talker = [sys.executable, "-c", CHATTER, str(enough)]
    with running(tmp_path / "beo", slots=4) as cluster:
        history = History(tmp_path / "notes")
        long_ones = {f"long-{k}" for k in range(2)}
        for tag in sorted(long_ones):
            history.acknowledged(tag, cluster.submit(history.argv(tag)))
        chatter = cluster.submit(talker)
        cluster.wait_for_state(chatter, "running")
        files = [tmp_path / "said", tmp_path / "run"]
        words = (["logs", "-f", str(chatter)], ["run", *talker])
        followers = [cluster.start(*w, stdout=file.open("wb")) for w, file in zip(words, files, strict=True)]
        wait_for(lambda: all(file.stat().st_size for file in files), "both print")
        cluster.kill("supervisor")  # it would wait longer and longer before it starts what ends so often
        with Submitters(cluster, history, SEED):
            for _ in range(kills):
                time.sleep(dice.uniform(0.02, 0.4))
                node = dice.choice(NODES)
                kill([cluster.pid(node)])
                cluster.start_agent(node)
        assert len(history.jobs) > kills
        enough.touch()
        cluster.check(history, adopted=long_ones)
        for follower, file in zip(followers, files, strict=True):
            _, err = follower.communicate(timeout=30)
            assert follower.returncode == 0, err
            lines = file.read_text().splitlines()
            assert lines == [f"line {k}" for k in range(len(lines))] and len(lines) > kills
        assert cluster.job(chatter).attempt == 1
        # An attempt whose agent is killed between writing its order down and handing it to a warden never begins; the
        # next one does. What has begun is never started again.
        for view in cluster.wait(*history.jobs):
            assert history.attempts(view.id) == {view.attempt}, view
