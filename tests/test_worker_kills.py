"""A worker is killed or stopped, in parts or whole: its jobs run again where that is safe, and never two at once."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.messages import JobView
from tests.cluster import Cluster, is_alive, kill, running, send, wait_for
from tests.doses import dose
from tests.history import History
from tests.test_head_kills import Submitters

NODES = ("node01", "node02")
SEED = 6  # of the moments of killing
KILLS, KILLS_SLOW = 6, dose(100)

# Ranks that talk to each other for ever.
CHATTING = "from mpi4py import MPI\nwhile True: MPI.COMM_WORLD.allreduce(1)"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("worker") / "beo") as made:
        yield made


@pytest.fixture
def history(cluster: Cluster, tmp_path: Path) -> Iterator[History]:
    """The history of one test; afterwards nothing runs any more, and both nodes are up."""
    yield History(tmp_path / "notes")
    with cluster.client() as own:
        own.cancel(["all"])
    cluster.up()
    for node in NODES:
        cluster.wait_for_node(node, "up")


def live(cluster: Cluster, history: History, requeue: str, **options: int) -> JobView:
    """Submit a job under a tag that is its way of requeueing, and wait until it lives."""
    tag = requeue
    job = cluster.submit(history.argv(tag), requeue=requeue, **options)
    history.acknowledged(tag, job)
    wait_for(lambda: history.lives(tag), f"{tag} lives")
    return cluster.job(job)


def test_a_worker_killed_as_a_whole_comes_back_and_its_jobs_run_again(cluster: Cluster, history: History) -> None:
    jobs = [live(cluster, history, requeue) for requeue in ("auto", "confirm")]
    [node] = {job.nodes for job in jobs}
    cluster.kill_worker(node)
    for job in jobs:
        cluster.wait_for_state(job.id, "running", attempt=2)
    cluster.wait_for_node(node, "up")
    cluster.check(history)
    assert [view.attempt for view in cluster.wait(*(job.id for job in jobs))] == [2, 2]


def test_an_mpi_job_runs_again_as_a_whole_when_one_of_its_workers_is_killed(cluster: Cluster, history: History) -> None:
    job = live(cluster, history, "auto", ranks=2, nodes=2)
    wait_for(lambda: len({note.rank for note in history.notes("auto")}) == 2, "both ranks live")
    cluster.kill_worker("node02")
    cluster.wait_for_state(job.id, "running", attempt=2)
    cluster.check(history)


def test_a_worker_that_stays_away_costs_auto_jobs_a_lease_and_confirm_jobs_a_word(
    cluster: Cluster, history: History
) -> None:
    auto, confirm = (live(cluster, history, requeue) for requeue in ("auto", "confirm"))
    node = auto.nodes
    assert confirm.nodes == node
    cluster.kill("supervisor")  # or it would start the agent again, which knows that its jobs are gone
    cluster.kill_worker(node)
    assert cluster.wait_for_state(auto.id, "running", attempt=2).nodes != node
    cluster.wait_for_node(node, "lost")
    view = cluster.job(confirm.id)
    assert (view.state, view.attempt) == ("running", 1)
    assert f"beo gone {node}" in view.reason
    done = cluster.beo("gone", "--yes", node)
    assert done.returncode == 0, done.stderr
    assert cluster.wait_for_state(confirm.id, "running", attempt=2).nodes != node
    cluster.check(history)


def test_a_confirm_job_runs_again_when_its_worker_comes_back_without_it(cluster: Cluster, history: History) -> None:
    confirm = live(cluster, history, "confirm")
    cluster.kill("supervisor")
    cluster.kill_worker(confirm.nodes)
    cluster.wait_for_node(confirm.nodes, "lost")
    assert (cluster.job(confirm.id).state, cluster.job(confirm.id).attempt) == ("running", 1)
    cluster.up()
    cluster.wait_for_state(confirm.id, "running", attempt=2)
    cluster.check(history)


def test_a_stopped_worker_that_goes_on_later_brings_no_old_copy_to_life(cluster: Cluster, history: History) -> None:
    auto, confirm = (live(cluster, history, requeue) for requeue in ("auto", "confirm"))
    node = auto.nodes
    assert confirm.nodes == node
    old = cluster.ranks(auto.id)[0]
    incarnation = cluster.node(node).incarnation
    stopped = cluster.stop_worker(node)
    assert cluster.wait_for_state(auto.id, "running", attempt=2).nodes != node
    assert not is_alive(old), "the kernel has ended the old copy, stopped as it was"
    wait_for(lambda: history.lives("auto", attempt=2), "the new copy lives")
    view = cluster.job(confirm.id)
    assert (view.state, view.attempt) == ("running", 1)
    send(stopped, signal.SIGCONT)
    cluster.wait_for_node(node, "up")
    assert cluster.node(node).incarnation != incarnation
    count = len(history.notes("confirm"))
    wait_for(lambda: len(history.notes("confirm")) > count, "what was not ended goes on")
    cluster.check(history, adopted=["confirm"])
    assert cluster.job(auto.id).attempt == 2


def test_a_rank_killed_fails_its_job_with_137_and_ends_its_peers_on_the_other_node(cluster: Cluster) -> None:
    job = cluster.submit([sys.executable, "-c", CHATTING], ranks=2, nodes=2, requeue="auto")
    ranks = wait_for(lambda: found if len(found := cluster.ranks(job)) == 2 else None, "both ranks run")
    assert ranks
    wait_for(lambda: all("libmpi" in Path(f"/proc/{pid}/maps").read_text() for pid in ranks.values()), "MPI is loaded")
    began_s = time.monotonic()
    kill([ranks[1]])
    wait_for(lambda: not is_alive(ranks[0]), "the end of the other rank", 3.0)
    print(f"the other rank ended after {time.monotonic() - began_s:.3f} s")
    [view] = cluster.wait(job)
    assert (view.state, view.exit_code, view.attempt, view.code_by) == ("failed", 137, 1, "job")


@pytest.mark.parametrize(
    ("requeue", "state", "attempt"), [("auto", "done", 2), ("confirm", "done", 2), ("never", "lost", 1)]
)
def test_a_job_whose_warden_is_killed_runs_again_unless_it_says_never(
    cluster: Cluster, history: History, requeue: str, state: str, attempt: int
) -> None:
    job = live(cluster, history, requeue).id
    kill([cluster.warden_of(cluster.ranks(job)[0])])
    history.release()
    [view] = cluster.wait(job)
    assert (view.state, view.attempt) == (state, attempt)
    if state == "done":
        cluster.check(history)


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_many_kills_of_whole_workers_lose_no_job_and_run_none_twice_at_once(tmp_path: Path, kills: int) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    with running(tmp_path / "beo", slots=4) as cluster:
        history = History(tmp_path / "notes")
        for requeue in ("auto", "confirm"):
            history.acknowledged(requeue, cluster.submit(history.argv(requeue), requeue=requeue))
        cluster.kill("supervisor")  # it would wait longer and longer before it starts what ends so often
        with Submitters(cluster, history, SEED):
            for _ in range(kills):
                time.sleep(dice.uniform(0.05, 0.5))
                node = dice.choice(NODES)
                cluster.kill_worker(node)
                cluster.start_agent(node)
        cluster.check(history, untold=True)
        attempts = [view.attempt for view in cluster.wait(*history.jobs)]
        assert max(attempts) > 1, "nothing was hit"
