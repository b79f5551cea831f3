"""An MPI program with `beo.checkpoint` in a real cluster goes on from the workers' memory, with the same answer."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.nodeset import expand, fold
from tests.cluster import ROOT, Cluster, running, wait_for

NODES = ["node01", "node02", "node03"]
HEAT = [sys.executable, str(ROOT / "jobs" / "heat2d.py"), "--n", "400", "--report-every", "50"]
STEPS = 8_000  # some seconds


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("checkpoint") / "beo", workers=3, slots=1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def answer(cluster: Cluster) -> str:
    """What the program says that is left in peace."""
    job = cluster.submit([*HEAT, "--steps", str(STEPS)], ranks=2)
    assert [view.state for view in cluster.wait(job)] == ["done"], cluster.output(job)
    return result(cluster, job)


@pytest.fixture(params=[2])
def job(request: pytest.FixtureRequest, cluster: Cluster, answer: str) -> Iterator[int]:
    """The same program on two of the three nodes, under way."""
    number = cluster.submit([*HEAT, "--steps", str(STEPS)], ranks=request.param, requeue="auto")
    wait_for(lambda: steps(cluster, number), "it is under way")
    yield number
    cluster.beo("cancel", str(number))
    cluster.wait(number)
    for node in NODES:
        cluster.beo("resume", node)
        cluster.wait_for_node(node, "up")


def result(cluster: Cluster, job: int) -> str:
    found = re.search(r"checksum \w+ error \S+", cluster.output(job))
    assert found, cluster.output(job)
    return found[0]


def steps(cluster: Cluster, job: int) -> list[int]:
    """Which steps it has reported, of this attempt."""
    text = cluster.beo("logs", str(job), "--attempt", str(cluster.job(job).attempt)).stdout
    return [int(step) for step in re.findall(r"^step (\d+) after", text, re.MULTILINE)]


def take_one(cluster: Cluster, job: int) -> None:
    """Have it take a checkpoint, and wait until all its nodes have it."""
    folders = {pid: folder_of(pid) for pid in cluster.ranks(job).values()}
    before = {path for folder in folders.values() for path in manifests(folder)}
    os.kill(min(folders), signal.SIGUSR1)
    wait_for(lambda: all(set(manifests(folder)) - before for folder in folders.values()), "a checkpoint")


def folder_of(pid: int) -> Path:
    words = dict(word.partition(b"=")[::2] for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    return Path(os.fsdecode(words[b"BEO_CHECKPOINT_DIR"]))


def manifests(folder: Path) -> list[tuple[str, int]]:
    return [(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*.manifest")]


def began_anew(cluster: Cluster, job: int) -> bool:
    """Whether an attempt after the first began with the first step."""
    return steps(cluster, job)[:1] == [50]


def test_a_job_that_lost_a_whole_worker_goes_on_from_memory_on_the_spare(
    cluster: Cluster, job: int, answer: str
) -> None:
    nodes = cluster.job(job).nodes
    take_one(cluster, job)
    cluster.kill_worker(expand(nodes)[1])
    assert [view.state for view in cluster.wait(job)] == ["done"], cluster.output(job)
    assert cluster.job(job).attempt == 2
    assert result(cluster, job) == answer
    assert not began_anew(cluster, job), cluster.output(job)


@pytest.mark.parametrize(
    ("how", "job"),
    [
        ("drain", 2),
        pytest.param("migrate", 2, marks=pytest.mark.slow),
        pytest.param("migrate", 1, marks=pytest.mark.slow),
    ],
    indirect=["job"],
    ids=["drain", "migrate", "alone"],
)
def test_a_job_goes_on_elsewhere_with_the_step_it_was_in(how: str, cluster: Cluster, job: int, answer: str) -> None:
    here = expand(cluster.job(job).nodes)
    left = here[0]
    others = [node for node in NODES if node != left][: len(here)]
    if how == "drain":
        said = cluster.beo("drain", left)
    else:
        said = cluster.beo("migrate", str(job), fold(others))
    assert said.returncode == 0, said.stderr
    assert cluster.wait_for_state(job, "running", 2).nodes == fold(others)
    assert [view.state for view in cluster.wait(job)] == ["done"], cluster.output(job)
    assert result(cluster, job) == answer
    assert not began_anew(cluster, job), cluster.output(job)
