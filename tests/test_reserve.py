"""A real cluster with a reservation: what is in its way moves by its checkpoint, and its jobs start in time."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster import Cluster, running, wait_for
from tests.test_vaults import begins, node_of, reached, told, toy


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("reserve") / "beo", workers=2, slots=1) as cluster:
        yield cluster


@pytest.fixture
def cleared(cluster: Cluster) -> Iterator[Cluster]:
    yield cluster
    names = cluster.beo("reserve", "list", "-q").stdout.split()
    if names:
        cluster.beo("reserve", "cancel", *names)
    cluster.beo("cancel", "all")
    wait_for(lambda: not cluster.beo("queue", "-q").stdout.split(), "nothing runs")


def show(cluster: Cluster, name: str) -> dict[str, object]:
    (found,) = json.loads(cluster.beo("reserve", "show", name, "--json").stdout)
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_a_job_is_moved_off_by_its_checkpoint_and_the_reserved_one_starts_though_the_head_is_killed_between(
    cleared: Cluster,
) -> None:
    cluster = cleared
    job = toy(cluster, 400)
    node = node_of(cluster, job)
    reached(cluster, job, node, 5)
    made = cluster.beo("reserve", "create", "--nodes", node, "--start", "4s", "--for", "1h", "--name", "night")
    assert (made.returncode, "reservation night is planned, in " in made.stdout) == (0, True), made.stderr
    own = cluster.beo("submit", "-q", "--reservation", "night", "sh", "-c", "echo $BEO_NODE; sleep 100").stdout
    cluster.kill_and_await("head")
    cluster.wait_for_head()
    view = cluster.wait_for_state(int(own), "running")
    assert view.nodes == node
    assert view.started_s >= float(str(show(cluster, "night")["start"])), "not before its time"
    moved = cluster.wait_for_state(job, "running", 2)
    assert moved.nodes != node
    assert show(cluster, "night")["way"] == []
    assert [one.state for one in cluster.wait(job)] == ["done"], cluster.output(job)
    ((_, halted),) = told(cluster, job, "halts")
    assert [step for _, step in begins(cluster, job)] == [0, halted], "no step is lost, and none is done twice"
    assert cluster.job(int(own)).state == "running"


def test_a_job_without_checkpoints_holds_it_up_and_both_say_so(cleared: Cluster) -> None:
    cluster = cleared
    plain = cluster.submit(["sleep", "100"])
    node = node_of(cluster, plain)
    cluster.wait_for_state(plain, "running")
    with cluster.client() as own_client:
        me = own_client.info().user
    made = cluster.beo("reserve", "create", "--nodes", node, "--for", "1h", "--name", "night", "--user", me)
    assert f"way    job {plain} on {node} may hold it up to its own end" in made.stdout, made.stderr
    own = int(cluster.beo("submit", "-q", "--reservation", "night", "true").stdout)
    other = cluster.submit(["true"], ranks=2)
    assert f"waits for 1 rank on {node}, reservation night" in cluster.beo("show", str(own)).stdout
    assert f"{node} is reserved for {me} (night)" in cluster.beo("show", str(other)).stdout
    assert f"reserved for {me} (night)" in cluster.beo("nodes").stdout
    assert cluster.job(plain).state == "running"
    cluster.beo("cancel", str(plain))
    assert [view.nodes for view in cluster.wait(own)] == [node]
    assert cluster.beo("reserve", "cancel", "night").stdout == "reservation night is cancelled\n"
    assert [view.state for view in cluster.wait(other)] == ["done"]
    assert cluster.beo("reserve", "list", "-q").stdout == ""


def test_with_kill_it_begins_in_time(cleared: Cluster) -> None:
    cluster = cleared
    plain = cluster.submit(["sleep", "100"])
    node = node_of(cluster, plain)
    other = next(name for name in ("node01", "node02") if name != node)
    cluster.wait_for_state(plain, "running")
    assert cluster.beo("reserve", "create", "--nodes", node, "--for", "1h", "--kill", "--name", "now").returncode == 0
    own = int(cluster.beo("submit", "-q", "--reservation", "now", "true").stdout)
    assert [view.nodes for view in cluster.wait(own)] == [node]
    assert cluster.wait_for_state(plain, "running", 2).nodes == other


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["create", "--for", "1h"], 2, "which nodes (it is either so many or these)"),
        (["create", "-N", "3", "--for", "1h"], 75, "3 nodes can't be reserved (of 2 nodes 2 can be had then"),
        (["create", "-N", "1", "--for", "soon"], 2, "'soon' is no duration"),
        (["create", "-N", "1", "--for", "1h", "--start", "25:00"], 2, "'25:00' is no"),
        (["create", "-N", "1", "--for", "1h", "--start", "2020-01-01"], 2, "would begin in the past"),
        (["cancel"], 2, "missing argument"),
    ],
)
def test_what_cant_be_reserved_is_refused_in_words(cluster: Cluster, words: list[str], code: int, error: str) -> None:
    said = cluster.beo("reserve", *words)
    assert (said.returncode, error in said.stderr) == (code, True), said.stderr
