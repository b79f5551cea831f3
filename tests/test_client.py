"""The client: what it promises over heads that die, don't answer, or say no."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import beo
from beo import config, contact, spec, wire
from beo import messages as m
from beo.client import Cluster
from beo.errors import Conflict, Internal, NoHead, NotFound, Refused, TimedOut, UsageError
from beo.job import Job
from beo.submission import new_spec
from tests.fake_head import FakeHead, view

SPEC = new_spec(["true"], cwd="/")


@pytest.fixture
def head(tmp_path: Path) -> Iterator[FakeHead]:
    head = FakeHead(tmp_path)
    yield head
    head.stop()


@pytest.fixture
def cluster(head: FakeHead) -> Iterator[Cluster]:
    with Cluster(head.home) as cluster:
        yield cluster


def test_a_submission_returns_the_id_and_tells_the_warnings(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Submit, m.SubmittedIs(7, ("no node is that large",)))
    warnings: list[str] = []
    assert cluster.submit(SPEC, on_warning=warnings.append) == 7
    assert warnings == ["no node is that large"]
    (sent,) = head.messages(m.Submit)
    assert isinstance(sent, m.Submit)
    assert sent.spec == SPEC and sent.uid == os.getuid() and spec.key_made_s(sent.key)


def test_a_submission_that_gets_no_answer_is_sent_again_under_its_key(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Submit, lambda _: m.SubmittedIs(3) if len(head.received) > 1 else None)
    assert cluster.submit(SPEC) == 3
    keys = {message.key for message in head.received if isinstance(message, m.Submit)}
    assert len(head.received) == 2 and len(keys) == 1


def test_a_submission_rides_out_a_restart_of_the_head(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Info, m.InfoIs("c", "a", 1, "ada", "0", ""))
    head.on(m.Submit, m.SubmittedIs(4))
    cluster.info()
    head.stop()
    timer = threading.Timer(0.5, head.start)
    timer.start()
    assert cluster.submit(SPEC) == 4
    timer.join()


def test_where_a_submission_got_no_answer_the_error_tells_the_key(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Submit, None)
    with pytest.raises(NoHead) as caught:
        cluster.submit(SPEC, key="k1", patience_s=0.2)
    assert str(caught.value) == (
        f"no head answers at {head.address}, so the job may exist or not (tried for 200ms): "
        "submit again with --key k1, which gives this job and never a second one"
    )


def test_without_a_head_the_error_says_where_and_how_long_it_tried(head: FakeHead, cluster: Cluster) -> None:
    head.stop()
    with pytest.raises(NoHead) as caught:
        cluster.request(m.Info(), patience_s=0.1)
    assert str(caught.value) == (
        f"no head answers at {head.address} (tried for 100ms): "
        "start one with 'beo up', or set BEO_DIR to the cluster that you mean"
    )
    assert caught.value.exit_code == 69


def test_without_a_cluster_the_error_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(NoHead, match=f"no cluster in {tmp_path}: make one with 'beo up', or set BEO_DIR"):
        Cluster(config.Home(tmp_path)).info()


def test_a_foreign_key_is_refused_at_once(head: FakeHead) -> None:
    head.home.write_secret("admin", wire.new_keypair()[1])
    with Cluster(head.home) as cluster, pytest.raises(Refused, match="does not know this key"):
        cluster.info()
    assert head.received == []


def test_the_heads_error_is_raised_as_it_was_there(head: FakeHead, cluster: Cluster) -> None:
    def refuse(_: object) -> object:
        raise Conflict("the queue is full", "100 jobs", "wait")

    head.on(m.Submit, refuse)
    with pytest.raises(Conflict, match=r"the queue is full \(100 jobs\): wait"):
        cluster.submit(SPEC)


def test_an_answer_of_another_kind_is_a_fault_and_not_believed(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.ListNodes, m.Done())
    with pytest.raises(Internal, match="answered with Done"):
        cluster.nodes()


def test_a_late_answer_is_not_taken_for_the_next_request(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Info, None)
    with pytest.raises(NoHead):
        cluster.info(patience_s=0.1)
    head.on(m.Info, m.InfoIs("c", "a", 1, "ada", "0", ""))
    head.on(m.ListNodes, m.NodesAre(()))
    assert cluster.nodes() == ()


def test_wait_returns_the_jobs_as_they_were_given_and_shows_progress(head: FakeHead, cluster: Cluster) -> None:
    rounds = iter(["running", "done"])

    def answer(message: object) -> object:
        assert isinstance(message, m.WaitJobs)
        state = next(rounds)
        return m.JobsAre(tuple(view(job, "done" if job == 1 else state, 3) for job in sorted(message.jobs)))

    head.on(m.WaitJobs, answer)
    seen: list[list[str]] = []
    views = cluster.wait([2, 1], on_progress=lambda views: seen.append([v.state for v in views]))
    assert [v.id for v in views] == [2, 1]
    assert seen == [["running", "done"], ["done", "done"]]
    second = head.received[1]
    assert isinstance(second, m.WaitJobs) and second.jobs == (2,), "what has ended is not asked for again"


def test_wait_gives_up_in_time_with_an_error_of_its_own(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.WaitJobs, m.JobsAre((view(1, "running"),)))
    with pytest.raises(TimedOut, match="job 1 had not ended after 0s: 'beo wait' again"):
        cluster.wait([1], timeout_s=0.0)


def test_wait_waits_for_a_head_for_ever_and_says_so_once(
    head: FakeHead, cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contact, "PATIENCE_S", 0.2)
    head.on(m.WaitJobs, m.JobsAre((view(1),)))
    head.stop()
    timer = threading.Timer(0.8, head.start)
    timer.start()
    assert cluster.wait([1])[0].state == "done"
    timer.join()
    assert capsys.readouterr().err == (f"beo: no head answers at {head.address}: waiting\nbeo: a head answers again\n")


def test_wait_for_a_job_that_the_head_does_not_know_is_an_error(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.WaitJobs, m.JobsAre(()))
    with pytest.raises(NotFound, match="no job 9"):
        cluster.wait([9])


def test_a_signal_has_a_key_so_that_it_arrives_once(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Signal, lambda _: m.Done() if len(head.received) > 1 else None)
    cluster.signal(7, 10)
    first, second = head.received
    assert first == second


def test_a_job_tells_its_state_and_code(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.WaitJobs, m.JobsAre((view(5, "running"),)))
    job = Job(5, cluster)
    assert (job.state, job.exit_code) == ("running", None)
    head.on(m.WaitJobs, m.JobsAre((view(5, "failed", 3),)))
    assert (job.state, job.exit_code, job.wait()) == ("failed", 3, 3)


def test_a_submitted_function_of_the_package_gives_a_job(head: FakeHead, cluster: Cluster) -> None:
    head.on(m.Submit, m.SubmittedIs(8))
    job = beo.submit(["python", "pi.py"], ranks=4, mem="1GiB", time_limit="1h", cluster=cluster)
    assert job.id == 8
    (sent,) = head.messages(m.Submit)
    assert isinstance(sent, m.Submit)
    assert (sent.spec.ranks, sent.spec.mem_bytes, sent.spec.time_limit_s) == (4, 1 << 30, 3600.0)


def test_a_spec_takes_the_environment_but_what_beo_and_mpi_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEO_JOB_ID", "1")
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("LANG_OF_TEST", "C")
    monkeypatch.setenv("BAD", "\udcff")
    env = new_spec(["true"], env={"X": "1"}).env
    assert env["LANG_OF_TEST"] == "C" and env["X"] == "1"
    assert not {"BEO_JOB_ID", "PMI_RANK", "BAD"} & set(env)


def test_paths_of_a_spec_are_taken_from_its_folder(tmp_path: Path) -> None:
    job = new_spec(["true"], cwd=str(tmp_path), output="out.%j", errors="/e")
    assert (job.cwd, job.output, job.errors) == (str(tmp_path), f"{tmp_path}/out.%j", "/e")


def test_mistakes_in_a_spec_name_the_option_at_fault() -> None:
    with pytest.raises(UsageError, match=r'the command is one text .*: write \["sh", "-c", text\]'):
        new_spec("sleep 1")
    with pytest.raises(UsageError, match=r"no folder /nowhere .*--chdir"):
        new_spec(["true"], cwd="/nowhere")
    with pytest.raises(UsageError, match="not UTF-8"):
        new_spec(["\udcff"])
