"""A checkpoint of which more is lost than parity bears: the job goes on with the head's copy, or ends in words."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.checkpoints.slots import SLOTS
from beo.errors import EXIT_UNRESTORED
from beo.nodeset import expand
from tests.cluster import HEADS, Cluster, kill, running, wait_for
from tests.stepped import Stepped
from tests.test_checkpoint_takeover import answer, copied, orders, vault, voting

STEPS, STEP_S, EVERY = 200, 0.02, 10
LONG_S = 0.1  # of a step, where several nodes copy
COPIES = "checkpoint_copy_s = 0.5\ncheckpoint_copy_bytes_s = 0\n"


@pytest.fixture(params=[COPIES], ids=["copies"])
def alone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    """One node, and copies in the tree or none."""
    with running(tmp_path / "beo", workers=1, slots=1, settings=request.param) as cluster:
        yield cluster


def undisturbed(ranks: int) -> str:
    """What stepping.py prints that is left in peace."""
    added = 0
    for _ in range(STEPS):
        added += sum(rank + added for rank in range(ranks)) % 7
    return f"total {sum(50_000 * (rank + added) + sum(range(50_000)) for rank in range(ranks))}"


def submit(cluster: Cluster, log: Path, level: str, ranks: int, step_s: float = STEP_S) -> int:
    return cluster.submit(Stepped(log).argv(level, STEPS, step_s, EVERY), ranks=ranks, requeue="auto")


def has_copy(cluster: Cluster, job: int) -> bool:
    """Whether there are copies at the head that belong together."""
    with cluster.client() as own:
        (detail,) = own.show([str(job)])
    return bool(detail.copies)


def spoil(folder: Path) -> None:
    """Flip bits in all images of a job's vault: nothing there can be restored."""
    images = [path for slot in SLOTS for path in folder.rglob(f"{slot}/*.image")]
    assert images
    for path in images:
        data = path.read_bytes()
        path.write_bytes(bytes(byte ^ 1 for byte in data[:4096]) + data[4096:])


def kill_it(cluster: Cluster, job: int) -> None:
    """End the job's only node, and spoil what is left in its memory before it comes back."""
    node = cluster.job(job).nodes
    doomed = cluster.stop_worker(node)
    spoil(vault(cluster, node) / str(job))
    kill(doomed)


def test_a_checkpoint_that_cant_be_restored_is_replaced_by_the_copy_at_the_head(alone: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(alone, log, "raid0", 1)
    wait_for(lambda: copied(alone, job), "a copy at the head")
    kill_it(alone, job)
    view = alone.wait_for_state(job, "running", 3)
    wait_for(lambda: orders(alone, view), "it has its orders")
    (order,) = orders(alone, view)
    assert order.anew and len(order.copies) == 1
    assert answer(alone, job) == undisturbed(1)
    first, again = Stepped(log).numbers("begins")
    assert first == 0 < again
    said = alone.beo("logs", str(job), "--attempt", "2").stderr
    assert len(re.findall("^beo: the checkpoint of step .* is lost", said, re.MULTILINE)) == 1
    assert "Traceback" not in said


@pytest.mark.parametrize("alone", ["checkpoint_copy_s = 0\n"], indirect=True, ids=["no copies"])
def test_a_checkpoint_that_is_nowhere_else_ends_the_job_with_one_line(alone: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = submit(alone, log, "raid0", 1)
    wait_for(lambda: len(Stepped(log).numbers("kept")) >= 2, "checkpoints")
    kill_it(alone, job)
    (view,) = alone.wait(job)
    assert (view.state, view.attempt, view.exit_code) == ("failed", 2, EXIT_UNRESTORED)
    assert "no whole copy of it is at the head" in alone.beo("show", str(job)).stdout
    said = alone.beo("logs", str(job), "--attempt", "2").stderr.splitlines()
    assert len(said) == 1, said
    assert re.match(r"beo: the checkpoint of step \d+ is lost \(.*raid0.*\): .*beo requeue.*fresh=True", said[0])


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("heads", [1, 2], ids=["one head", "and the acting head"])
def test_two_of_three_workers_are_lost_where_parity_makes_up_for_one(heads: int, tmp_path: Path) -> None:
    with running(tmp_path / "beo", workers=6, slots=1, settings=COPIES, heads=heads) as cluster:
        log, doomed_heads, votes = tmp_path / "log", [], []
        if heads == 2:
            votes = sorted(voting(cluster))
            cluster.beo("drain", *votes)  # the others are lost with the head: most of the votes must be left
        job = submit(cluster, log, "raid5", 3, LONG_S)
        lost = expand(cluster.wait_for_state(job, "running").nodes)[1:]
        if votes:
            cluster.beo("resume", *votes)
        wait_for(lambda: has_copy(cluster, job), "a whole copy")
        if heads == 2:
            doomed_heads = [HEADS[cluster.await_step().name]]  # a busy standby may have been out of step since
        cluster.kill("supervisor")  # it would start again what is killed
        vaults = [vault(cluster, node) for node in lost]
        doomed = [pid for node in lost for pid in cluster.stop_worker(node)]
        kill([*(cluster.pid(name) for name in doomed_heads), *doomed])
        for place in vaults:
            shutil.rmtree(place / str(job))
        kept, done = Stepped(log).numbers("kept")[-1], Stepped(log).numbers("step")[-1]
        assert done < STEPS
        assert answer(cluster, job) == undisturbed(3)
        first, again = Stepped(log).numbers("begins")
        assert first == 0 < again <= kept
        if heads == 1:  # a head that took over gives copies to nodes that haven't told what they keep
            assert cluster.job(job).attempt == 3
            said = cluster.beo("logs", str(job), "--attempt", "2").stderr
            assert len(re.findall("^beo: the checkpoint of step .* is lost", said, re.MULTILINE)) == 1
            assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_that_has_begun_with_copies_alone_bears_a_loss_right_after(tmp_path: Path) -> None:
    """No copy has parity in it: it is made anew before the first step, and no other checkpoint is taken here."""
    with running(tmp_path / "beo", workers=6, slots=1, settings="checkpoint_copy_s = 0\n") as cluster:
        log = Stepped(tmp_path / "log")
        job = cluster.submit(log.argv("raid5", STEPS, 2 * STEP_S, 10 * STEPS), ranks=3, requeue="auto")
        wait_for(lambda: log.count("step") > 20, "it computes")
        others = [f"node{number:02}" for number in range(1, 7)]
        others = [node for node in others if node not in expand(cluster.job(job).nodes)]
        cluster.beo("migrate", str(job), ",".join(others))
        view = cluster.wait_for_state(job, "running", 2)
        assert expand(view.nodes) == others
        wait_for(lambda: len(orders(cluster, view)) == 3, "they have their orders")
        assert all(order.anew and len(order.copies) == 3 for order in orders(cluster, view))
        wait_for(lambda: log.count("begins") == 2, "it goes on")
        cluster.kill("supervisor")  # it would start again what is killed
        place = vault(cluster, others[1])
        kill(cluster.stop_worker(others[1]))
        shutil.rmtree(place / str(job))
        view = cluster.wait_for_state(job, "running", 3)
        wait_for(lambda: len(orders(cluster, view)) == 3, "they have their orders")
        assert [order.copies for order in orders(cluster, view)] == [()] * 3, "nothing is read from a head"
        assert answer(cluster, job) == undisturbed(3)
        first, moved, again = log.numbers("begins")
        assert first == 0 < moved == again
