"""What a client's wish becomes, and who may wish what."""

from __future__ import annotations

from typing import Any

import pytest

from beo import messages as ms
from beo.headnode import decide
from beo.spec import submission_key
from tests.world import DAY_S, START_S, World, settings, spec


@pytest.fixture
def world() -> World:
    return World()


def refused(answer: Any) -> dict[str, str]:
    assert isinstance(answer, ms.Failed), answer
    return answer.error


def wish(key: str = "key", uid: int = 1000, groups: tuple[int, ...] = (), **words: Any) -> ms.Submit:
    return ms.Submit(key, spec(**words), uid, 1000, groups)


def test_the_same_key_gives_the_same_job_also_behind_a_restart(world: World) -> None:
    first = world.answer(wish())
    assert world.answer(wish()) == first
    world.restart()
    assert world.answer(wish()).job == first.job
    assert len(world.state.jobs) == 1


def test_a_key_of_another_user_gives_nothing_away(world: World) -> None:
    world.answer(wish())
    assert refused(world.answer(wish(), "bob"))["kind"] == "Refused"


def test_a_submission_that_is_older_than_the_memory_of_keys_is_refused_and_never_run_again(world: World) -> None:
    old = submission_key(START_S - 8 * DAY_S, "nonce")
    assert "8d" in refused(world.answer(wish(old)))["why"]
    assert not world.state.jobs


def test_a_repeated_submission_is_refused_when_its_key_may_have_been_pushed_out(world: World) -> None:
    world.state.keys_from_s = START_S - 10.0
    assert refused(world.answer(wish(submission_key(START_S - 11.0, "nonce"))))["kind"] == "UsageError"
    assert world.answer(wish(submission_key(START_S - 9.0, "nonce"))).job == 1


@pytest.mark.parametrize(
    "asked",
    [
        wish(key=""),
        wish(key="k" * 129),
        wish(key="a\nb"),
        wish(uid=-1),
        wish(uid=2**32 - 1),
        wish(groups=(2**32,)),
        wish(groups=tuple(range(decide.GROUPS_MAX + 1))),
        wish(ranks=0),
        wish(cwd="here"),
    ],
)
def test_a_submission_that_is_no_job_is_refused_with_a_cure(world: World, asked: ms.Submit) -> None:
    assert refused(world.answer(asked))["cure"]
    assert not world.state.jobs


def test_the_queue_is_limited() -> None:
    world = World(settings(queued_max=2))
    world.submit()
    world.submit()
    assert "queued_max" in refused(world.answer(wish()))["why"]


def test_a_job_that_waits_for_more_nodes_is_taken_with_a_warning(world: World) -> None:
    world.node("n1", slots=2)
    assert "waits until it has more" in world.answer(wish(ranks=3)).warnings[0]
    assert world.answer(wish("other")).warnings == ()


def test_requeue_auto_without_containment_is_taken_with_a_warning(world: World) -> None:
    world.node("n1", contain="none")
    assert "acts as confirm" in world.answer(wish(requeue="auto")).warnings[0]


def test_only_the_owner_or_an_admin_ends_a_job(world: World) -> None:
    job = world.submit("ann")
    assert refused(world.answer(ms.Cancel((str(job),)), "bob"))["kind"] == "Refused"
    assert refused(world.answer(ms.Signal(job, 15, "k"), "bob"))["kind"] == "Refused"
    assert world.answer(ms.Cancel((str(job),)), "root").jobs[0].state == "cancelled"


def test_all_and_last_mean_ones_own(world: World) -> None:
    for who in ("ann", "bob", "ann", "bob"):
        world.submit(who)
    assert [job.id for job in world.answer(ms.ListJobs(("last",)), "ann").jobs] == [3]
    world.answer(ms.Cancel(("all",)), "ann")
    assert [job.state for job in world.state.jobs.values()] == ["cancelled", "queued", "cancelled", "queued"]


def test_a_job_that_never_was_and_one_that_is_forgotten_are_told_apart() -> None:
    world = World(settings(finished_keep_s=100.0))
    assert "none yet" in refused(world.answer(ms.ShowJob(("1",))))["why"]
    world.answer(ms.Cancel((str(world.submit()),)))
    world.wait(200.0)
    assert "not on record any more" in refused(world.answer(ms.ShowJob(("1",))))["what"]
    assert refused(world.answer(ms.ShowJob(("2",))))["why"] == "the last one is 1"


def test_too_many_jobs_at_once_are_not_cancelled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "SELECT_MAX", 2)
    for _ in range(3):
        world.submit()
    assert "limit is 2" in refused(world.answer(ms.Cancel(("1-3",))))["why"]
    assert len(world.answer(ms.Cancel(("1-2",))).jobs) == 2


@pytest.mark.parametrize(("number", "key"), [(0, "k"), (65, "k"), (15, ""), (15, "k" * 129)])
def test_a_signal_that_is_none_is_refused(world: World, number: int, key: str) -> None:
    assert refused(world.answer(ms.Signal(world.submit(), number, key)))["kind"] == "UsageError"


def test_a_signal_ends_a_job_that_waits(world: World) -> None:
    job = world.submit()
    world.answer(ms.Signal(job, 15, "k"))
    assert world.row(job).state == "cancelled"


def test_only_an_admin_and_only_a_lost_node_is_declared_gone(world: World) -> None:
    world.node("node01")
    assert refused(world.answer(ms.DeclareGone("node01")))["kind"] == "Refused"
    assert "is up" in refused(world.answer(ms.DeclareGone("node01"), "root"))["what"]
    assert "node01" in refused(world.answer(ms.DeclareGone("node1"), "root"))["cure"]


def test_a_key_that_nobody_gave_and_a_role_that_does_not_fit_are_refused(world: World) -> None:
    assert refused(world.answer(ms.Info(), "mallory"))["kind"] == "Refused"
    assert refused(world.answer(ms.Info(), "worker"))["kind"] == "Refused"
    assert refused(world.answer(ms.Ping("n1", "i", 0, (), ()), "ann"))["kind"] == "Refused"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        {"node": "a,b"},
        {"node": "n[1-2]"},
        {"node": ""},
        {"node": "a b"},
        {"slots": -1},
        {"slots": decide.SLOTS_MAX + 1},
        {"mem_bytes": -1},
        {"incarnation": ""},
        {"boot": "b" * 257},
        {"facts": {"f": "x" * 257}},
        {"facts": {str(n): "" for n in range(65)}},
    ],
)
def test_a_node_that_says_impossible_things_does_not_join(world: World, words: dict[str, Any]) -> None:
    """A name that is no name would otherwise break every list that it stands in, for ever."""
    said = {
        "node": "n1",
        "incarnation": "i1",
        "boot": "b",
        "address": "n1:1",
        "key": "k",
        "slots": 1,
        "mem_bytes": 0,
        "facts": {},
        "running": (),
    }
    assert isinstance(world.answer(ms.Join(**{**said, **words}), "worker"), ms.Failed)  # type: ignore[arg-type]
    assert not world.state.nodes


def test_nodes_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "NODES_MAX", 1)
    world.node("n1")
    join = ms.Join("n2", "i", "b", "a", "k", 1, 0, {}, ())
    assert "1 nodes already" in refused(world.answer(join, "worker"))["what"]  # type: ignore[arg-type]


def test_a_user_submits_for_himself_and_an_admin_for_anybody(world: World) -> None:
    assert refused(world.answer(wish(uid=0)))["kind"] == "Refused"
    assert not world.state.jobs
    assert world.answer(wish(uid=0), "root").job == 1
