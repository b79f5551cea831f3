"""Two heads of one machine: `beo up --heads 2` makes the second as another machine would, and keeps both running."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from beo import birth, contact, local, lockfile, machines, pairing, question, submission
from beo import events as ev
from beo import messages as m
from beo.entries import Entry
from beo.errors import Conflict, NotFound, UsageError
from beo.ha import orphans
from tests.cluster import HEADS, OTHER, PATIENCE_S, Cluster, running, send, wait_for

Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node with two heads; they are in step."""
    with running(tmp_path_factory.mktemp("two") / "beo", 1, 1, heads=2) as cluster:
        yield cluster


def asked(cluster: Cluster, message: object, kind: type[Answer]) -> Answer:
    """What the head that acts answers."""
    found = cluster.home.cluster()
    return question.ask(found.heads, found.key, cluster.home.secret("admin"), message, kind, PATIENCE_S)


def test_the_second_head_has_a_folder_as_on_a_machine_of_its_own(pair: Cluster) -> None:
    one, two = pair.home, pair.home.second
    assert (one.who().name, two.who().name) == ("A", "B")
    assert one.who().others == {"B": two.who().place} and two.who().others == {"A": one.who().place}
    assert one.cluster() == two.cluster()
    assert one.cluster().heads == (one.who().control, two.who().control)
    places = {address for head in one.who().heads.values() for address in (head.control, head.bulk, *head.links)}
    assert len(places) == 6, "three planes of two heads"
    for name in ("head", "admin", "worker"):
        assert one.secret(name) == two.secret(name), "one key of the cluster, whoever answers"
    assert two.config() == one.config(), "settings are those of the first one"


def test_both_know_each_other_and_are_in_step(pair: Cluster) -> None:
    found = pair.views()
    assert sorted(view.role for view in found.values()) == ["primary", "standby"]
    assert {view.primary for view in found.values()} <= {"A", "B"}
    assert [head.name for head in found["A"].heads] == ["A", "B"] == [head.name for head in found["B"].heads]
    pair.await_step()


@pytest.mark.parametrize("name", ["head", "head B"])
def test_a_killed_head_comes_back_and_gets_in_step_again(pair: Cluster, name: str) -> None:
    pair.await_step()
    pair.kill_and_await(name)
    pair.await_step()


def test_a_later_up_keeps_both(pair: Cluster) -> None:
    said: list[str] = []
    pairing.up(pair.home, None, None, None, said.append)
    assert said[0].startswith("already up: 1 node") and said[1].startswith("in step: ")
    pairing.up(pair.home, None, None, 2, said.append)
    with pytest.raises(Conflict, match=r"two heads .*'beo head leave'"):
        pairing.up(pair.home, None, None, 1, said.append)


def test_a_third_head_gets_no_token(pair: Cluster) -> None:
    with pytest.raises(Conflict, match="two heads already"):
        machines.new_token(pair.home, "head", 1, 60.0)


@pytest.mark.slow
def test_a_head_that_slept_until_its_next_entry_was_cut_gets_the_snapshot_and_is_in_step_again(pair: Cluster) -> None:
    acting = pair.await_step().name
    home = pair.home if acting == "A" else pair.home.second
    sleeper = pair.pid(HEADS[OTHER[acting]])
    busy = pair.submit(["sleep", "600"])
    jobs = [pair.submit(["true"]) for _ in range(100)]
    send([sleeper], signal.SIGSTOP)
    try:
        which = (f"{jobs[0]}-{jobs[-1]}",)
        for _ in range(110):  # one entry per job each time: enough for two snapshots
            asked(pair, m.Hold(which), m.JobsAre)
            asked(pair, m.Release(which), m.JobsAre)
        asked(pair, m.Hold(which), m.JobsAre)
        wait_for(lambda: len(list(home.head.glob("snapshot-*"))) == 2, "two snapshots are made")
    finally:
        send([sleeper], signal.SIGCONT)
    pair.await_step()
    assert list((pair.home.second if acting == "A" else pair.home).head.glob("snapshot-*")), "by a snapshot"
    pair.kill(HEADS[acting])
    known = asked(pair, m.WaitJobs(tuple(jobs), 0.0), m.JobsAre)
    assert {job.id: job.state for job in known.jobs} == dict.fromkeys(jobs, "held")
    asked(pair, m.Cancel((*which, str(busy))), m.JobsAre)
    pair.await_step()


