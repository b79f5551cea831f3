"""A job goes on elsewhere when its node is drained, or when somebody says so, and loses no step by it."""

import time
from collections.abc import Iterator
from pathlib import Path

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


@pytest.mark.slow
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


# ---- programs with checkpoints of their own

OWN = """
test $BEO_RANK = 0 || {{ trap 'exit 3' USR1; sleep {seconds}; exit; }}
trap 'echo $step > $BEO_CHECKPOINT_DIR/step; exit 3' USR1
test -e $BEO_CHECKPOINT_DIR/step || echo 0 > $BEO_CHECKPOINT_DIR/step
read step < $BEO_CHECKPOINT_DIR/step
echo begins at $step >> {log}
while test $step -lt {steps}; do step=$((step + 1)); sleep 0.02; done
echo ends at $step >> {log}
"""


def own(cluster: Cluster, tmp_path: Path, steps: int, **options: object) -> tuple[int, Path]:
    """Submit a shell script whose first rank counts, and keeps its count when it gets SIGUSR1."""
    log = tmp_path / "log"
    text = OWN.format(log=log, steps=steps, seconds=0.02 * steps)
    return cluster.submit(["sh", "-c", text], signal="USR1@1", **options), log


def lines(log: Path) -> list[tuple[str, int]]:
    found = [line.split(" at ") for line in log.read_text().splitlines()] if log.exists() else []
    return [(what, int(step)) for what, step in found]


def test_a_program_with_checkpoints_of_its_own_gets_a_signal_and_goes_on_elsewhere(
    cluster: Cluster, tmp_path: Path
) -> None:
    job, log = own(cluster, tmp_path, 150)
    node = node_of(cluster, job)
    wait_for(lambda: lines(log), "it has begun")
    time.sleep(0.5)
    cluster.beo("drain", node)
    assert cluster.wait_for_state(job, "running", 2).nodes != node
    assert [view.state for view in cluster.wait(job)] == ["done"]
    cluster.beo("resume", node)
    (_, zero), (begins, step), (ends, last) = lines(log)
    assert (zero, begins, ends, last) == (0, "begins", "ends", 150)
    assert 0 < step < 150


def test_a_job_that_goes_on_halts_before_its_time_is_up_until_it_is_done(cluster: Cluster) -> None:
    job = toy(cluster, 150, goes_on=True, time_limit=2.0)
    assert [view.state for view in cluster.wait(job)] == ["done"]
    began, halted = begins(cluster, job), told(cluster, job, "halts")
    assert len(began) == len(halted) + 1 > 1
    assert [step for _, step in began[1:]] == [step for _, step in halted]


def test_a_program_with_checkpoints_of_its_own_goes_on_after_its_time_was_up(cluster: Cluster, tmp_path: Path) -> None:
    job, log = own(cluster, tmp_path, 120, goes_on=True, time_limit=2.0)
    assert [view.state for view in cluster.wait(job)] == ["done"]
    steps = [step for what, step in lines(log) if what == "begins"]
    assert len(steps) > 1
    assert steps == sorted(steps)
    assert lines(log)[-1] == ("ends", 120)


def test_a_job_without_continue_takes_a_last_checkpoint_and_requeue_goes_on_from_there(cluster: Cluster) -> None:
    job = toy(cluster, 10_000, time_limit=1.0)
    (view,) = cluster.wait(job)
    assert view.state == "failed"
    assert cluster.beo("requeue", str(job)).returncode == 0
    wait_for(lambda: len(begins(cluster, job)) == 2, "another attempt")
    assert begins(cluster, job)[1][1] > 0
    cluster.beo("cancel", str(job))
    cluster.wait(job)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--continue"], "--continue without a time limit"),
        (["--signal", "NONSENSE"], "no signal 'NONSENSE'"),
        (["--signal", "USR1@soon"], "soon"),
        (["--signal", "99"], "the number of the signal is 99"),
    ],
)
def test_what_makes_no_sense_before_the_end_is_refused(cluster: Cluster, words: list[str], error: str) -> None:
    said = cluster.beo("submit", *words, "true")
    assert (said.returncode, error in said.stderr) == (2, True), said.stderr


def test_what_a_moved_job_prints_is_one_output_in_logs_and_in_its_file(cluster: Cluster, tmp_path: Path) -> None:
    # The signal may come between the line and what is kept of it, so it only sets a word.
    text = "trap stop=1 USR1; for n in $(seq $(cat $BEO_CHECKPOINT_DIR/n 2>/dev/null || echo 1) 60); do"
    text += ' echo line $n; echo $((n + 1)) > $BEO_CHECKPOINT_DIR/n; test -z "$stop" || exit 85; sleep 0.05; done'
    job = cluster.submit(["sh", "-c", text], signal="USR1@5", output=str(tmp_path / "out"), errors="/dev/null")
    node = node_of(cluster, job)
    wait_for(lambda: "line 5\n" in cluster.output(job), "it prints")
    cluster.beo("migrate", str(job))
    assert cluster.wait_for_state(job, "running", 2).nodes != node
    assert [view.state for view in cluster.wait(job)] == ["done"]
    expected = "".join(f"line {n}\n" for n in range(1, 61))
    assert cluster.output(job) == expected
    wait_for(lambda: (tmp_path / "out").read_text() == expected, "all of it is in the file")


# ---- who makes room


def test_a_job_of_a_higher_priority_has_one_that_takes_checkpoints_make_room_and_go_on_later(cluster: Cluster) -> None:
    low = [toy(cluster, 250, priority=-200) for _ in range(3)]
    for job in low:
        reached(cluster, job, node_of(cluster, job), 5)
    high = cluster.submit(["sleep", "0.2"])
    assert [view.state for view in cluster.wait(high)] == ["done"]
    views = cluster.wait(*low)
    assert [view.state for view in views] == ["done"] * 3
    assert sorted(view.attempt for view in views) == [1, 1, 2]
    (moved,) = [view.id for view in views if view.attempt == 2]
    ((_, halted),) = told(cluster, moved, "halts")
    assert [step for _, step in begins(cluster, moved)] == [0, halted]


@pytest.mark.slow
def test_what_only_one_of_a_jobs_nodes_keeps_goes_along_when_it_makes_room(cluster: Cluster, tmp_path: Path) -> None:
    job, log = own(cluster, tmp_path, 150, ranks=2, priority=-200)
    wait_for(lambda: " on node" in cluster.beo("show", str(job)).stdout, "the head knows what is kept")
    high = cluster.submit(["sleep", "60"], ranks=3)
    cluster.wait_for_state(high, "running")
    wait_for(lambda: " on node" not in cluster.beo("show", str(job)).stdout, "the nodes have the memory back")
    cluster.beo("cancel", str(high))
    assert [view.state for view in cluster.wait(job)] == ["done"]
    (_, zero), (begins, step), (ends, last) = lines(log)
    assert (zero, begins, ends, last) == (0, "begins", "ends", 150)
    assert 0 < step < 150


def test_a_job_without_a_checkpoint_makes_room_for_nobody(cluster: Cluster) -> None:
    low = [cluster.submit(["sleep", "1.5"], priority=-200) for _ in range(3)]
    for job in low:
        cluster.wait_for_state(job, "running")
    high = cluster.submit(["true"])
    assert [view.state for view in cluster.wait(high, *low)] == ["done"] * 4
    assert [cluster.job(job).attempt for job in low] == [1, 1, 1]
