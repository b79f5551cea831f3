"""Files of jobs at the worst moments: daemons, workers and heads are killed while they come in and go out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.bulk.store import FOLDER
from beo.headnode.folds.attempts import CODE_FILES
from tests.cluster import HEADS, Cluster, running, send, wait_for
from tests.people import Person, open_place
from tests.test_staging import cat, chunks_of, hand_in, names, release, tree
from tests.volumes import await_equal, tree_of, tree_pid

pytestmark = pytest.mark.slow

LARGE_BYTES = 48 << 20  # on its way for long enough for a kill in the middle
USER = 54_360  # no account's number


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("kills") / "beo", workers=2) as made:
        yield made


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "x").write_text("some input\n")
    return folder


def folders(cluster: Cluster, job: int) -> list[Path]:
    """What an attempt has in /tmp."""
    with cluster.client() as own:
        name = own.info().cluster[:8]
    return list(Path("/tmp").glob(f"beo-{name}-*-{job}.*-*"))


def pause(cluster: Cluster, job: int, nodes: int = 1) -> int:
    """Let a held job start and wait for its files on so many nodes, in vain; return the process that holds it up."""
    pid = tree_pid(cluster, "A")
    assert pid
    send([pid], signal.SIGSTOP)
    with cluster.client() as own:
        own.release([str(job)])
    cluster.wait_for_state(job, "running")
    wait_for(lambda: len(folders(cluster, job)) == nodes, "its folders are made")
    return pid


def test_an_agent_that_is_killed_while_files_come_in_is_not_noticed(cluster: Cluster, here: Path) -> None:
    job = hand_in(cluster, here, "sh", "-c", "cat x > y", inputs=("x",), outputs=["y"], hold=True, ranks=4)
    pid = pause(cluster, job, nodes=2)
    try:
        cluster.kill_and_await("node01", "node02")
    finally:
        send([pid], signal.SIGCONT)
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 1)
    assert cat(cluster, f"/jobs/{job}/y") == "some input\n"


def test_a_warden_that_is_killed_while_files_come_in_leaves_nothing_and_the_job_runs_again(
    cluster: Cluster, here: Path
) -> None:
    job = hand_in(cluster, here, "cat", "x", inputs=("x",), hold=True, requeue="confirm")
    pid = pause(cluster, job)
    try:
        before = folders(cluster, job)
        send([*cluster.wardens("node01"), *cluster.wardens("node02")], signal.SIGKILL)
        wait_for(lambda: not any(path.exists() for path in before), "what it had is removed")
    finally:
        send([pid], signal.SIGCONT)
    (view,) = cluster.wait(job)
    assert view.state == "done" and view.attempt >= 2, "the wardens that wait for a job were killed too"
    assert cluster.output(job) == "some input\n"


@pytest.mark.parametrize("node", ["node01", "node02"])
def test_a_node_that_loses_its_part_while_files_come_in_is_not_waited_for_by_the_other(
    cluster: Cluster, here: Path, node: str
) -> None:
    job = hand_in(cluster, here, "sh", "-c", "cat x > y", inputs=("x",), outputs=["y"], hold=True, ranks=4)
    pid = pause(cluster, job, nodes=2)
    try:
        send(cluster.wardens(node), signal.SIGKILL)
        wait_for(lambda: cluster.job(job).attempt == 2, "the next attempt")
    finally:
        send([pid], signal.SIGCONT)
    assert cluster.wait(job)[0].state == "done"
    assert cat(cluster, f"/jobs/{job}/y") == "some input\n"


def test_one_that_is_cancelled_while_files_come_in_ends_at_once(cluster: Cluster, here: Path) -> None:
    job = hand_in(cluster, here, "cat", "x", inputs=("x",), outputs=["x"], hold=True)
    pid = pause(cluster, job)
    try:
        with cluster.client() as own:
            own.cancel([str(job)])
        assert cluster.wait(job)[0].state == "cancelled"
    finally:
        send([pid], signal.SIGCONT)
    wait_for(lambda: not folders(cluster, job), "what it had is removed")


def test_a_lost_workers_job_runs_again_elsewhere_and_writes_over_its_results(cluster: Cluster, here: Path) -> None:
    script = "cat x > y; echo $BEO_ATTEMPT >> y; test $BEO_ATTEMPT = 2 || { echo; sleep 600; }"
    job = hand_in(cluster, here, "sh", "-c", script, inputs=("x",), outputs=["y"], requeue="auto")
    with tree(cluster) as files:  # as if the first attempt had got so far
        files.mkdir("/jobs", exist_ok=True)
        files.mkdir(f"/jobs/{job}", exist_ok=True)
        files.write(f"/jobs/{job}/y", iter([b"of attempt 1"]))
    wait_for(lambda: cluster.output(job), "it runs")
    node = cluster.job(job).nodes
    cluster.kill_worker(node)
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 2)
    assert cat(cluster, f"/jobs/{job}/y") == "some input\n2\n"
    cluster.wait_for_node(node, "up")


@pytest.mark.parametrize("node", ["node01", "node02"])
def test_a_job_that_loses_one_of_its_nodes_goes_on_as_soon_as_that_is_known(
    cluster: Cluster, here: Path, node: str
) -> None:
    script = "cat x > y; echo $BEO_ATTEMPT; test $BEO_ATTEMPT = 2 || sleep 600"
    words = {"inputs": ("x",), "outputs": ["y"], "requeue": "auto", "ranks": 4}
    job = hand_in(cluster, here, "sh", "-c", script, **words)  # type: ignore[arg-type]
    wait_for(lambda: cluster.output(job).count("1") == 4, "it runs")
    cluster.kill_worker(node)
    wait_for(lambda: cluster.job(job).attempt == 2, "the next attempt")
    assert cluster.wait(job)[0].state == "done"
    assert cat(cluster, f"/jobs/{job}/y") == "some input\n"


def test_chunks_of_jobs_that_are_over_go_by_themselves(tmp_path: Path, here: Path) -> None:
    with running(tmp_path / "beo", workers=1, settings="[files]\nsweep_s = 0.3\nspare_s = 3\n") as cluster:
        waiting = hand_in(cluster, here, "cat", "x", inputs=("x",), hold=True)
        needed = chunks_of(cluster).keys()
        (here / "x").write_text("another")
        over = hand_in(cluster, here, "cat", "x", inputs=("x",))
        assert cluster.wait(over)[0].state == "done"
        assert len(chunks_of(cluster)) == 4
        wait_for(lambda: chunks_of(cluster).keys() == needed, "those of the job that is over are gone")
        assert release(cluster, waiting).state == "done"
        assert cluster.output(waiting) == "some input\n"


@pytest.mark.root
def test_of_another_user_all_is_his_and_a_full_quota_fails_the_job_in_words() -> None:
    with open_place() as place:
        limits = "[files]\nuser_bytes_max = 300000\n"
        with running(place / "beo", workers=2, settings=limits) as cluster:
            cluster.home.path.chmod(0o711)
            ann = Person(USER, [USER], place)
            (ann.home / "x").write_text("hers\n")
            script = (
                "cat x; id -u; mkdir out; head -c $1 /dev/zero > out/big; ls -ln out | tail -1; touch $BEO_WORK/new"
            )
            words = ("-n", "2", "-N", "2", "--in", ".", "--out", "out", "sh", "-c", script, "-")
            fits = ann.submit(cluster.home.path, *words, "1000")
            (view,) = cluster.wait(fits)
            assert (view.state, view.reason) == ("done", "")
            said = cluster.output(fits).split()
            assert said.count("hers") == said.count(str(USER)) // 3 == 2
            with tree(cluster) as files:
                for path in (f"{FOLDER}/{USER}", f"/jobs/{fits}", f"/jobs/{fits}/out", f"/jobs/{fits}/out/big"):
                    assert files.stat(path).uid == USER, path
                assert files.stat(f"{FOLDER}/{USER}").mode & 0o77 == 0, "nobody else looks into it"
            assert ann.beo(cluster.home.path, "get", f"/jobs/{fits}/out/big", ".").returncode == 0
            large = ann.submit(cluster.home.path, *words, "400000")
            (view,) = cluster.wait(large)
            assert (view.state, view.exit_code, view.code_by) == ("failed", CODE_FILES, "beo")
            assert view.reason == f"its results are not kept: /jobs/{large}/out/big: your quota is used up"
            (ann.home / "big").write_bytes(os.urandom(400_000))
            done = ann.beo(cluster.home.path, "submit", "--in", ".", "true")
            assert done.stderr.startswith(
                "beo: the inputs can't be kept in the tree (your quota is used up): free some"
            )


# ---- two heads


def kill_acting(cluster: Cluster) -> None:
    cluster.kill(HEADS[cluster.acting()])


def test_a_primary_that_is_killed_while_files_come_in_and_go_out_costs_nothing(tmp_path: Path, here: Path) -> None:
    data = os.urandom(LARGE_BYTES)
    (here / "large").write_bytes(data)
    with running(tmp_path / "beo", workers=2, slots=1, heads=2) as cluster:
        go = tmp_path / "go"
        script = f"cp large copy; echo copied; until test -e {go}; do sleep 0.02; done"
        words = {"inputs": ("large",), "outputs": ["copy"], "ranks": 2, "requeue": "never"}
        job = hand_in(cluster, here, "sh", "-c", script, hold=True, **words)  # type: ignore[arg-type]
        cluster.await_step()
        with cluster.client() as own:
            own.release([str(job)])
        wait_for(lambda: any((path / "large").exists() for path in folders(cluster, job)), "files come in")
        kill_acting(cluster)
        wait_for(lambda: "copied\ncopied\n" in cluster.output(job), "both ranks have run")
        cluster.await_step()
        go.touch()
        wait_for(
            lambda: any(name.startswith(".copy.") or name == "copy" for name in results(cluster, job)), "they go out"
        )
        state = cluster.job(job).state
        kill_acting(cluster)
        (view,) = cluster.wait(job)
        assert (state, view.state, view.attempt) == ("running", "done", 1)
        with tree(cluster) as files:
            assert b"".join(files.read(f"/jobs/{job}/copy")) == data
        assert results(cluster, job) == ["copy"], "what both nodes have alike is kept once"
        cluster.await_step()
        await_equal(tree_of(cluster, "A"), tree_of(cluster, "B"))


def results(cluster: Cluster, job: int) -> list[str]:
    """What there is of a job's results now."""
    try:
        return names(cluster, f"/jobs/{job}")
    except FileNotFoundError:
        return []