@pytest.mark.slow
def test_down_ends_both_and_up_goes_on_with_both(pair: Cluster) -> None:
    pair.down()
    assert pair.processes() == []
    plan = local.read_plan(pair.home)
    assert plan and plan.heads == 2
    pairing.up(pair.home, None, None, None, lambda _: None)
    pair.await_step()
    assert all(lockfile.holder(pair.lock(name)) for name in HEADS.values())


def test_a_workers_machine_has_no_heads(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "beo")
    local.write_plan(cluster.home, local.Plan(1, 1, serves=False, name="pc2"))
    with pytest.raises(UsageError, match=r"--heads 2 \(this machine is pc2\)"):
        pairing.up(cluster.home, None, None, 2, lambda _: None)


# ---- beo ha


def said(cluster: Cluster, *words: str, code: int = 0) -> str:
    """What `beo ha WORDS` prints, or with another exit code than 0 and 1 its complaint."""
    done = cluster.beo("ha", *words)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return done.stderr if code > 1 else done.stdout


def test_status_tells_of_both_heads_and_its_exit_code_that_they_are_in_step(pair: Cluster) -> None:
    pair.await_step()
    text = said(pair, "status")
    assert "primary" in text and "standby" in text and "level C: what is acknowledged is on both disks" in text
    told = msgspec.json.decode(said(pair, "status", "--json"))
    assert told["in_step"] and set(told["heads"]) == {"A", "B"} and 0.0 < told["availability"] <= 1.0
    assert said(pair, "status", "-q") == ""


def test_switchover_lets_the_heads_change_their_roles_and_back(pair: Cluster) -> None:
    first = pair.await_step().name
    other = OTHER[first]
    assert said(pair, "switchover").startswith(f"{other} is the primary now")
    pair.await_step()
    assert said(pair, "switchover").startswith(f"{first} is the primary now")


def test_settings_of_the_pair_are_one_for_both_heads(pair: Cluster) -> None:
    assert "lease 1 s, silence 0.5 s" in said(pair, "set", "--lease", "1s", "--silence", "0.5s")
    wait_for(lambda: {view.lease_s for view in pair.views().values()} == {1.0}, "both have the new lease")
    assert "from 0.2 to 60" in said(pair, "set", "--lease", "100s", code=2)
    assert "lease 0.6 s, silence 0.4 s" in said(pair, "set", "--lease", "0.6s", "--silence", "0.4s")
    assert "frozen" in said(pair, "freeze")
    assert "take-over is frozen" in said(pair, "status")
    assert "take-over is automatic" in said(pair, "thaw")


def test_what_would_do_harm_is_refused_with_what_to_do_instead(pair: Cluster) -> None:
    primary = pair.await_step().name
    other = OTHER[primary]
    assert "'beo ha switchover' lets them change their roles" in said(pair, "takeover", code=75)
    assert f"{primary} is the primary already" in said(pair, "takeover", primary)
    assert "no head 'C'" in said(pair, "force-primary", "C", code=2)
    assert f"head {primary} answers (it isn't dead)" in said(pair, "force-primary", other, code=75)
    assert "both are on this machine" in said(pair, "rejoin", code=2)
    assert f"no other head acts than {primary} (it acts itself)" in said(pair, "rejoin", primary, "--wipe", code=75)
    assert "say --wipe if you mean it" in said(pair, "rejoin", other, code=2)
    assert not (pair.home.path / "head.old-1").exists() and not (pair.home.second.path / "head.old-1").exists()


def test_what_is_single_is_counted_and_both_heads_compared(pair: Cluster) -> None:
    done = pair.beo("ha", "spof")
    assert done.returncode == len(done.stdout.splitlines()) >= 2 and "both heads are on it" in done.stdout
    assert said(pair, "verify") == "A and B are alike\n"


