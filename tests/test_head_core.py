"""The head's core: nothing before it is durable, nothing twice, nothing lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from beo import events as ev
from beo import messages as ms
from beo.headnode import acts, core, waiters
from tests.world import Node, World, ranks_ended, settings, spec


@pytest.fixture
def world() -> World:
    return World()


def wish(key: str = "key", **words: Any) -> ms.Submit:
    return ms.Submit(key, spec(**words), 1000, 1000, ())


# ---- durability


def test_nothing_is_acknowledged_before_it_is_durable(world: World) -> None:
    world.disk.slow = True
    request = world.ask(wish())
    assert world.answers(request) == []
    world.flush()
    assert world.answers(request) == [ms.SubmittedIs(1)]


def test_an_answer_that_only_looks_waits_for_what_it_shows(world: World) -> None:
    world.disk.slow = True
    world.ask(wish())
    request = world.ask(ms.ListJobs())
    assert world.answers(request) == [], "a job was shown that a crash can still undo"
    world.flush()
    assert [job.id for job in world.answers(request)[0].jobs] == [1]


def test_no_start_leaves_before_it_is_durable(world: World) -> None:
    node = world.node("n1")
    world.disk.slow = True
    world.ask(wish())
    assert world.job(1).state == "running" and node.commands(ms.Start) == []
    world.flush()
    (start,) = node.commands(ms.Start)
    assert (start.job, start.attempt, start.index) == (1, 1, world.state.index)


def test_nothing_is_committed_to_a_node_before_it_is_durable(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.disk.slow = True
    node.end(job)
    assert node.commands(ms.Committed) == []
    world.flush()
    assert len(node.commands(ms.Committed)) == 1


def test_effects_leave_in_the_order_of_their_entries(world: World) -> None:
    world.disk.slow = True
    requests = [world.ask(wish(f"key {n}")) for n in range(3)]
    world.handle(acts.Durable(len(world.disk.entries) - 1))
    assert [len(world.answers(request)) for request in requests] == [1, 1, 0]


def test_what_was_acknowledged_survives_a_crash_and_what_was_not_leaves_no_trace(world: World) -> None:
    first = world.submit(key="first")
    world.disk.slow = True
    world.ask(wish("second"))
    world.disk.slow = False
    world.restart()
    assert list(world.state.jobs) == [first]
    assert world.submit(key="second") == 2
    assert world.submit(key="first") == first


def test_each_start_of_a_head_begins_an_epoch_two_higher(world: World) -> None:
    assert world.state.epoch == 1
    world.restart()
    assert world.state.epoch == 3


# ---- starting


def test_nothing_is_started_on_a_node_before_it_told_what_it_runs(world: World) -> None:
    node = world.node("n1")
    world.restart()
    job = world.submit()
    assert world.job(job).state == "queued"
    node.ping()
    world.tick()
    assert world.job(job).state == "running"


def test_a_start_is_repeated_until_the_node_says_what_became_of_it(world: World) -> None:
    node = world.node("n1")
    node.obeys = False
    world.submit()
    world.wait(5.0, node)
    starts = node.commands(ms.Start)
    assert len(starts) >= 3 and len({(s.job, s.attempt, s.index, s.nonce) for s in starts}) == 1
    node.obeys = True
    world.wait(5.0, node)
    seen = len(node.commands(ms.Start))
    world.wait(5.0, node)
    assert len(node.commands(ms.Start)) == seen


def test_a_new_head_adopts_what_runs_and_starts_nothing_twice(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.restart()
    node.ping()
    world.wait(3.0, node)
    assert len(node.commands(ms.Start)) == 1
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 1)


def test_a_start_names_every_part_in_rank_order_and_where_its_agent_is(world: World) -> None:
    nodes = [world.node("n1"), world.node("n2")]
    world.submit(ranks=6)
    starts = [node.commands(ms.Start)[0] for node in nodes]
    assert starts[0].parts == starts[1].parts
    assert [(p.node, p.address, p.first_rank, p.ranks) for p in starts[0].parts] == [
        ("n1", "n1:1", 0, 4),
        ("n2", "n2:1", 4, 2),
    ]
    assert [start.incarnation for start in starts] == ["n1-1", "n2-1"]


def test_an_agent_that_came_back_under_a_new_address_is_found_there(world: World) -> None:
    node = world.node("n1")
    node.address = "n1:2"
    node.join()
    world.submit()
    assert node.commands(ms.Start)[0].parts[0].address == "n1:2"


def test_every_node_of_a_batch_job_is_asked_to_start_and_the_first_one_runs_the_script(world: World) -> None:
    nodes = [world.node("n1"), world.node("n2")]
    job = world.submit(ranks=6, batch=True)
    assert [len(node.commands(ms.Start)) for node in nodes] == [1, 1]
    assert [node.used_slots for node in world.state.nodes.values()] == [4, 2]
    nodes[0].end(job)
    assert world.row(job).state == "running", "the other node's warden may still end some step of it"
    nodes[1].end(job)
    assert world.row(job).state == "done"
    assert [node.used_slots for node in world.state.nodes.values()] == [0, 0]


def test_settled_never_covers_a_start_that_may_still_come(world: World) -> None:
    """Mistake 1 of the prototype: a worker that forgets too early runs a delayed start again."""
    node = world.node("n1")
    node.obeys = False
    first, second = world.submit(), world.submit()
    node.ping()
    assert node.commands(ms.Pong)[-1].settled == world.job(first).attempts[0].index - 1
    node.gone(first)
    node.ping()
    assert node.commands(ms.Pong)[-1].settled == world.job(second).attempts[0].index - 1
    node.running |= {(second, 1), (first, 2)}  # what the node names has arrived
    node.ping()
    assert node.commands(ms.Pong)[-1].settled == world.state.index


# ---- ending


def test_the_first_failed_part_ends_the_others_at_once(world: World) -> None:
    one, other = world.node("n1"), world.node("n2")
    job = world.submit(ranks=6)
    one.end(job, 3, "rank", 3)
    (kill,) = other.commands(ms.Kill)
    assert (kill.job, kill.grace_s, kill.index) == (job, 0.0, world.job(job).attempts[0].index)
    assert world.row(job).state == "ending"
    other.end(job, 137, "ended")
    assert (world.row(job).state, world.row(job).exit_code) == ("failed", 3)


def test_an_end_that_is_told_again_is_committed_again_and_counts_once(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    node.end(job)
    index = world.state.index
    node.end(job, 1)
    assert world.state.index == index
    assert len(node.commands(ms.Committed)) == 2
    assert world.row(job).state == "done"


def test_what_a_node_says_about_an_end_is_cut_to_size(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    result = ev.PartResult(ranks_ended(0, 50), note="x" * 10_000)
    node.tell(ms.Ended("n1", node.incarnation, job, 1, result))
    kept = world.job(job).attempts[0].parts[0].result
    assert kept and len(kept.ranks) == 1 and len(kept.note) == core.NOTE_LENGTH_MAX


def test_what_runs_and_should_not_is_ended(world: World) -> None:
    node = world.node("n1")
    node.running.add((77, 1))
    node.ping()
    assert [(kill.job, kill.attempt) for kill in node.commands(ms.Kill)] == [(77, 1)]


def test_a_waiting_job_is_cancelled_at_once_and_never_starts(world: World) -> None:
    job = world.submit()
    world.answer(ms.Cancel((str(job),)))
    node = world.node("n1")
    world.wait(2.0, node)
    assert (world.row(job).state, world.row(job).exit_code, world.row(job).code_by) == ("cancelled", 143, "beo")
    assert not node.commands(ms.Start)


def test_a_running_job_is_cancelled_gently_and_again_until_it_has_ended(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.answer(ms.Cancel((str(job),)))
    assert world.row(job).state == "ending"
    world.wait(3.0, node)
    kills = node.commands(ms.Kill)
    assert len(kills) >= 3 and all(kill.grace_s == world.config.worker.grace_s for kill in kills)
    node.end(job, 143, "ended")
    assert (world.row(job).state, world.row(job).exit_code) == ("cancelled", 143)


def test_a_cancelled_job_whose_start_was_lost_is_not_started_to_be_ended(world: World) -> None:
    node = world.node("n1")
    node.obeys = False
    job = world.submit()
    world.answer(ms.Cancel((str(job),)))
    starts = len(node.commands(ms.Start))
    world.wait(5.0, node)
    assert len(node.commands(ms.Start)) == starts
    node.gone(job)
    assert world.row(job).state == "cancelled"


def test_cancelling_what_has_ended_or_is_ending_changes_nothing(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    for _ in range(2):
        world.answer(ms.Cancel((str(job),)))
    node.end(job, 143, "ended")
    index = world.state.index
    assert world.answer(ms.Cancel((str(job),))).jobs[0].state == "cancelled"
    assert world.state.index == index


def test_a_requeued_job_can_be_cancelled(world: World) -> None:
    node = world.node("n1")
    job = world.submit(requeue="auto")
    world.wait(20.0)
    assert world.row(job).state == "queued"
    world.answer(ms.Cancel((str(job),)))
    node.reborn(boot=True).come()
    assert world.row(job).state == "cancelled"
    assert not world.state.live


def test_a_job_on_a_silent_node_is_cancelled_when_it_is_certain(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.wait(20.0)
    world.answer(ms.Cancel((str(job),)))
    assert world.row(job).state == "ending"
    node.reborn().come()
    assert node.commands(ms.Kill)[-1].job == job
    node.end(job, 143, "ended")
    assert world.row(job).state == "cancelled"


# ---- signals


def delivered(node: Node) -> list[tuple[int, int, int]]:
    return [(m.attempt, m.serial, m.signal) for m in node.commands(ms.Deliver)]


def test_a_signal_is_delivered_once_per_key(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    for key in ("a", "a", "b"):
        assert world.answer(ms.Signal(job, 10, key)) == ms.Done()
    assert delivered(node) == [(1, 1, 10), (1, 2, 10)]


def test_signals_are_repeated_in_order_until_they_are_delivered(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.answer(ms.Signal(job, 10, "a"))
    world.answer(ms.Signal(job, 12, "b"))
    world.wait(1.5, node)
    assert delivered(node) == [(1, 1, 10), (1, 2, 12)] * 2
    node.tell(ms.Delivered("n1", node.incarnation, job, 1, 2))
    seen = len(delivered(node))
    world.wait(3.0, node)
    assert len(delivered(node)) == seen


def test_a_signal_meant_for_an_attempt_never_reaches_the_next_one(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.answer(ms.Signal(job, 10, "a"))
    node.gone(job)
    assert world.job(job).attempt_number == 2
    world.wait(3.0, node)
    assert {attempt for attempt, _, _ in delivered(node)} == {1}
    assert world.answer(ms.Signal(job, 10, "a")) == ms.Done()
    assert {attempt for attempt, _, _ in delivered(node)} == {1}, "a repeated request is the one of the first attempt"


# ---- nodes


def test_a_fresh_node_is_not_declared_lost_at_once() -> None:
    """Mistake 4 of the prototype: its lease counts from its registration, not from the beginning of time."""
    world = World(settings(lease_s=3.0))
    world.wait(100.0)
    world.node("n1")
    world.tick()
    assert world.state.nodes["n1"].state == "up"


def test_after_a_take_over_a_node_has_its_whole_lease_to_be_heard(world: World) -> None:
    world.node("n1")
    world.wait(15.0)
    world.restart()
    world.wait(15.0)
    assert world.state.nodes["n1"].state == "up"
    world.wait(1.0)
    assert world.state.nodes["n1"].state == "lost"


def test_a_node_is_lost_only_when_its_lease_has_run_out_by_the_slowest_clock(world: World) -> None:
    node = world.node("n1")
    job = world.submit(requeue="auto")
    world.wait(10.0, node)
    lease_s = world.config.worker.lease_s
    world.wait(lease_s * (1 + 2 * core.RHO))
    assert (world.state.nodes["n1"].state, world.job(job).state) == ("up", "running")
    world.wait(lease_s * 2 * core.RHO)
    assert (world.state.nodes["n1"].state, world.job(job).state) == ("lost", "queued")


def test_a_lost_nodes_auto_job_runs_again_elsewhere(world: World) -> None:
    world.node("n1")
    job = world.submit(requeue="auto")
    other = world.node("n2")
    world.wait(16.0, other)
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)
    assert world.job(job).attempts[-1].parts[0].node == "n2"


@pytest.mark.parametrize("words", [{"requeue": "confirm"}, {"requeue": "never"}, {"requeue": "auto"}])
def test_a_job_that_nothing_contains_waits_until_it_is_certain(words: dict[str, Any]) -> None:
    world = World()
    world.node("n1", contain="none" if words["requeue"] == "auto" else "pidns")
    job = world.submit(**words)
    other = world.node("n2")
    world.wait(3600.0, other)
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 1)
    assert not other.commands(ms.Start)


def test_a_node_that_comes_back_with_its_job_keeps_it(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.wait(20.0)
    node.reborn().come()
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 1)
    assert len(node.commands(ms.Start)) == 1
    node.end(job)
    assert world.row(job).state == "done"


@pytest.mark.parametrize("boot", [False, True])
def test_a_node_that_comes_back_without_its_job_attests_its_end(world: World, boot: bool) -> None:
    node = world.node("n1")
    job = world.submit()
    world.wait(20.0)
    node.running.clear()
    node.reborn(boot=boot).come()
    assert world.job(job).attempts[0].parts[0].state == "gone"
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)


def test_the_operators_word_frees_a_job_of_a_silent_node(world: World) -> None:
    world.node("n1")
    job = world.submit()
    other = world.node("n2")
    world.wait(20.0, other)
    assert world.answer(ms.DeclareGone("n1"), "root") == ms.Done()
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)
    assert len(other.commands(ms.Start)) == 1


def test_a_machine_that_was_declared_off_and_comes_back_running_is_told_to_end_it(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.wait(20.0)
    world.answer(ms.DeclareGone("n1"), "root")
    assert world.job(job).state == "queued"
    node.reborn().come()
    assert [(kill.job, kill.attempt) for kill in node.commands(ms.Kill)] == [(job, 1)]


def test_a_lost_incarnation_is_only_told_that_it_is_dead(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.wait(20.0)
    node.heard.clear()
    node.ping()
    node.join()
    node.end(job)
    assert {type(message) for message in node.heard} == {ms.Dead}
    assert world.row(job).state == "running"


def test_late_words_of_a_former_incarnation_change_nothing(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    node.reborn().come()
    index = world.state.index
    old = "n1-1"
    node.tell(ms.Ended("n1", old, job, 1, ev.PartResult(ranks_ended(0, 1))))
    node.tell(ms.Join("n1", old, node.boot, node.address, "key-n1", 4, 0, {}, ()))
    node.tell(ms.Ping("n1", old, 0, (), ()))
    assert world.state.index == index
    assert world.state.nodes["n1"].incarnation == "n1-2"


def test_a_welcome_says_which_of_a_nodes_introductions_it_answers(world: World) -> None:
    node = world.node("n1")
    node.tell(ms.Join("n1", node.incarnation, node.boot, node.address, "key-n1", 4, 0, {"criu": "yes"}, (), 3))
    assert node.commands(ms.Welcome)[-1].learned == 3
    assert world.state.nodes["n1"].facts["criu"] == "yes"


def test_a_broken_allocation_of_a_batch_job_ends_it(world: World) -> None:
    one, other = world.node("n1"), world.node("n2")
    job = world.submit(ranks=6, batch=True)
    other.reborn(boot=True).come()
    assert world.row(job).state == "ending"
    assert one.commands(ms.Kill)[-1].job == job
    one.end(job, 137, "ended")
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)


def test_a_silent_node_gets_no_new_work_long_before_it_is_lost(world: World) -> None:
    world.node("n1")
    world.wait(3.0)
    job = world.submit()
    assert world.job(job).state == "queued"
    assert world.answer(ms.ListNodes()).nodes[0].state == "silent"


# ---- long polls


def test_a_long_poll_is_answered_once_when_all_of_its_jobs_have_ended(world: World) -> None:
    node = world.node("n1")
    jobs = world.submit(), world.submit()
    request = world.ask(ms.WaitJobs((jobs[1], jobs[0], jobs[1]), 10.0))
    node.end(jobs[0])
    assert world.answers(request) == []
    node.end(jobs[1], 3)
    world.wait(20.0, node)
    (answer,) = world.answers(request)
    assert [(job.id, job.state) for job in answer.jobs] == [(jobs[0], "done"), (jobs[1], "failed")]


@pytest.mark.parametrize("wait_s", [1.0, 10.0, 1e9, float("inf"), float("nan")])
def test_a_long_poll_is_answered_once_at_its_deadline(world: World, wait_s: float) -> None:
    request = world.ask(ms.WaitJobs((world.submit(),), wait_s))
    world.wait(min(wait_s, ms.WAIT_MAX_S) * 0.9 if wait_s == wait_s else 9.0)
    assert world.answers(request) == []
    world.wait(ms.WAIT_MAX_S)
    world.wait(ms.WAIT_MAX_S)
    assert len(world.answers(request)) == 1
    assert len(world.head._waiters) == 0


def test_a_follower_is_answered_when_there_is_something_new(world: World) -> None:
    job = world.submit()
    request = world.ask(ms.WaitJobs((job,), 10.0, known="queued/0"))
    assert world.answers(request) == []
    node = world.node("n1")
    assert world.answers(request)[0].jobs[0].state == "running"
    assert world.answer(ms.WaitJobs((job,), 10.0, known="queued/0")).jobs[0].state == "running"
    request = world.ask(ms.WaitJobs((job,), 10.0, known="running/1"))
    node.end(job)
    assert world.answers(request)[0].jobs[0].state == "done"


def test_too_many_long_polls_are_answered_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters, "WAITS_MAX", 2)
    jobs = world.submit(), world.submit()
    first = world.ask(ms.WaitJobs(jobs, 10.0))
    assert world.answer(ms.WaitJobs((jobs[0],), 10.0)).jobs[0].state == "queued"
    world.answer(ms.Cancel(("all",)))
    assert len(world.answers(first)) == 1
    assert world.answers(world.ask(ms.WaitJobs((world.submit(),), 10.0))) == []


# ---- attached jobs


def test_an_attached_job_ends_when_its_client_is_silent(world: World) -> None:
    job = world.submit(attached=True)
    world.wait(world.config.head.attached_grace_s)
    assert world.row(job).state == "queued"
    world.wait(1.0)
    assert (world.row(job).state, world.row(job).reason) == ("cancelled", "its 'beo run' has gone")


def test_an_attached_job_lives_as_long_as_its_client_waits_for_it() -> None:
    world = World(settings(attached_grace_s=4.0))
    job = world.submit(attached=True)
    for _ in range(20):
        request = world.ask(ms.WaitJobs((job,), 10.0, attached=True))
        while not world.answers(request):
            world.wait(0.1)
    assert world.row(job).state == "queued"


def test_another_users_wait_keeps_no_job_alive_and_a_new_head_gives_the_client_its_time(world: World) -> None:
    job = world.submit(attached=True)
    world.wait(50.0)
    world.ask(ms.WaitJobs((job,), 0.0, attached=True), "bob")
    world.restart()
    world.wait(50.0)
    assert world.row(job).state == "queued"
    world.wait(20.0)
    assert world.row(job).state == "cancelled"


# ---- retention


def test_records_go_when_they_are_old_and_when_there_are_too_many() -> None:
    world = World(settings(finished_keep_s=1000.0, finished_max=3))
    for _ in range(5):
        world.answer(ms.Cancel((str(world.submit()),)))
        world.wait(40.0)
    assert list(world.state.jobs) == [3, 4, 5]
    assert world.forgotten == [1, 2]
    world.wait(2000.0)
    assert not world.state.jobs
    assert world.submit() == 6
    assert world.replays()


def test_however_many_records_are_too_many_they_all_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "FORGET_BATCH", 2)
    world = World(settings(finished_max=1))
    for _ in range(8):
        world.submit()
    world.answer(ms.Cancel(("all",)))
    world.wait(core.FORGET_EVERY_S + 1)
    assert list(world.state.jobs) == [8]


def test_output_is_forgotten_only_when_that_is_durable() -> None:
    world = World(settings(finished_keep_s=0.0))
    world.answer(ms.Cancel((str(world.submit()),)))
    world.disk.slow = True
    world.wait(core.FORGET_EVERY_S + 1)
    assert not world.forgotten
    world.flush()
    assert world.forgotten == [1]


def test_what_runs_is_never_forgotten() -> None:
    world = World(settings(finished_keep_s=1.0))
    node = world.node("n1")
    job = world.submit()
    world.wait(100.0, node)
    assert world.row(job).state == "running"


# ---- lists


def test_lists_are_limited_and_say_how_much_they_leave_out(world: World) -> None:
    for _ in range(5):
        world.submit()
    shown = world.answer(ms.ListJobs(limit=2))
    assert ([job.id for job in shown.jobs], shown.more) == ([1, 2], 3)
    shown = world.answer(ms.ListJobs(limit=2, ended=True))
    assert ([job.id for job in shown.jobs], shown.more) == ([4, 5], 3)


def test_environment_and_script_are_shown_to_the_owner_only(world: World) -> None:
    world.submit(env={"TOKEN": "secret"}, script="#!/bin/sh\n")
    mine, theirs = (world.answer(ms.ShowJob(("1",)), who).jobs[0] for who in ("ann", "bob"))
    assert mine.spec.env and mine.spec.script
    assert not theirs.spec.env and not theirs.spec.script


def test_a_text_that_is_no_utf8_is_a_bad_message_and_not_the_heads_end() -> None:
    import msgspec

    data = ms.encode(ms.Cancel(("abc",))).replace(b"abc", b"a\xffc")
    with pytest.raises(msgspec.MsgspecError):
        ms.to_head.decode(data)


# ---- whatever happens


@given(st.data())
@how(max_examples=60)
def test_a_replay_gives_the_same_state_whatever_happens(data: st.DataObject) -> None:
    world = World(settings(lease_s=3.0, finished_keep_s=10.0))
    nodes = [world.node("n1", slots=2), world.node("n2", slots=3, contain="none")]

    def submit() -> None:
        ranks = data.draw(st.integers(1, 4))
        world.submit(
            ranks=ranks,
            nodes=data.draw(st.integers(0, min(2, ranks))),
            requeue=data.draw(st.sampled_from(["auto", "confirm", "never"])),
            batch=data.draw(st.booleans()),
            priority=data.draw(st.integers(0, 1)),
            env=data.draw(st.sampled_from([{}, {"B": "1", "A": "2"}])),
        )

    def node_acts() -> None:
        node = data.draw(st.sampled_from(nodes))
        running = sorted(key for key in node.running if world.job(key[0]).attempt_number == key[1])
        match data.draw(st.sampled_from(["end", "gone", "reborn", "boot", "ping"])):
            case "end" if running:
                node.end(running[0][0], data.draw(st.sampled_from([0, 0, 3])))
            case "gone" if running:
                node.gone(*running[0])
            case "reborn":
                node.reborn().come()
            case "boot":
                node.reborn(boot=True).come()
            case _:
                node.ping()

    def client_acts() -> None:
        if world.state.jobs:
            job = data.draw(st.sampled_from(sorted(world.state.jobs)))
            wishes: list[ms.ClientRequest] = [
                ms.Cancel((str(job),)),
                ms.Signal(job, 10, "k"),
                ms.WaitJobs((job,), 5.0),
            ]
            world.ask(data.draw(st.sampled_from(wishes)))

    acts = [submit, node_acts, node_acts, client_acts, world.restart]
    acts += [lambda: world.wait(1.0), lambda: world.wait(5.0, nodes[0]), lambda: world.wait(40.0, *nodes)]
    for act in data.draw(st.lists(st.sampled_from(acts), min_size=1, max_size=25)):
        act()
        assert world.replays()
        for node in world.state.nodes.values():
            assert 0 <= node.used_slots <= node.slots
        for job in world.state.jobs.values():
            assert all(attempt.over for attempt in job.attempts[:-1]), "two attempts of a job live"
    assert len(world.head._waiters) <= len(world.state.jobs) * 25
