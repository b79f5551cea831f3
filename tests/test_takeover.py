"""Two real heads on one machine: whichever is killed, stopped or told to, users notice nothing and nothing is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import messages as ms
from beo import question
from tests.cluster import HEADS, OTHER, PATIENCE_S, Cluster, is_alive, running, send, wait_for
from tests.history import History


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two heads and three workers; each test finds them in step."""
    with running(tmp_path_factory.mktemp("pair") / "beo", workers=3, slots=4, heads=2) as cluster:
        yield cluster


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "notes")


def ask(cluster: Cluster, name: str, wish: str) -> None:
    """Say an operator's wish to a head."""
    view = cluster.await_step()
    address = next(head.control for head in view.heads if head.name == name)
    home = cluster.home
    question.ask([address], home.cluster().key, home.secret("admin"), ms.Steer(wish), ms.Done)


def test_a_killed_primary_is_replaced_and_no_job_or_line_is_lost(pair: Cluster, history: History) -> None:
    first = pair.await_step().name
    history.acknowledged("runs", pair.submit(history.argv("runs", talks=True), ranks=2))
    follower = pair.start("logs", "-f", str(history.jobs[0]))
    wait_for(lambda: history.lives("runs"), "the job lives")
    for n in range(5):
        history.acknowledged(f"before-{n}", pair.submit(history.argv(f"before-{n}", 0.0)))
    pair.kill(HEADS[first])
    for n in range(5):  # at once: its client waits until the other one answers
        history.acknowledged(f"after-{n}", pair.submit(history.argv(f"after-{n}", 0.0)))
    assert pair.acting() == OTHER[first]
    pair.check(history, adopted=["runs"])
    out, err = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0, err
    lines = [line.split() for line in out.splitlines()]
    for rank in ("0", "1"):
        numbers = [int(number) for _, of, number in lines if of == rank]
        assert numbers == list(range(len(numbers))) and numbers, "a line was lost, doubled or moved"
    assert pair.await_step().name == OTHER[first], "no head gives its role back unless it is told to"


def test_a_stopped_primary_is_replaced_and_steps_back_when_it_wakes(pair: Cluster, history: History) -> None:
    view = pair.await_step()
    pid = pair.pid(HEADS[view.name])
    send([pid], signal.SIGSTOP)
    try:
        history.acknowledged("while", pair.submit(history.argv("while", 0.0)))
        pair.await_acting(OTHER[view.name])
    finally:
        send([pid], signal.SIGCONT)
    now = pair.await_step()
    assert now.name == OTHER[view.name] and now.epoch > view.epoch
    assert pair.pid(HEADS[view.name]) == pid, "it need not be started again"
    pair.check(history)


def test_a_killed_standby_costs_nothing(pair: Cluster, history: History) -> None:
    view = pair.await_step()
    pair.kill(HEADS[OTHER[view.name]])
    for n in range(5):
        history.acknowledged(f"job-{n}", pair.submit(history.argv(f"job-{n}", 0.0)))
    assert pair.await_step().name == view.name
    pair.check(history)


def test_an_operator_hands_the_role_over_while_a_run_goes_on(pair: Cluster) -> None:
    view = pair.await_step()
    run = pair.start("run", "-n", "2", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo line $i; sleep 0.1; done")
    wait_for(lambda: any(row.state == "running" for row in _rows(pair)), "the run")
    ask(pair, view.name, "switchover")
    pair.await_acting(OTHER[view.name])
    out, err = run.communicate(timeout=PATIENCE_S)
    assert (run.returncode, sorted(out.splitlines())) == (0, sorted(2 * [f"line {i}" for i in range(1, 10)])), err
    assert "beo:" not in err, "the user need not know"
    assert pair.await_step().epoch > view.epoch


def _rows(cluster: Cluster) -> tuple[ms.JobView, ...]:
    with cluster.client() as own:
        return own.jobs().jobs


def test_a_wait_goes_on_at_the_other_head(pair: Cluster, history: History) -> None:
    job = pair.submit(history.argv("waited"))
    history.acknowledged("waited", job)
    wait_for(lambda: history.lives("waited"), "the job lives")
    waits = pair.start("wait", str(job))
    wait_for(lambda: is_alive(waits.pid), "the wait")
    pair.kill(HEADS[pair.await_step().name])
    pair.await_step()
    history.release()
    assert waits.wait(PATIENCE_S) == 0
    pair.check(history, adopted=["waited"])


def test_both_heads_killed_at_once_come_back_with_everything(pair: Cluster, history: History) -> None:
    for n in range(5):
        history.acknowledged(f"job-{n}", pair.submit(history.argv(f"job-{n}", 0.3), requeue="auto"))
    for pid in [pair.pid(HEADS[name]) for name in ("A", "B")]:
        os.kill(pid, signal.SIGKILL)
    pair.check(history)
    pair.await_step()


def test_down_and_up_again_brings_both_heads_back(pair: Cluster, history: History) -> None:
    history.acknowledged("held", pair.submit(history.argv("held", 0.0)))
    before = pair.await_step()
    assert pair.beo("down").returncode == 0
    assert pair.leftovers() == []
    done = pair.beo("up")
    assert done.returncode == 0, done.stderr
    assert pair.await_step().epoch > before.epoch
    pair.check(history)
