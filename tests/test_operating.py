"""Running a real cluster: what is held, queued again, drained and forgotten, with daemons that are killed meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import job as jobs
from beo import messages as m
from beo.errors import Conflict
from tests.cluster import Cluster, is_alive, running, send, wait_for

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


# ---- processes


PAIR = "sh -c 'sleep 101; true' & exec sleep 102"  # a rank with a child that has a child


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[int]:
    """A job of two ranks on two nodes, each with two more processes."""
    job = cluster.submit(["sh", "-c", PAIR], ranks=2, nodes=2, name="pair")
    wait_for(lambda: len(sleeping(cluster, job)) == 4, "both ranks have their children")
    yield job
    cluster.beo("cancel", str(job))
    cluster.wait(job)


def sleeping(cluster: Cluster, job: int) -> list[tuple[str, m.Process]]:
    with cluster.client() as own:
        return [found for found in jobs.Job(job, own).processes() if found[1].command.startswith("sleep 10")]


def test_ps_shows_every_process_of_every_job_on_all_nodes(cluster: Cluster, pair: int) -> None:
    rows = json.loads(cluster.beo("ps", str(pair), "--json").stdout)
    assert [row["command"] for row in rows].count("sleep 102") == 2
    ranks = cluster.ranks(pair)
    assert {row["rank"]: row["pid"] for row in rows if row["rank"] is not None} == ranks
    for row in rows:
        assert row["id"] == f"{pair}/{row['node']}/{row['pid']}" and is_alive(row["pid"])
    assert {row["node"] for row in rows} == {"node01", "node02"}
    children = [row for row in rows if row["command"] == "sleep 101"]
    assert {row["parent"] for row in children} <= {row["pid"] for row in rows}
    only = json.loads(cluster.beo("ps", "--node", "node02", "--json").stdout)
    assert {row["node"] for row in only} == {"node02"}


def test_one_process_is_killed_and_nothing_else(cluster: Cluster, pair: int) -> None:
    node, victim = next(found for found in sleeping(cluster, pair) if found[1].command == "sleep 101")
    before = {found[1].pid for found in sleeping(cluster, pair)}
    done = cluster.beo("kill", "-s", "KILL", f"{pair}/{node}/{victim.pid}")
    assert done.stdout == f"{pair}/{node}/{victim.pid}: SIGKILL to sleep 101\n" and done.returncode == 0
    wait_for(lambda: not is_alive(victim.pid), "it is dead")
    assert {found[1].pid for found in sleeping(cluster, pair)} == before - {victim.pid}
    assert f"signal 9 for process {victim.pid}" in cluster.beo("events").stdout


def test_a_rank_is_killed_with_its_group_and_that_ends_the_job(cluster: Cluster) -> None:
    job = cluster.submit(["sh", "-c", PAIR], ranks=2, nodes=2)
    wait_for(lambda: len(sleeping(cluster, job)) == 4, "both ranks have their children")
    done = cluster.beo("kill", f"{job}.1")
    assert re.fullmatch(rf"{job}/node0[12]/[0-9]+ \(rank 1\): SIGTERM to sleep 102", done.stdout.splitlines()[0])
    (view,) = cluster.wait(job)
    assert (view.state, view.exit_code) == ("failed", 128 + signal.SIGTERM)
    assert cluster.beo("kill", f"{job}.1").returncode == 75, "it doesn't run any more"


def test_a_process_that_is_none_of_the_jobs_is_never_hit(cluster: Cluster, pair: int) -> None:
    (rank, *_) = cluster.ranks(pair).values()
    node = next(found[0] for found in sleeping(cluster, pair) if found[1].pid == rank)
    for pid in (os.getpid(), cluster.pid(node), *cluster.wardens(node)):
        done = cluster.beo("kill", "-s", "KILL", f"{pair}/{node}/{pid}")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"beo: {pair}/{node}/{pid}: no process {pid} of job {pair} runs here\n"
        assert is_alive(pid)
    assert cluster.beo("kill", f"{pair}.7").stderr == f"beo: {pair}.7: no such rank runs\n"


def test_a_signal_that_is_asked_for_twice_is_sent_once(cluster: Cluster, tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    script = f"trap 'echo heard >> {heard}' USR1; echo ready > {heard}; while :; do sleep 0.1; done"
    job = cluster.submit(["sh", "-c", script])
    wait_for(lambda: heard.exists() and heard.read_text(), "the trap is set")
    with cluster.client() as own:
        for _ in range(3):
            (hit, *_) = own.kill([m.Target(job, "", 0, 0)], signal.SIGUSR1, "one key").hits
            assert hit.rank == 0 and not hit.trouble
    wait_for(lambda: "heard" in heard.read_text(), "the rank hears it")
    cluster.beo("cancel", str(job))
    cluster.wait(job)
    assert heard.read_text() == "ready\nheard\n"


def test_a_node_that_does_not_answer_is_named_and_the_others_are_shown(cluster: Cluster, pair: int) -> None:
    agent = cluster.pid("node02")
    send([agent], signal.SIGSTOP)
    try:
        done = cluster.beo("ps", str(pair), "-q")
        assert (done.returncode, done.stderr) == (75, "beo: no answer from node02: what runs there is not shown\n")
        assert {line.split("/")[1] for line in done.stdout.splitlines()} == {"node01"}
    finally:
        send([agent], signal.SIGCONT)
    cluster.wait_for_node("node02", "up")


def test_the_ranks_of_a_jobs_steps_have_numbers_too_and_are_killed_by_them(cluster: Cluster) -> None:
    script = f"PATH={Path(sys.executable).parent}:$PATH; beo run -n 2 sleep 103; echo ended $?"
    job = cluster.submit(["sh", "-c", f"#BEO\n{script}"], slots=3)

    def ranks() -> dict[int, str]:
        with cluster.client() as own:
            found = [process for _, process in jobs.Job(job, own).processes()]
        return {process.rank: process.command for process in found if process.command == "sleep 103"}

    wait_for(lambda: sorted(ranks()) == [1, 2], "both ranks of the step are shown, numbered behind the job's own")
    assert "(rank 2): SIGKILL to sleep 103" in cluster.beo("kill", "-s", "KILL", f"{job}.2").stdout
    cluster.wait(job)
    assert "ended 137" in cluster.output(job)


def test_top_shows_the_cluster_as_it_is(cluster: Cluster, pair: int) -> None:
    shown = cluster.beo("top", "-n", "1").stdout
    assert "node01  up" in shown and f"{pair:>3}  pair" in shown and f"{pair}/node02/" in shown


# ---- what was


def test_events_are_followed_without_loss_over_restarts_of_the_head(cluster: Cluster) -> None:
    words = ("events", "-f", "-n", "1", "--json")
    follower = cluster.start(*words)
    assert follower.stdout
    lines = [json.loads(follower.stdout.readline())]
    submitted = []
    for _ in range(3):
        submitted += [cluster.submit(["true"]) for _ in range(3)]
        cluster.kill_and_await("head")
        cluster.wait_for_head()
    cluster.wait(*submitted)
    last = cluster.submit(["true"])
    while (lines[-1]["kind"], lines[-1]["job"]) != ("Submitted", last):
        lines.append(json.loads(follower.stdout.readline()))
    follower.send_signal(signal.SIGINT)
    follower.communicate(timeout=30)
    indices = [line["index"] for line in lines]
    assert indices == list(range(indices[0], indices[-1] + 1)), "an entry is missing, or there twice"
    assert [line["job"] for line in lines if line["kind"] == "Submitted"] == [*submitted, last]
    assert sum(line["kind"] == "EpochBegan" for line in lines) >= 3
    with cluster.client() as own:
        known = {event.index: event.text for event in own.journal()}
    assert {line["index"]: line["text"] for line in lines}.items() <= known.items()


def test_events_of_one_node_and_of_one_job(cluster: Cluster) -> None:
    job = cluster.submit(["true"])
    cluster.wait(job)
    found = json.loads(cluster.beo("events", "--job", str(job), "--json").stdout)
    assert [row["kind"] for row in found] == ["Submitted", "Started", "PartEnded"]
    node = found[-1]["node"]
    named = json.loads(cluster.beo("events", "--node", node, "--json").stdout)
    assert {row["node"] for row in named if row["kind"] != "Started"} == {node}
    assert found[1]["index"] in {row["index"] for row in named}, "an attempt is about all its nodes"


def test_history_tells_what_jobs_took(cluster: Cluster) -> None:
    busy = "import time; x = bytearray(30_000_000); end = time.process_time() + 0.3\nwhile time.process_time() < end: 1"
    good = cluster.submit([sys.executable, "-c", busy], ranks=2, name="busy")
    bad = cluster.submit(["sh", "-c", "exit 3"])
    cluster.wait(good, bad)
    rows = {row["id"]: row for row in json.loads(cluster.beo("history", f"{good}-{bad}", "--json").stdout)}
    assert (rows[good]["state"], rows[good]["exit"], rows[good]["ranks"]) == ("done", 0, 2)
    assert rows[good]["cpu"] >= 0.6 and rows[good]["peak"] >= 30_000_000 and rows[good]["ran"] > 0
    assert (rows[bad]["state"], rows[bad]["exit"], rows[bad]["reason"]) == ("failed", 3, "exit code 3")
    only = cluster.beo("history", "--state", "failed", "--since", "1h", "-q").stdout.split()
    assert str(bad) in only and str(good) not in only
    sums = json.loads(cluster.beo("history", f"{good},{bad}", "--sum", "--json").stdout)
    assert [(row["jobs"], row["done"], row["failed"]) for row in sums] == [(2, 1, 1)] * 2
    assert cluster.beo("history", "--until", "2020-01-01").stdout.count("\n") <= 1


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
