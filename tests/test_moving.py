"""A job goes on elsewhere when its node is drained, or when somebody says so, and loses no step by it."""

from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, running, wait_for
from tests.test_vaults import begins, node_of, reached, told, toy


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("moving") / "beo", workers=3, slots=1) as cluster:
        yield cluster


def test_a_drained_nodes_job_halts_at_its_next_safe_point_and_is_started_elsewhere(cluster: Cluster) -> None:
    job = toy(cluster, 400)
    node = node_of(cluster, job)
    reached(cluster, job, node, 5)
    wait_for(lambda: f"on {node}" in cluster.beo("show", str(job)).stdout, "the head knows what is kept")
    said = cluster.beo("drain", node)
    assert f"job {job} goes on elsewhere" in said.stdout
    view = cluster.wait_for_state(job, "running", 2)
    assert view.nodes != node
    assert told(cluster, job, "halts")
    cluster.wait_for_node(node, "drained")
    cluster.beo("resume", node)
    cluster.beo("cancel", str(job))
    cluster.wait(job)


def test_a_job_that_takes_no_checkpoints_goes_on_where_it_is(cluster: Cluster) -> None:
    job = cluster.submit(["sleep", "1"])
    node = node_of(cluster, job)
    assert f"job {job} may end there" in cluster.beo("drain", node).stdout
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 1)
    cluster.beo("resume", node)


def test_migrate_moves_a_job_to_the_named_node(cluster: Cluster) -> None:
    job = toy(cluster, 400)
    node = node_of(cluster, job)
    reached(cluster, job, node, 5)
    target = next(name for name in ("node01", "node02", "node03") if name != node)
    done = cluster.beo("migrate", str(job), target)
    assert done.returncode == 0, done.stderr
    assert cluster.wait_for_state(job, "running", 2).nodes == target
    cluster.beo("cancel", str(job))
    cluster.wait(job)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["9999"], 2, "no job 9999"),
        (["nonsense"], 2, "nonsense"),
        (["last", "node77"], 2, "no node 'node77'"),
        (["last", "node[01-"], 2, "node[01-"),
    ],
)
def test_what_cant_move_is_refused_in_words(cluster: Cluster, words: list[str], code: int, error: str) -> None:
    job = toy(cluster, 200)
    cluster.wait_for_state(job, "running")
    said = cluster.beo("migrate", *words)
    assert (said.returncode, error in said.stderr) == (code, True), said.stderr
    cluster.beo("cancel", str(job))
    cluster.wait(job)


def test_a_job_that_waits_or_is_over_is_not_moved(cluster: Cluster) -> None:
    job = cluster.submit(["true"])
    cluster.wait(job)
    said = cluster.beo("migrate", str(job))
    assert (said.returncode, f"job {job} is done" in said.stderr) == (75, True), said.stderr


def test_a_job_that_fits_nowhere_else_is_not_moved(cluster: Cluster) -> None:
    job = toy(cluster, 200, ranks=3)
    cluster.wait_for_state(job, "running")
    said = cluster.beo("migrate", str(job))
    assert (said.returncode, "the other nodes have 0 slots" in said.stderr) == (75, True), said.stderr
    cluster.beo("cancel", str(job))
    cluster.wait(job)
    assert begins(cluster, job)


def test_what_one_node_alone_keeps_goes_along_by_way_of_the_head(cluster: Cluster) -> None:
    job = toy(cluster, 200)
    node = node_of(cluster, job)
    reached(cluster, job, node, 5)
    cluster.beo("migrate", str(job))
    assert [view.state for view in cluster.wait(job)] == ["done"]
    ((_, halted),) = told(cluster, job, "halts")
    assert [step for _, step in begins(cluster, job)] == [0, halted]


def test_a_job_that_comes_back_to_a_node_finds_there_what_it_last_kept_elsewhere(cluster: Cluster) -> None:
    job = toy(cluster, 300)
    home = node_of(cluster, job)
    away = next(name for name in ("node01", "node02", "node03") if name != home)
    for attempt, target in enumerate((away, home), 2):
        reached(cluster, job, node_of(cluster, job), 5 * attempt)
        assert cluster.beo("migrate", str(job), target).returncode == 0
        cluster.wait_for_state(job, "running", attempt)
    cluster.wait(job)
    halted = [step for _, step in told(cluster, job, "halts")]
    assert [step for _, step in begins(cluster, job)] == [0, *halted]