def test_orphans_are_listed_and_each_is_submitted_again_once(pair: Cluster) -> None:
    key = contact.new_key()
    spec = submission.new_spec(["true"], name="lost", cwd="/")
    user = birth.user_name()
    event = ev.Submitted(1, key, user, os.getuid(), os.getgid(), (), spec, time.time())
    folder = pair.home.second.head / "orphans"
    orphans.put_aside(folder, [Entry(1, 1, bytes(16), ev.encode(event))], time.time())
    wait_for(lambda: pair.views()["B"].orphans == 1, "B tells of them")
    assert "B: 1 entry of it the cluster does not have" in said(pair, "status")
    (row,) = msgspec.json.decode(said(pair, "orphans", "--json"))
    assert (row["kind"], row["key"], row["name"], row["fate"]) == ("Submitted", key, "lost", None)
    (row,) = msgspec.json.decode(said(pair, "orphans", "--resubmit", "--json"))
    job = int(row["fate"].removeprefix("job "))
    with pair.client() as own:
        assert own.submit(spec, key) == job, "the key is known: it isn't run twice"
    assert pair.job(job).user == user
    assert msgspec.json.decode(said(pair, "orphans", "--json")) == []
    wait_for(lambda: pair.views()["B"].orphans == 0, "nothing is left to be done")


STOPS = 3  # a busy machine makes the primary go on alone for a moment: stopped just then, nobody may take over


def hindered_from_taking_over_of_a_stopped_one(pair: Cluster, standby: str) -> str:
    """Stop the primary and return why the standby didn't act then; "" if it did.

    One that was killed is there again at once, and may be the first to act.
    """
    pid = pair.pid(HEADS[OTHER[standby]])
    why = ""
    send([pid], signal.SIGSTOP)
    deadline_s = time.monotonic() + 10.0
    try:
        while time.monotonic() < deadline_s:
            told = pair.views()
            if standby in told and told[standby].role == "primary":
                return ""
            why = told[standby].why if standby in told else "it doesn't answer"
        return why
    finally:
        send([pid], signal.SIGCONT)


@pytest.mark.slow
def test_a_head_that_is_wiped_begins_anew_with_what_the_other_has(pair: Cluster) -> None:
    job = pair.submit(["true"])
    pair.wait(job)
    standby = OTHER[pair.await_step().name]
    home = pair.home if standby == "A" else pair.home.second
    who = home.who()
    text = said(pair, "rejoin", standby, "--wipe")
    assert f"what head {standby} had is in {home.path}/head.old-1" in text and "in step" in text
    assert home.who() == who and (home.path / "head.old-1" / "journal.db").exists()
    whys = []
    for _ in range(STOPS):
        pair.await_step()
        whys.append(hindered_from_taking_over_of_a_stopped_one(pair, standby))
        if not whys[-1]:
            break
    else:
        pytest.fail(f"{standby} took over none of {STOPS} times: {whys}")
    known = pair.home.cluster()
    ask = (known.heads, known.key, pair.home.secret("admin"), m.ListJobs((str(job),)))
    assert question.ask(*ask, m.JobsAre).jobs[0].state == "done"
    pair.await_step()


@pytest.mark.slow
def test_a_head_that_leaves_is_no_loss_and_another_may_come(tmp_path: Path) -> None:
    said: list[str] = []
    with running(tmp_path / "beo", 1, 1, heads=2) as cluster:
        home = cluster.home
        job = cluster.submit(["sleep", "20"])
        cluster.wait_for_state(job, "running")
        known = (home.cluster().heads, home.cluster().key, home.secret("admin"))
        with pytest.raises(Conflict, match="both heads are in step"):
            question.ask(*known, m.LeaveHead("B"), m.Done)
        with pytest.raises(Conflict, match="A's folder holds the other one's"):
            pairing.leave(home, "A", said.append)
        with pytest.raises(NotFound, match="no head 'C'"):
            pairing.leave(home, "C", said.append)
        cluster.beo("ha", "switchover")  # B acts: it hands over before it leaves
        pairing.leave(home, "", said.append)
        assert said == [f"head B belongs to the cluster no more; what it had is in {home.path}/B.old-1"]
        wait_for(lambda: home.who().others == {}, "A knows that it is the only one")
        (view,) = cluster.views().values()
        assert (view.name, view.role, len(view.heads)) == ("A", "primary", 1)
        assert cluster.job(job).state == "running", "what runs goes on"
        assert lockfile.holder(cluster.lock("head B")) is None
        cluster.down()
        pairing.up(home, None, None, 2, said.append)
        cluster.await_step()
