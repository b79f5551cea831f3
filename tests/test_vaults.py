"""What a job keeps in its node's vault survives its attempts and the daemons, and goes when the job is over."""

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ROOT, Cluster, kill, running, wait_for

TOY = str(ROOT / "tests" / "toy_steps.py")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("vaults") / "beo", workers=3, slots=1) as cluster:
        yield cluster


def folder_of(cluster: Cluster, job: int, node: str) -> Path:
    """Where a node keeps something of a job."""
    mark = f"beo-{cluster.home.cluster().cluster[:8]}-{node}-vaults-*"
    return next(iter(Path("/tmp").glob(mark))) / str(job)


def begins(cluster: Cluster, job: int) -> list[tuple[str, int]]:
    """Where each attempt of a toy began: node and step."""
    return told(cluster, job, "begins")


def told(cluster: Cluster, job: int, what: str) -> list[tuple[str, int]]:
    text = log_of(cluster, job).read_text()
    return [(node, int(step)) for node, step in re.findall(rf"(\S+) {what} at (\d+)", text)]


def log_of(cluster: Cluster, job: int) -> Path:
    return cluster.home.path / f"toy-{job}"


def toy(cluster: Cluster, steps: int, step_s: float = 0.02, **options: object) -> int:
    with cluster.client() as own:
        jobs = own.jobs(ended=True).jobs
    log = log_of(cluster, max((view.id for view in jobs), default=0) + 1)
    return cluster.submit([sys.executable, TOY, str(steps), str(step_s), str(log)], **options)


def reached(cluster: Cluster, job: int, node: str, step: int) -> None:
    def there() -> bool:
        file = folder_of(cluster, job, node) / "own" / "step-0"
        return file.exists() and int(file.read_text() or 0) >= step

    wait_for(there, f"step {step} of job {job}")


def node_of(cluster: Cluster, job: int) -> str:
    return cluster.wait_for_state(job, "running").nodes


def test_a_job_whose_warden_was_killed_goes_on_where_it_was_on_the_same_node(cluster: Cluster) -> None:
    job = toy(cluster, 100)
    node = node_of(cluster, job)
    reached(cluster, job, node, 10)
    kill([cluster.warden_of(cluster.ranks(job)[0])])
    assert [view.state for view in cluster.wait(job)] == ["done"]
    (first, zero), (again, step) = begins(cluster, job)
    assert (first, zero, again) == (node, 0, node)
    assert step >= 10


def test_the_head_knows_what_an_attempt_has_left_as_soon_as_it_is_over(cluster: Cluster) -> None:
    """Where the job goes on is decided in that moment: from an older report it would go back further than it must."""
    for _ in range(3):
        job = cluster.submit(["sh", "-c", "echo 1 > $BEO_CHECKPOINT_DIR/x; exit 3"])
        (view,) = cluster.wait(job)
        with cluster.client() as own:
            assert [node for node, _ in own.show([str(job)])[0].vaults] == [view.nodes]


def test_what_is_kept_survives_kill_9_of_the_agent_and_is_shown(cluster: Cluster) -> None:
    job = toy(cluster, 150)
    node = node_of(cluster, job)
    reached(cluster, job, node, 5)
    cluster.kill_and_await(node)
    wait_for(lambda: f"on {node}" in cluster.beo("show", str(job)).stdout, "what is kept is shown")
    assert [view.state for view in cluster.wait(job)] == ["done"]
    assert begins(cluster, job) == [(node, 0)]


def test_what_is_kept_goes_with_the_job_at_once_where_nothing_is_and_soon_where_something_is(cluster: Cluster) -> None:
    empty, full = cluster.submit(["true"]), toy(cluster, 1)
    nodes = [view.nodes for view in cluster.wait(empty, full)]
    wait_for(lambda: not folder_of(cluster, empty, nodes[0]).exists(), "an empty folder is gone", 2.0)
    wait_for(lambda: not folder_of(cluster, full, nodes[1]).exists(), "the folder of a job that is over is gone")


def test_a_failed_jobs_checkpoint_is_there_when_it_is_queued_again(cluster: Cluster) -> None:
    job = cluster.submit(["sh", "-c", "test -e $BEO_CHECKPOINT_DIR/x || { touch $BEO_CHECKPOINT_DIR/x; exit 3; }"])
    assert [view.exit_code for view in cluster.wait(job)] == [3]
    time.sleep(2.5)  # longer than a vault takes to be looked at, and the head to answer
    assert cluster.beo("requeue", str(job)).returncode == 0
    assert [view.state for view in cluster.wait(job)] == ["done"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's vault has a size: run this as root")
def test_a_vault_holds_no_more_than_was_set_and_a_job_that_fills_it_hears_so(tmp_path: Path) -> None:
    with running(tmp_path / "beo", workers=1, slots=1, settings=f"checkpoint_max_bytes = {1 << 22}\n") as cluster:
        code = "import os; open(os.environ['BEO_CHECKPOINT_DIR'] + '/x', 'wb').write(bytes(1 << 23))"
        job = cluster.submit([sys.executable, "-c", code])
        assert [view.exit_code for view in cluster.wait(job)] == [1]
        assert "No space left on device" in cluster.output(job) + cluster.beo("logs", str(job)).stderr


@pytest.mark.slow
def test_a_node_that_is_lost_with_its_memory_is_replaced_from_the_copy_at_the_head(tmp_path: Path) -> None:
    settings = "checkpoint_copy_s = 0.5\ncheckpoint_copy_bytes_s = 0\n"
    with running(tmp_path / "beo", workers=2, slots=1, settings=settings) as cluster:
        job = toy(cluster, 400, requeue="auto")
        node = node_of(cluster, job)
        wait_for(lambda: "copied to the head" in cluster.beo("events", "--job", str(job)).stdout, "a copy")
        cluster.kill("supervisor")  # or it would start the node again
        cluster.kill_worker(node)
        shutil.rmtree(folder_of(cluster, job, node))
        assert [view.state for view in cluster.wait(job)] == ["done"]
        (_, _), (spare, step) = begins(cluster, job)
        assert spare != node
        assert step > 0
