"""The whole cluster: its supervisor is killed, it goes down in the middle and up again, it has another beside it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.cluster import is_alive, kill, running, wait_for
from tests.history import History

SEED = 5


def test_what_runs_outlives_the_supervisor_and_up_brings_another_one(tmp_path: Path) -> None:
    with running(tmp_path / "beo") as cluster:
        history = History(tmp_path / "notes")
        history.acknowledged("long", cluster.submit(history.argv("long")))
        wait_for(lambda: history.lives("long"), "the job lives")
        daemons = {name: cluster.pid(name) for name in ("head", "node01", "node02")}
        cluster.kill("supervisor")
        history.acknowledged("short", cluster.submit(history.argv("short", 0)))  # all goes on without it
        cluster.kill("node01", "head")  # but what ends stays away
        done = cluster.beo("up")
        assert done.returncode == 0, done.stderr
        assert cluster.pid("node02") == daemons["node02"]
        cluster.kill_and_await("head")
        cluster.wait_for_head()
        cluster.check(history, adopted=["long"])


def test_down_in_the_middle_and_up_again_brings_every_job_through(tmp_path: Path) -> None:
    with running(tmp_path / "beo", slots=1) as cluster:
        history = History(tmp_path / "notes")
        tags = [f"{requeue}-{k}" for requeue in ("auto", "confirm") for k in range(4)]
        for tag in tags:
            history.acknowledged(tag, cluster.submit(history.argv(tag, 0.5), requeue=tag.partition("-")[0]))
        wait_for(lambda: sum(history.lives(tag) for tag in tags) == 2, "two jobs live, the rest waits")
        done = cluster.beo("down")
        assert done.returncode == 0, done.stderr
        assert "2 running jobs were stopped; they are queued again" in done.stdout
        assert cluster.leftovers() == []
        cluster.up()
        cluster.check(history)
        attempts = [view.attempt for view in cluster.wait(*history.jobs)]
        assert sorted(attempts) == [1] * 6 + [2] * 2


def test_everything_killed_at_one_moment_comes_up_again_with_every_job(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    with running(tmp_path / "beo") as cluster:
        history = History(tmp_path / "notes")
        for k in range(12):
            tag = f"job-{k}"
            argv = history.argv(tag, dice.uniform(0.2, 1.0))
            history.acknowledged(tag, cluster.submit(argv, requeue=dice.choice(["auto", "confirm"])))
        cluster.kill("supervisor")
        stopped = [pid for node in ("node01", "node02") for pid in cluster.stop_worker(node)]
        kill([cluster.pid("head"), *stopped])
        cluster.up()
        cluster.check(history)


def test_two_clusters_side_by_side_know_nothing_of_each_other(tmp_path: Path) -> None:
    with running(tmp_path / "one", workers=1) as one, running(tmp_path / "two", workers=1) as two:
        histories = [History(tmp_path / f"notes-{k}") for k in range(2)]
        for cluster, history in zip((one, two), histories, strict=True):
            for tag in ("a", "b"):
                history.acknowledged(tag, cluster.submit(history.argv(tag)))
        assert histories[0].jobs == histories[1].jobs == [1, 2]
        wait_for(lambda: all(history.lives("a") for history in histories), "both live")
        survivors = [two.pid(name) for name in ("head", "node01", "supervisor")]
        one.kill("supervisor", "head")
        one.kill_worker("node01")
        one.down()
        assert one.processes() == []
        assert all(map(is_alive, survivors))
        two.check(histories[1], adopted=["a", "b"])
        one.up()
        one.check(histories[0])
