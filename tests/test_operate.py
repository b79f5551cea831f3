"""Who runs the cluster: jobs held, released, queued again; nodes drained, resumed and forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from beo import messages as ms
from beo.headnode import operate
from tests.test_decide import refused
from tests.world import World, settings, spec


@pytest.fixture
def world() -> World:
    return World()


def states(world: World) -> list[str]:
    return [job.state for job in world.state.jobs.values()]


def requeue(world: World, job: int, who: str = "ann", attempt: int = -1, **words: Any) -> Any:
    number = world.job(job).attempt_number if attempt < 0 else attempt
    return world.answer(ms.Requeue(((job, number),), **words), who)


# ---- hold and release


def test_a_held_job_waits_until_it_is_released_and_keeps_its_place(world: World) -> None:
    first, second = world.submit(), world.submit()
    world.answer(ms.Hold((str(first),)))
    node = world.node("n1", slots=1)
    assert states(world) == ["held", "running"]
    assert world.why(first) == (f"held by ann: 'beo release {first}' lets it start",)
    third = world.submit()
    world.answer(ms.Release((str(first),)))
    node.end(second)
    assert (world.job(first).state, world.job(third).state) == ("running", "queued")
    assert world.replays()


def test_a_job_can_be_submitted_held(world: World) -> None:
    world.node("n1")
    answer = world.answer(ms.Submit("key", spec(), 1000, 1000, (), True))
    assert world.job(answer.job).state == "held"
    world.restart()
    world.nodes["n1"].ping()
    assert world.job(answer.job).state == "held"
    world.answer(ms.Release(("1",)))
    assert world.job(answer.job).state == "running"


def test_an_owner_cannot_release_what_an_admin_holds(world: World) -> None:
    job = str(world.submit())
    world.answer(ms.Hold((job,)))
    world.answer(ms.Hold((job,)), "root")
    world.answer(ms.Hold((job,)))
    assert world.why(1)[0] == "held by root, an admin: 'beo release 1' lets it start"
    error = refused(world.answer(ms.Release((job,))))
    assert (error["kind"], error["cure"]) == ("Refused", "ask an admin")
    assert world.answer(ms.Release((job,)), "root").jobs[0].state == "queued"


def test_an_admin_releases_what_its_owner_holds(world: World) -> None:
    job = str(world.submit())
    world.answer(ms.Hold((job,)))
    assert world.answer(ms.Release((job,)), "root").jobs[0].state == "queued"


def test_an_admins_own_hold_on_his_own_job_is_an_owners(world: World) -> None:
    job = world.submit("root")
    world.answer(ms.Hold((str(job),)), "root")
    assert world.job(job).hold == "owner"


@pytest.mark.parametrize("wish", [ms.Hold(("1",)), ms.Release(("1",)), ms.SetPriority(("1",), 3)])
def test_only_the_owner_or_an_admin_changes_a_job(world: World, wish: ms.Hold) -> None:
    world.submit()
    assert refused(world.answer(wish, "bob"))["kind"] == "Refused"
    assert refused(requeue(world, 1, "bob"))["kind"] == "Refused"


def test_what_runs_is_not_held_and_what_ended_is_not_released(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    error = refused(world.answer(ms.Hold((str(job),))))
    assert (error["what"], error["cure"]) == ("job 1 is running", "'beo requeue --hold' ends what runs and holds it")
    node.end(job)
    assert refused(world.answer(ms.Release((str(job),))))["why"] == "it has ended"
    assert world.answer(ms.Hold(("all",))).jobs, "'all' fails nowhere"


def test_of_several_jobs_those_are_held_that_wait(world: World) -> None:
    world.node("n1", slots=1)
    for _ in range(3):
        world.submit()
    assert [job.state for job in world.answer(ms.Hold(("1-3",))).jobs] == ["running", "held", "held"]


def test_a_wish_that_is_repeated_makes_no_entry(world: World) -> None:
    world.submit()
    world.node("n1", slots=0)
    for wish in (ms.Hold(("1",)), ms.SetPriority(("1",), 7), ms.Release(("1",)), ms.Drain("n1", "x"), ms.Resume("n1")):
        world.answer(wish, "root")
        entries = world.state.index
        world.answer(wish, "root")
        assert world.state.index == entries, wish


def test_a_held_job_is_cancelled_and_signalled_like_one_that_waits(world: World) -> None:
    for _ in range(2):
        world.submit()
    world.answer(ms.Hold(("1-2",)))
    world.answer(ms.Cancel(("1",)))
    world.answer(ms.Signal(2, 15, "key"))
    assert states(world) == ["cancelled", "cancelled"]
    assert world.state.waiting == 0 and world.replays()


def test_a_wait_for_a_held_job_goes_on_until_it_ended(world: World) -> None:
    job = world.submit()
    world.answer(ms.Hold((str(job),)))
    seen = world.ask(ms.WaitJobs((job,), 10.0, known="queued/0"))
    assert world.answers(seen)[0].jobs[0].state == "held", "a follower is told that it is held now"
    request = world.ask(ms.WaitJobs((job,), 10.0))
    world.wait(5.0)
    assert not world.answers(request)
    world.answer(ms.Release((str(job),)))
    world.node("n1").end(job)
    assert world.answers(request)[0].jobs[0].state == "done"


def test_held_jobs_count_against_the_limit_of_the_queue() -> None:
    world = World(settings(queued_max=2))
    world.submit()
    world.submit()
    world.answer(ms.Hold(("all",)))
    error = refused(world.answer(ms.Submit("third", spec(), 1000, 1000, ())))
    assert "queued_max" in error["why"]


# ---- requeue


def test_a_running_job_is_ended_and_runs_again_as_a_new_attempt(world: World) -> None:
    node = world.node("n1")
    job = world.submit(requeue="never")
    assert requeue(world, job).jobs[0].state == "ending"
    assert world.why(job) == ("is ended: requeued by ann",)
    (kill,) = node.commands(ms.Kill)
    assert (kill.attempt, kill.reason, kill.grace_s > 0) == (1, "requeued by ann", True)
    assert len(node.commands(ms.Start)) == 1, "the next attempt begins when nothing of this one is alive"
    node.end(job, 143, "ended")
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)
    assert world.job(job).attempts[0].outcome == "requeued by ann"
    node.end(job)
    assert (world.job(job).state, world.job(job).exit_code) == ("done", 0)
    assert world.replays()


def test_a_requeue_that_is_repeated_ends_no_later_attempt(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    requeue(world, job, attempt=1)
    requeue(world, job, attempt=1)
    node.end(job, 143, "ended")
    requeue(world, job, attempt=1)
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)


@pytest.mark.parametrize("end", ["done", "failed", "cancelled", "lost"])
def test_an_ended_job_runs_again_under_its_id(world: World, end: str) -> None:
    node = world.node("n1")
    job = world.submit(requeue="never")
    if end == "cancelled":
        world.answer(ms.Cancel((str(job),)))
        node.end(job, 143, "ended")
    elif end == "lost":
        node.gone(job)
    else:
        node.end(job, 3 if end == "failed" else 0)
    assert world.job(job).state == end
    requeue(world, job)
    row = world.row(job)
    assert (row.state, row.attempt, row.exit_code, row.ended_s) == ("running", 2, -1, 0.0)
    node.end(job)
    assert (world.job(job).state, world.job(job).exit_code, world.job(job).code_by) == ("done", 0, "job")
    assert world.replays()


def test_a_job_that_was_cancelled_before_it_ran_can_be_queued_again(world: World) -> None:
    job = world.submit()
    world.answer(ms.Cancel((str(job),)))
    requeue(world, job)
    world.node("n1").end(job)
    assert (world.job(job).state, world.job(job).attempt_number) == ("done", 1)


def test_a_requeued_job_can_be_held(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    requeue(world, job, "root", hold=True)
    node.end(job, 143, "ended")
    assert (world.job(job).state, world.job(job).hold) == ("held", "admin")
    assert world.why(job)[-1] == "requeued by root"


def test_a_requeue_waits_until_nothing_of_the_attempt_can_be_alive(world: World) -> None:
    one, other = world.node("n1", slots=1), world.node("n2", slots=1)
    job = world.submit(ranks=2)
    requeue(world, job)
    one.end(job, 143, "ended")
    world.wait(30.0, one)  # n2 is lost, and may still run its part
    assert world.state.nodes["n2"].state == "lost" and world.job(job).state == "ending"
    other.reborn(boot=True).come()
    world.wait(1.0, one, other)
    assert (world.job(job).state, world.job(job).attempt_number) == ("running", 2)


def test_a_cancel_wins_over_a_requeue(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    requeue(world, job)
    world.answer(ms.Cancel((str(job),)))
    node.end(job, 143, "ended")
    assert world.job(job).state == "cancelled"


def test_a_job_that_cannot_run_again_says_so(world: World) -> None:
    node = world.node("n1")
    fed, attached, cancelled = world.submit(stdin=True), world.submit(attached=True), world.submit()
    node.end(attached)
    world.answer(ms.Cancel((str(cancelled),)))
    assert "gone" in refused(requeue(world, fed))["why"]
    assert "ended" in refused(requeue(world, attached))["why"]
    assert refused(requeue(world, cancelled))["what"].startswith("job 3 is being ended")


def test_requeues_are_not_slowed_down_as_losses_are(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    for attempt in range(1, 6):
        assert (world.job(job).state, world.job(job).attempt_number) == ("running", attempt)
        requeue(world, job)
        node.end(job, 143, "ended")


def test_a_queue_that_is_full_takes_no_ended_job_again() -> None:
    world = World(settings(queued_max=1))
    node = world.node("n1", slots=1)
    ended = world.submit()
    node.end(ended)
    world.submit()
    world.submit()
    assert "queued_max" in refused(requeue(world, ended))["why"]


# ---- priority


def test_a_higher_priority_goes_first_also_when_it_is_given_later(world: World) -> None:
    for _ in range(3):
        world.submit()
    world.answer(ms.SetPriority(("3",), 10))
    world.answer(ms.Hold(("2",)))
    world.answer(ms.SetPriority(("2",), 20))
    world.node("n1", slots=1)
    assert states(world) == ["queued", "held", "running"]
    world.answer(ms.Release(("2",)))
    world.nodes["n1"].end(3)
    assert states(world) == ["queued", "running", "done"] and world.replays()


def test_a_priority_that_is_none_is_refused(world: World) -> None:
    world.submit()
    assert "1000" in refused(world.answer(ms.SetPriority(("1",), 1001)))["why"]


# ---- drain and resume


def test_a_drained_node_gets_no_new_work_and_what_runs_there_goes_on(world: World) -> None:
    node = world.node("n1")
    running = world.submit()
    (row,) = world.answer(ms.Drain("n1", "new disk"), "root").nodes
    assert (row.state, row.drain) == ("draining", "by root: new disk")
    waiting = world.submit()
    assert world.why(waiting) == ("n1 is drained: 'beo resume' lets new work in",)
    node.end(running)
    assert [node.state for node in world.answer(ms.ListNodes()).nodes] == ["drained"]
    assert (world.job(running).state, world.job(waiting).state) == ("done", "queued")
    (row,) = world.answer(ms.Resume("n1"), "root").nodes
    assert (row.state, row.drain) == ("up", "")
    assert world.job(waiting).state == "running" and world.replays()


def test_a_drain_survives_a_restart_of_the_head_and_new_incarnations(world: World) -> None:
    node = world.node("n1")
    world.answer(ms.Drain("n1"), "root")
    world.restart()
    node.ping()
    node.reborn(boot=True).come()
    job = world.submit()
    assert world.job(job).state == "queued" and world.replays()
    world.wait(30.0)
    assert world.state.nodes["n1"].state == "lost"
    node.reborn().come()
    world.tick()
    assert world.job(job).state == "queued"
    assert world.answer(ms.ListNodes()).nodes[0].state == "drained"


def test_a_job_goes_round_a_drained_node_and_says_so_when_it_cannot(world: World) -> None:
    for name in ("n1", "n2"):
        world.node(name, slots=1)
    world.answer(ms.Drain("n1"), "root")
    assert world.job(world.submit()).attempt.parts[0].node == "n2"  # type: ignore[union-attr]
    wide = world.submit(ranks=2)
    assert world.why(wide) == (
        "needs 2 ranks; the cluster has 1 slot on 1 node: it waits for more nodes",
        "n1 is drained: 'beo resume' lets new work in",
    )


def test_a_wide_job_does_not_make_others_wait_for_a_drained_node(world: World) -> None:
    nodes = [world.node(name, slots=1) for name in ("n1", "n2")]
    world.answer(ms.Drain("n1"), "root")
    world.submit(ranks=2)
    world.wait(700.0, *nodes)
    assert world.job(world.submit()).state == "running"


def test_a_drain_names_nodes_as_a_set_and_all_or_none(world: World) -> None:
    for name in ("node01", "node02", "node03"):
        world.node(name)
    assert "node03" in refused(world.answer(ms.Drain("node[02-04]"), "root"))["cure"]
    assert not any(node.drain for node in world.state.nodes.values())
    assert [node.name for node in world.answer(ms.Drain("node[02-03]"), "root").nodes] == ["node02", "node03"]


@pytest.mark.parametrize("wish", [ms.Drain("n1"), ms.Resume("n1"), ms.ForgetNodes("n1")])
def test_only_an_admin_decides_on_nodes(world: World, wish: ms.Drain) -> None:
    world.node("n1")
    assert refused(world.answer(wish))["kind"] == "Refused"


@pytest.mark.parametrize("wish", [ms.Drain(""), ms.Drain("n["), ms.Drain("n1", "a\nb"), ms.Drain("n1", "x" * 201)])
def test_a_drain_that_makes_no_sense_is_a_mistake(world: World, wish: ms.Drain) -> None:
    world.node("n1")
    assert refused(world.answer(wish, "root"))["kind"] == "UsageError"


# ---- forget


def test_a_lost_node_is_forgotten_and_its_name_may_join_again(world: World) -> None:
    node = world.node("n1")
    world.answer(ms.Drain("n1"), "root")
    assert refused(world.answer(ms.ForgetNodes("n1"), "root"))["what"] == "n1 is up"
    world.wait(30.0)
    world.answer(ms.ForgetNodes("n1"), "root")
    assert not world.state.nodes and world.answer(ms.ListNodes()).nodes == () and world.replays()
    node.ping()
    assert isinstance(node.heard[-1], ms.Dead), "what was forgotten is told so, and comes back as another"
    node.reborn().come()
    world.tick()
    assert world.answer(ms.ListNodes()).nodes[0].state == "up", "the drain was forgotten too"
    assert world.job(world.submit()).state == "running"


def test_late_words_of_a_forgotten_node_do_not_replace_the_one_that_has_joined_since(world: World) -> None:
    node = world.node("n1")
    late = ms.Join("n1", node.incarnation, node.boot, node.address, "key-n1", 4, 0, {}, ())
    world.wait(30.0)
    world.answer(ms.ForgetNodes("n1"), "root")
    node.tell(late)
    assert not world.state.nodes
    node.reborn().come()
    world.tick()
    job = world.submit()
    node.tell(late)
    assert world.state.nodes["n1"].incarnation == node.incarnation and world.job(job).state == "running"
    assert world.replays()


def test_a_node_of_which_something_may_live_is_not_forgotten(world: World) -> None:
    world.node("n1")
    job = world.submit(requeue="confirm")
    world.wait(30.0)
    error = refused(world.answer(ms.ForgetNodes("n1"), "root"))
    assert (error["why"], error["cure"]) == ("job 1 may still run there", "'beo gone n1' says that it is off")
    world.answer(ms.DeclareGone("n1"), "root")
    world.answer(ms.ForgetNodes("n1"), "root")
    assert not world.state.nodes and world.job(job).state == "queued"


def test_a_node_that_a_running_job_still_names_is_not_forgotten(world: World) -> None:
    one, other = world.node("n1", slots=1), world.node("n2", slots=1)
    world.submit(ranks=2)
    other.running.clear()  # it hasn't got its START yet, which names n1
    one.end(1)
    world.wait(30.0, other)
    assert "elsewhere" in refused(world.answer(ms.ForgetNodes("n1"), "root"))["why"]
    other.end(1)
    world.answer(ms.ForgetNodes("n1"), "root")
    assert list(world.state.nodes) == ["n2"]


def test_jobs_are_named_within_bounds(world: World) -> None:
    world.node("n1", slots=20)
    for _ in range(20):
        world.submit()
    world.wait(30.0)
    why = refused(world.answer(ms.ForgetNodes("n1"), "root"))["why"]
    assert why == "jobs 1, 2, 3, 4, 5, 6, 7, 8 … may still run there"
    assert operate.JOBS_NAMED == 8
