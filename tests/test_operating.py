"""Running a real cluster: what is held, queued again, drained and forgotten, with daemons that are killed meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import job as jobs
from beo.errors import Conflict
from tests.cluster import Cluster, running, wait_for

SLEEP = ["sleep", "100"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("operating") / "beo") as cluster:
        yield cluster


def test_a_held_job_starts_after_its_release_and_not_before_it(cluster: Cluster) -> None:
    with cluster.client() as own:
        job = jobs.submit(["true"], hold=True, cluster=own, cwd="/")
        assert job.state == "held"
        cluster.kill_and_await("head")
        cluster.wait_for_head()
        assert "held by " in cluster.beo("queue").stdout
        assert job.state == "held"
        job.release()
        assert job.wait(60) == 0
        with pytest.raises(Conflict):
            job.hold()


def test_a_requeued_job_is_ended_before_it_runs_again_and_its_output_is_that_of_the_last_attempt(
    cluster: Cluster, tmp_path: Path
) -> None:
    script = "echo attempt $BEO_ATTEMPT; test $BEO_ATTEMPT -ge 2 || sleep 100"
    job = cluster.submit(["sh", "-c", script], requeue="never", output=str(tmp_path / "out"))
    wait_for(lambda: cluster.output(job) == "attempt 1\n", "the first attempt writes")
    (pid,) = cluster.ranks(job).values()
    assert cluster.beo("requeue", str(job)).stdout == f"job {job} ending\n"
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 2) and not Path(f"/proc/{pid}").exists()
    assert cluster.output(job) == "attempt 2\n"
    wait_for(lambda: (tmp_path / "out").read_text() == "attempt 2\n", "the file is that of the last attempt")
    assert cluster.beo("requeue", str(job)).returncode == 0, "it has ended, and runs once more"
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt, view.exit_code) == ("done", 3, 0)
    wait_for(lambda: (tmp_path / "out").read_text() == "attempt 3\n", "the file is written anew")


def test_a_drained_node_gets_no_new_work_over_restarts_of_head_and_agent(cluster: Cluster) -> None:
    first = cluster.submit(SLEEP)
    node = cluster.wait_for_state(first, "running").nodes
    assert cluster.beo("drain", node, "--reason", "new disk").stdout == f"{node} draining: job {first} may end there\n"
    cluster.kill_and_await("head")
    cluster.wait_for_head()
    cluster.kill_and_await(node)
    cluster.wait_for_node(node, "draining")
    more = [cluster.submit(["true"]) for _ in range(4)]
    assert {view.nodes for view in cluster.wait(*more)}.isdisjoint({node})
    cluster.beo("cancel", str(first))
    cluster.wait(first)
    assert "drained" in cluster.beo("nodes").stdout and "by " in cluster.node(node).drain
    assert cluster.beo("resume", node).stdout == f"{node} up\n"


def test_a_node_that_was_switched_off_is_forgotten_and_joins_again(tmp_path: Path) -> None:
    with running(tmp_path / "beo", workers=1) as cluster:
        cluster.kill("supervisor")
        cluster.kill_worker("node01")
        cluster.wait_for_node("node01", "lost")
        assert cluster.beo("forget", "node01").returncode == 0
        assert cluster.beo("nodes", "-q").stdout == ""
        cluster.up()
        cluster.wait_for_node("node01", "up")
        assert cluster.wait(cluster.submit(["true"]))[0].state == "done"
