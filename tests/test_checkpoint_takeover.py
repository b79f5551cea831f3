"""Two of a job's nodes and the acting head are lost at one moment: the job goes on by itself, from the others' memory.

Nothing is read from a head for it, and no step is done again that a checkpoint held.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from beo import messages as m
from beo.nodeset import expand
from tests.cluster import HEADS, Cluster, kill, running, wait_for
from tests.stepped import Stepped, total

STEPS, STEP_S, EVERY = 300, 0.02, 10
RANKS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Four nodes for the job and two spares; copies go to the tree as well, so that there is something not to read."""
    settings = "checkpoint_copy_s = 1\ncheckpoint_copy_bytes_s = 0\n"
    path = tmp_path_factory.mktemp("takeover") / "beo"
    with running(path, workers=RANKS + 2, slots=1, settings=settings, heads=2) as cluster:
        yield cluster


def voting(cluster: Cluster) -> set[str]:
    """The nodes whose votes decide who goes on when a head is lost."""
    return {voter.node for voter in cluster.await_step().voters if voter.votes}


def submit(cluster: Cluster, log: Path) -> int:
    return cluster.submit(Stepped(log).argv("rs", STEPS, STEP_S, EVERY), ranks=RANKS, requeue="auto")


def vault(cluster: Cluster, node: str) -> Path:
    """Where a node keeps what jobs want kept."""
    return next(iter(Path("/tmp").glob(f"beo-{cluster.home.cluster().cluster[:8]}-{node}-vaults-*")))


def answer(cluster: Cluster, job: int) -> str:
    """What it says when it is done."""
    assert [view.state for view in cluster.wait(job)] == ["done"], cluster.output(job)
    return total(cluster.output(job))


def copied(cluster: Cluster, job: int) -> set[str]:
    """The nodes of whose vault there is a copy at the heads."""
    said = cluster.beo("events", "--job", str(job)).stdout
    return {word for line in said.splitlines() if " VaultCopied " in line for word in re.findall(r"node\d+", line)}


def orders(cluster: Cluster, view: m.JobView) -> list[m.Start]:
    """What the nodes of a job that runs have been told to start, as they wrote it down."""
    name = f"{view.id}.{view.attempt}"
    files = [file for node in expand(view.nodes) for file in (cluster.home.nodes / node).rglob(f"orders/{name}")]
    return [msgspec.msgpack.decode(file.read_bytes(), type=m.Start) for file in files]


def test_two_workers_and_the_acting_head_lost_at_once_cost_no_more_than_the_steps_since_the_last_checkpoint(
    cluster: Cluster, tmp_path: Path
) -> None:
    undisturbed = answer(cluster, submit(cluster, tmp_path / "undisturbed"))
    log = tmp_path / "log"
    job = submit(cluster, log)
    first = cluster.await_step().name
    nodes = expand(cluster.wait_for_state(job, "running").nodes)
    wait_for(lambda: copied(cluster, job) == set(nodes), "a copy at the heads that could be read")
    wait_for(lambda: len(Stepped(log).numbers("kept")) >= 3, "checkpoints")
    # The other head goes on when most of the three voters say so: of these at most one may be lost with this one.
    votes = voting(cluster)
    lost = sorted(nodes[1:], key=lambda node: node in votes)[:2]
    assert len(votes) == 3
    assert len(votes.intersection(lost)) <= 1
    vaults = [vault(cluster, node) for node in lost]
    assert cluster.await_step().name == first, "and the other is in step, also where it was busy meanwhile"
    cluster.kill("supervisor")  # it would start again what is killed
    doomed = [pid for node in lost for pid in cluster.stop_worker(node)]
    kill([cluster.pid(HEADS[first]), *doomed])
    for place in vaults:
        shutil.rmtree(place / str(job))
    kept, done = Stepped(log).numbers("kept")[-1], Stepped(log).numbers("step")[-1]
    assert done < STEPS
    view = cluster.wait_for_state(job, "running", 2)
    wait_for(lambda: len(orders(cluster, view)) == RANKS, "all nodes have their orders")
    started = orders(cluster, view)
    assert answer(cluster, job) == undisturbed
    assert cluster.job(job).attempt == 2
    assert not set(expand(view.nodes)) & set(lost)
    began, again = Stepped(log).numbers("begins")
    assert began == 0
    # Rank 0 may have been killed between the last checkpoint and the line that tells of it.
    assert kept <= again <= done, f"it had {kept} of {done} steps kept, and went on with {again}"
    assert [order.copies for order in started] == [()] * RANKS, "nothing is read from a head"
