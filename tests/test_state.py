"""`apply`: the same events give the same state, and what doesn't fit any more is void."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import get_args

import pytest
from msgspec.structs import replace

from beo import events as ev
from beo.errors import Internal
from beo.headnode import folds
from beo.headnode.folds import attempts, jobs
from beo.headnode.state import _APPLY, State
from beo.spec import JobSpec
from tests.world import DAY_S, START_S, World, birth, ranks_ended, same, spec


def state_of(*facts: ev.Event) -> State:
    """A cluster in which these things have happened."""
    state = State()
    for fact in (*birth(), *facts):
        state.apply(fact)
    return state


def joined(
    node: str = "n1", incarnation: str = "i1", boot: str = "b1", slots: int = 4, address: str = "here:1"
) -> ev.NodeJoined:
    facts = {"contain": "pidns"}
    return ev.NodeJoined(node, incarnation, boot, address, "key", slots, 1 << 30, facts, (), START_S)


def submitted(job: int = 1, key: str = "", made: JobSpec | None = None, time_s: float = START_S) -> ev.Submitted:
    return ev.Submitted(job, key or f"key {job}", "ann", 1000, 1000, (), made or spec(), time_s)


def started(job: int = 1, attempt: int = 1, *parts: tuple[str, str, int, int]) -> ev.Started:
    placed = tuple(ev.Part(*part) for part in parts or [("n1", "i1", 0, 1)])
    return ev.Started(job, attempt, placed, "nonce", START_S)


def ended(node: str = "n1", status: int = 0, reason: str = "", ranks: int = 1) -> ev.PartEnded:
    result = ev.PartResult(ranks_ended(0, ranks, status), reason)
    return ev.PartEnded(1, 1, node, result, START_S + 1)


def test_the_same_key_gives_one_job_also_when_the_entry_comes_twice() -> None:
    state = state_of(submitted(1, "k"), submitted(2, "k"), submitted(2, "other"))
    assert [job.key for job in state.jobs.values()] == ["k", "other"]


def test_an_entry_with_an_id_out_of_turn_is_void() -> None:
    state = state_of(submitted(1), submitted(1, "again"), submitted(3))
    assert list(state.jobs) == [1]
    assert state.next_job == 2


def test_ids_are_never_used_again_when_records_are_forgotten_even_behind_a_snapshot() -> None:
    state = state_of(submitted(1), ev.CancelRequested(1, "ann", "", START_S), ev.Forgotten((1,), START_S + 9 * DAY_S))
    assert not state.jobs and not state.keys
    state = State.decode(state.encode())
    state.apply(submitted(2))
    assert list(state.jobs) == [2]


def test_a_start_for_a_replaced_incarnation_is_void() -> None:
    """Mistake 2 of the prototype: the node was reborn between the decision and the entry."""
    state = state_of(submitted(), joined(), joined(incarnation="i2"), started())
    assert state.jobs[1].state == "queued"
    assert state.nodes["n1"].used_slots == 0
    state.apply(started(1, 1, ("n1", "i2", 0, 1)))
    assert state.jobs[1].state == "running"


@pytest.mark.parametrize(
    "before",
    [
        [],
        [ev.NodeLost("n1", "i1", "silent", START_S)],
        [ev.CancelRequested(1, "ann", "cancelled", START_S)],
        [started()],
    ],
    ids=["unknown node", "lost node", "cancelled job", "running job"],
)
def test_a_start_that_does_not_fit_any_more_is_void(before: list[ev.Event]) -> None:
    known = [joined()] if before else []
    state = state_of(submitted(), *known, *before)
    used, attempts = sum(n.used_slots for n in state.nodes.values()), len(state.jobs[1].attempts)
    state.apply(started(1, 2 if attempts == 0 else 1))
    state.apply(started(1, 1))
    assert sum(n.used_slots for n in state.nodes.values()) == used
    assert len(state.jobs[1].attempts) == attempts


def test_a_part_ends_once() -> None:
    state = state_of(submitted(), joined(), started(), ended(status=3), ended(status=0))
    assert (state.jobs[1].state, state.jobs[1].exit_code) == ("failed", 3)
    assert state.nodes["n1"].used_slots == 0
    assert not state.live and not state.running


def test_slots_are_held_until_every_part_is_over() -> None:
    two = [("n1", "i1", 0, 2), ("n2", "i2", 2, 1)]
    state = state_of(submitted(1, made=spec(ranks=3, cpus=2)), joined(), joined("n2", "i2"), started(1, 1, *two))
    assert [node.used_slots for node in state.nodes.values()] == [4, 2]
    state.apply(ended(ranks=2))
    assert [node.used_slots for node in state.nodes.values()] == [0, 2]
    assert state.jobs[1].state == "running"
    state.apply(ended(node="n2"))
    assert [node.used_slots for node in state.nodes.values()] == [0, 0]
    assert state.jobs[1].state == "done"


def test_every_node_of_a_batch_job_is_live_and_only_the_first_one_has_a_rank() -> None:
    two = [("n1", "i1", 0, 2), ("n2", "i2", 2, 1)]
    whole = replace(started(1, 1, *two), whole=True)
    state = state_of(submitted(1, made=spec(ranks=3, batch=True)), joined(), joined("n2", "i2"), whole)
    assert [part.state for part in state.jobs[1].attempts[0].parts] == ["live", "live"]
    again = State.decode(state.encode())
    assert again.encode() == state.encode()
    state.apply(ended(ranks=1))
    assert state.jobs[1].state == "running"
    state.apply(ended(node="n2", ranks=0))
    assert state.jobs[1].state == "done"
    assert [node.used_slots for node in state.nodes.values()] == [0, 0]
    again.apply(ev.PartGone(1, 1, "n2", "its warden was killed", START_S))
    assert again.jobs[1].state == "ending", "a broken allocation ends the attempt"


def test_slots_beyond_the_ranks_are_held_and_given_back() -> None:
    parts = (ev.Part("n1", "i1", 0, 1, 1), ev.Part("n2", "i2", 1, 0, 2))
    start = ev.Started(1, 1, parts, "nonce", START_S, whole=True)
    state = state_of(submitted(1, made=spec(ranks=1, slots=4)), joined(), joined("n2", "i2"), start)
    assert [node.used_slots for node in state.nodes.values()] == [2, 2]
    state.apply(ended(ranks=1))
    state.apply(ended(node="n2", ranks=0))
    assert (state.jobs[1].state, [node.used_slots for node in state.nodes.values()]) == ("done", [0, 0])


@pytest.mark.parametrize(("spawned", "expected"), [(True, ("failed", 5)), (False, ("done", 0))])
def test_a_spawned_rank_that_failed_fails_the_job_and_a_step_is_its_callers_affair(
    spawned: bool, expected: tuple[str, int]
) -> None:
    state = state_of(submitted(1, made=spec(slots=2)), joined(), started())
    steps = (ev.StepRank(1, 1, 5, 0.1, 0.0, 1024, spawned),)
    event = ended()
    state.apply(replace(event, result=replace(event.result, steps=steps)))
    assert (state.jobs[1].state, state.jobs[1].exit_code) == expected


def test_a_batch_job_of_an_old_journal_reserves_its_further_nodes_and_releases_them_at_its_end() -> None:
    two = [("n1", "i1", 0, 2), ("n2", "i2", 2, 1)]
    state = state_of(submitted(1, made=spec(ranks=3, batch=True)), joined(), joined("n2", "i2"), started(1, 1, *two))
    assert [part.state for part in state.jobs[1].attempts[0].parts] == ["live", "reserved"]
    assert [node.used_slots for node in state.nodes.values()] == [2, 1]
    state.apply(ended(node="n2"))  # nobody runs there: void
    assert state.jobs[1].state == "running"
    state.apply(ended())
    assert state.jobs[1].state == "done"
    assert [node.used_slots for node in state.nodes.values()] == [0, 0]


def test_reserved_slots_stand_when_only_the_agent_was_reborn_and_break_with_the_machine() -> None:
    two = [("n1", "i1", 0, 2), ("n2", "i2", 2, 1)]
    state = state_of(submitted(1, made=spec(ranks=3, batch=True)), joined(), joined("n2", "i2"), started(1, 1, *two))
    state.apply(joined("n2", "i3"))
    assert state.jobs[1].state == "running"
    state.apply(joined("n2", "i4", boot="b2"))
    assert state.jobs[1].state == "ending"
    state.apply(ended(reason="ended", status=137))
    assert state.jobs[1].state == "queued"
    assert [node.used_slots for node in state.nodes.values()] == [0, 0]


def test_a_node_tells_a_new_address_under_the_same_incarnation_and_loses_nothing() -> None:
    state = state_of(submitted(), joined(), started(), joined(address="here:2"))
    assert state.nodes["n1"].address == "here:2"
    assert state.nodes["n1"].used_slots == 1
    assert state.jobs[1].state == "running"


@pytest.mark.parametrize("again", [joined(), joined(incarnation="i0"), joined(incarnation="i2", boot="late")])
def test_a_dead_incarnation_never_comes_back(again: ev.NodeJoined) -> None:
    past = [joined(incarnation=name) for name in ("i0", "i1", "i2")]
    state = state_of(*past, ev.NodeLost("n1", "i2", "silent", START_S))
    before = state.nodes["n1"]
    state.apply(again)
    assert state.nodes["n1"] is before and before.state == "lost"


def test_nothing_is_done_that_did_not_end_well_everywhere() -> None:
    """A node that says 'ended well' and tells the end of too few ranks lost the others."""
    state = state_of(submitted(1, made=spec(ranks=2)), joined(), started(1, 1, ("n1", "i1", 0, 2)), ended(ranks=1))
    assert state.jobs[1].state == "queued"
    assert "1 ranks of 2" in state.jobs[1].reason


@pytest.mark.parametrize(
    ("reason", "status", "state", "code", "by"),
    [
        ("", 0, "done", 0, "job"),
        ("", 7, "failed", 7, "job"),
        ("rank", 9, "failed", 9, "job"),
        ("rank", 0, "failed", 1, "job"),
        ("time limit", 143, "failed", 124, "beo"),
        ("out of memory", 137, "failed", 137, "job"),
        ("lost", 0, "queued", -1, "job"),
        ("silence", 0, "queued", -1, "job"),
    ],
)
def test_how_a_part_ended_says_how_the_job_ended(reason: str, status: int, state: str, code: int, by: str) -> None:
    result = ev.PartResult(ranks_ended(0, 1, status), reason, 0)
    known = state_of(submitted(), joined(), started(), ev.PartEnded(1, 1, "n1", result, START_S))
    job = known.jobs[1]
    assert (job.state, job.exit_code, job.code_by) == (state, code, by)


def test_each_event_has_its_fold_in_one_file() -> None:
    files = [import_module(f"beo.headnode.folds.{found.name}") for found in iter_modules(folds.__path__)]
    kinds = [kind for file in files for kind in file.FOLDS]
    assert sorted(kinds, key=repr) == sorted(get_args(ev.Event), key=repr)
    assert {kind: fold for file in files for kind, fold in file.FOLDS.items()} == _APPLY


def test_the_lowest_failed_rank_gives_the_exit_code() -> None:
    ranks = tuple(ev.RankResult(n, status, 0, 0, 0) for n, status in enumerate([0, 5, 6]))
    parts = [("n1", "i1", 0, 3)]
    told = ev.PartEnded(1, 1, "n1", ev.PartResult(ranks), START_S)
    state = state_of(submitted(1, made=spec(ranks=3)), joined(), started(1, 1, *parts), told)
    assert (state.jobs[1].exit_code, state.jobs[1].reason) == (5, "rank 1 exited with 5")


def test_a_job_that_loses_every_node_is_given_up() -> None:
    state = state_of(submitted(), joined())
    for number in range(1, attempts.LOSSES_MAX + 1):
        state.apply(started(1, number))
        state.apply(ev.PartGone(1, number, "n1", "its warden was killed", START_S))
    job = state.jobs[1]
    assert (job.state, job.exit_code, len(state.queue)) == ("lost", 75, 0)
    assert len(job.attempts) == attempts.ATTEMPTS_KEPT
    assert job.attempt_number == attempts.LOSSES_MAX


def test_a_job_that_may_not_be_requeued_is_lost_with_its_node() -> None:
    state = state_of(submitted(1, made=spec(requeue="never")), joined(), started())
    state.apply(ev.NodeLost("n1", "i1", "silent", START_S))
    assert state.jobs[1].state == "running"
    state.apply(ev.NodeGone("n1", "i1", "root", START_S))
    assert state.jobs[1].state == "lost"


@pytest.mark.parametrize("order", [["rank", "node"], ["node", "rank"]])
def test_a_rank_that_failed_while_another_node_was_lost_is_what_the_loss_did_to_it(order: list[str]) -> None:
    """MPICH 5.0.2 was seen to crash after the power cut of another rank's machine, before that one's lease was over."""
    two = [("n1", "i1", 0, 1), ("n2", "i2", 1, 1)]
    state = state_of(submitted(1, made=spec(ranks=2)), joined(), joined("n2", "i2"), started(1, 1, *two))
    crashed = ev.PartEnded(1, 1, "n1", ev.PartResult(ranks_ended(0, 1, 139), "rank", 0), START_S)
    known: dict[str, ev.Event] = {"rank": crashed, "node": ev.PartGone(1, 1, "n2", "came back without it", START_S)}
    for what in order:
        assert state.jobs[1].state in ("running", "ending")
        state.apply(known[what])
    assert (state.jobs[1].state, state.jobs[1].losses) == ("queued", 1)
    assert state.jobs[1].reason == "attempt 1 was lost (n2: came back without it)"


def test_the_queue_is_by_priority_then_by_age_and_a_requeued_job_stands_where_it_stood() -> None:
    made = [spec(priority=p) for p in (0, 5, 0, 5)]
    state = state_of(*(submitted(n, made=made[n - 1]) for n in (1, 2, 3, 4)), joined(), started(1))
    assert list(state.queue) == [2, 4, 3]
    state.apply(ev.PartGone(1, 1, "n1", "", START_S))
    assert list(state.queue) == [2, 4, 1, 3]
    assert state.queue.ahead_of(state.jobs[1]) == 2


def test_a_key_is_remembered_for_seven_days_and_as_long_as_its_job() -> None:
    cancelled = [ev.CancelRequested(n, "ann", "", START_S) for n in (1, 2)]
    state = state_of(submitted(1), submitted(2), *cancelled, ev.Forgotten((1,), START_S + 6 * DAY_S))
    assert list(state.jobs) == [2] and list(state.keys) == ["key 1", "key 2"]
    state.apply(ev.Forgotten((), START_S + 8 * DAY_S))
    assert list(state.keys) == ["key 2"]
    assert state.keys_from_s == START_S


def test_too_many_keys_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEYS_MAX", 5)
    monkeypatch.setattr(jobs, "KEYS_DROPPED", 2)
    state = state_of(*(submitted(n, time_s=START_S + n) for n in range(1, 8)))
    assert list(state.keys) == ["key 3", "key 4", "key 5", "key 6", "key 7"]
    assert state.keys_from_s == START_S + 2


def test_keys_are_forgotten_in_the_order_of_submission_also_behind_a_snapshot() -> None:
    """A snapshot sorts its tables; a state read from one must go on as the one that it was made of."""
    facts = [submitted(1, "zzz"), submitted(2, "aaa", time_s=START_S + 6 * DAY_S)]
    facts += [ev.CancelRequested(n, "ann", "", START_S) for n in (1, 2)]  # type: ignore[misc]
    state = state_of(*facts)
    decoded = State.decode(state.encode())
    for each in (state, decoded):
        each.apply(ev.Forgotten((1, 2), START_S + 8 * DAY_S))
    assert list(state.keys) == list(decoded.keys) == ["aaa"]
    assert same(state, decoded)


def test_jobs_of_one_environment_share_it() -> None:
    state = state_of(*(submitted(n, made=spec(env={"PATH": "/bin", "HOME": "/root"})) for n in (1, 2)))
    assert state.jobs[1].spec.env is state.jobs[2].spec.env
    decoded = State.decode(state.encode())
    assert decoded.jobs[1].spec.env is decoded.jobs[2].spec.env


def test_only_the_first_entry_can_be_a_birth_and_a_later_format_is_refused() -> None:
    with pytest.raises(Internal):
        state_of(ev.Born("d" * 32, "B", START_S))
    with pytest.raises(Internal, match="newer beo"):
        State().apply(ev.Born("c" * 32, "A", START_S, ev.FORMAT + 1))


def test_epochs_only_grow() -> None:
    state = state_of(ev.EpochBegan(5, "A", START_S), ev.EpochBegan(4, "B", START_S))
    assert (state.epoch, state.head) == (5, "A")


def test_a_snapshot_in_the_middle_of_everything_is_the_state() -> None:
    world = World()
    nodes = [world.node("n1"), world.node("n2")]
    for words in ({"ranks": 6}, {"batch": True}, {"priority": 3}, {"ranks": 99}, {"requeue": "auto"}):
        world.submit(**words)
        assert world.replays()
    nodes[0].gone(1)
    assert world.replays()
    world.wait(20.0, nodes[1])
    assert world.replays()
