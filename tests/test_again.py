"""Where a job goes on that has left a checkpoint somewhere: back there, with a spare for what is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from beo import messages as ms
from beo.errors import EXIT_HALTED, EXIT_UNRESTORED
from beo.headnode import vaults
from beo.headnode.again import ALONE_S, place_again
from beo.headnode.model import Attempt, Job, PartState
from beo.settings import FilesConfig
from tests.test_decide import refused
from tests.world import START_S, Node, World, settings, spec


def job(*places: int, nodes: int = 0) -> Job:
    """A job whose last attempt had so many ranks on n1, n2, ..."""
    parts, first = [], 0
    for number, ranks in enumerate(places, 1):
        parts.append(PartState(f"n{number}", "i", first, ranks, "gone"))
        first += ranks
    found = Job(1, "key", "ann", 0, 0, (), spec(ranks=sum(places), nodes=nodes), START_S)
    found.attempts = [Attempt(1, 1, "nonce", START_S, parts, ended_s=START_S)]
    return found


@pytest.fixture
def world() -> World:
    return World()


# ---- one job


def test_a_spare_takes_the_part_of_the_lost_node_and_the_others_keep_theirs() -> None:
    assert place_again(job(1, 1, 1), {"n1": 1, "n3": 1}, {"n1": 4, "n3": 4, "n4": 2}) == {"n1": 1, "n3": 1, "n4": 1}


def test_the_smallest_spare_that_fits_is_taken() -> None:
    assert place_again(job(2, 2), {"n1": 2}, {"n1": 2, "n5": 8, "n6": 3, "n7": 1}) == {"n1": 2, "n6": 2}


def test_without_a_spare_the_survivors_take_its_ranks_as_far_as_there_is_room() -> None:
    assert place_again(job(2, 2), {"n1": 2}, {"n1": 4}) == {"n1": 4}
    assert place_again(job(2, 2), {"n1": 2}, {"n1": 3}) is None


def test_a_keeper_without_room_is_waited_for() -> None:
    assert place_again(job(1, 1), {"n1": 1, "n2": 1}, {"n1": 1, "n2": 0, "n3": 9}) is None


def test_so_many_nodes_as_were_asked_for_are_used_again() -> None:
    assert place_again(job(2, 2, nodes=2), {"n1": 2}, {"n1": 8}) is None
    assert place_again(job(2, 2, nodes=2), {"n1": 2}, {"n1": 8, "n2": 2}) == {"n1": 2, "n2": 2}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_a_placement_has_every_rank_where_there_is_room_and_every_keeper_its_own(
    places: list[int], data: st.DataObject
) -> None:
    one = job(*places)
    names = [f"n{number}" for number in range(1, len(places) + 1)]
    kept = {name: places[n] for n, name in enumerate(names) if data.draw(st.booleans())}
    fits = {name: data.draw(st.integers(0, 6)) for name in [*names, "s1", "s2"]}
    found = place_again(one, kept, fits)
    if found is not None:
        assert sum(found.values()) == sum(places)
        assert all(ranks <= fits[name] for name, ranks in found.items())
        assert all(found[name] >= kept[name] for name in kept)
    else:
        short = any(fits[name] < kept[name] for name in kept)
        assert short or sum(fits.values()) < sum(places)


# ---- a cluster


def test_a_job_waits_for_the_node_that_alone_keeps_its_checkpoint_but_not_for_ever(world: World) -> None:
    first, second = world.node("n1", slots=1), world.node("n2", slots=1)
    number, other = world.submit(), world.submit()
    first.keep(number)
    second.keep()
    urgent = world.submit(priority=9)
    first.gone(number)
    assert world.job(urgent).state == "running"
    second.end(other)
    assert world.job(number).state == "queued"
    assert world.why(number)[0] == "waits for n1, where it has left its checkpoint"
    world.wait(ALONE_S + 1, first, second)
    assert [part.node for part in world.job(number).attempts[-1].parts] == ["n2"]
    assert world.replays()


def test_a_drained_nodes_job_goes_on_elsewhere_when_it_has_halted(world: World) -> None:
    first = world.node("n1")
    number = world.submit()
    first.keep(number)
    world.node("n2").keep()
    world.answer(ms.Drain("n1", ""), "root")
    assert [halt.leaving for halt in first.commands(ms.Halt)] == [("n1",)]
    assert world.job(number).state == "running"
    assert "is asked to leave n1 (n1 is drained by root)" in world.why(number)[0]
    first.end(number, EXIT_HALTED)
    assert [part.node for part in world.job(number).attempts[-1].parts] == ["n2"]
    assert world.job(number).attempts[0].outcome == "n1 is drained by root"
    assert world.replays()


def test_where_an_attempt_took_no_checkpoint_the_job_goes_back_to_the_nodes_that_have_the_last_one(
    world: World,
) -> None:
    nodes = {name: world.node(name, slots=1) for name in ("n1", "n2", "n3", "n4")}
    number = world.submit(ranks=3)
    for name in ("n1", "n2", "n3"):
        nodes[name].keep(number, newest_s=7.0)
    nodes["n4"].keep()
    world.answer(ms.Migrate(((number, 1),), "n[1-2],n4"))
    for name in ("n1", "n2", "n3"):
        nodes[name].end(number, EXIT_HALTED)
    assert [part.node for part in world.job(number).attempts[-1].parts] == ["n1", "n2", "n4"]
    nodes["n4"].keep(number)  # it has only made its folder there
    nodes["n1"].keep()  # and this one has lost its memory
    for name in ("n1", "n2", "n4"):
        nodes[name].gone(number, attempt=2)
    assert {"n2", "n3"} < {part.node for part in world.job(number).attempts[-1].parts}
    assert world.replays()


def test_a_move_that_ends_in_a_failure_is_off_and_the_job_goes_on_where_it_was(world: World) -> None:
    nodes = {name: world.node(name, slots=1) for name in ("n1", "n2", "n3")}
    number = world.submit(ranks=2)
    for name in ("n1", "n2"):
        nodes[name].keep(number, newest_s=7.0)
    world.answer(ms.Migrate(((number, 1),), "n[2-3]"))
    for name in ("n1", "n2"):
        nodes[name].end(number, 137)
    assert world.job(number).state == "failed"
    world.answer(ms.Requeue(((number, 1),)))
    assert [part.node for part in world.job(number).attempts[-1].parts] == ["n1", "n2"]
    assert world.replays()


def test_what_a_node_keeps_stays_until_all_of_a_move_is_done_and_is_then_of_no_more_use(world: World) -> None:
    nodes = {name: world.node(name, slots=1) for name in ("n1", "n2", "n3", "n4")}
    number = world.submit(ranks=2)
    world.answer(ms.Migrate(((number, 1),), "n[3-4]"))
    for name, bundle in (("n1", "a" * 64), ("n2", "b" * 64)):
        nodes[name].tell(ms.VaultCopied(name, f"{name}-1", number, 1, bundle, 5))
        nodes[name].keep(number)
        assert not nodes[name].commands(ms.VaultsOver), "the other may still be lost with what it keeps"
        nodes[name].end(number, EXIT_HALTED)
    starts = [start for name in ("n3", "n4") for start in nodes[name].commands(ms.Start)]
    copies = ("n3", "a" * 64), ("n4", "b" * 64)
    assert [(start.attempt, start.copies, start.anew) for start in starts] == [(2, copies, True)] * 2
    for name in ("n1", "n2", "n3"):
        nodes[name].keep(number)
    assert [len(nodes[name].commands(ms.VaultsOver)) for name in ("n1", "n2", "n3")] == [1, 1, 0]
    assert world.replays()


def test_a_halt_is_said_again_until_the_part_has_ended_by_the_next_head_too(world: World) -> None:
    node = world.node("n1")
    world.node("n2")
    number = world.submit()
    world.answer(ms.Migrate(((number, 1),)))
    world.restart()
    node.heard.clear()
    node.come()
    world.wait(3.0, node)
    assert len(node.commands(ms.Halt)) >= 2


def test_an_exit_with_85_that_nobody_asked_for_is_the_jobs_own(world: World) -> None:
    node = world.node("n1")
    number = world.submit()
    node.end(number, EXIT_HALTED)
    assert (world.job(number).state, world.job(number).exit_code) == ("failed", EXIT_HALTED)


def test_moves_dont_count_as_losses(world: World) -> None:
    for name in ("n1", "n2"):
        world.node(name)
    number = world.submit()
    for attempt in range(1, 61):
        world.answer(ms.Migrate(((number, attempt),)))
        world.nodes[world.job(number).attempts[-1].parts[0].node].end(number, EXIT_HALTED)
        assert world.job(number).attempt_number == attempt + 1
    assert world.job(number).losses == 0


def test_a_copy_counts_when_every_node_of_the_attempt_has_one_and_a_later_one_replaces_it(world: World) -> None:
    first, second = world.node("n1", slots=1), world.node("n2", slots=1)
    number = world.submit(ranks=2)
    one, other, third = "a" * 64, "b" * 64, "c" * 64
    first.tell(ms.VaultCopied("n1", "n1-1", number, 1, one, 5))
    attempt = world.job(number).attempts[-1]
    assert vaults.copies(world.job(number), attempt, {}) == ((), False)
    second.tell(ms.VaultCopied("n2", "n2-1", number, 1, other, 5))
    assert vaults.copies(world.job(number), attempt, {}) == ((("n1", one), ("n2", other)), False)
    first.tell(ms.VaultCopied("n1", "n1-1", number, 1, third, 5))
    assert vaults.copies(world.job(number), attempt, {}) == ((("n1", third), ("n2", other)), False)
    first.tell(ms.VaultCopied("n1", "n1-1", number, 1, "nonsense", 5))
    assert len(world.job(number).copies) == 2
    assert world.replays()


def test_nothing_is_read_from_the_head_while_a_node_of_the_attempt_keeps_something(world: World) -> None:
    first, second = world.node("n1", slots=1), world.node("n2", slots=1)
    number = world.submit(ranks=2)
    for node, name in ((first, "a"), (second, "b")):
        node.tell(ms.VaultCopied(node.name, node.incarnation, number, 1, name * 64, 5))
        node.keep(number)
    third = world.node("n3", slots=1)
    third.keep()
    second.gone(number)
    first.gone(number)
    (*_, start) = [*first.commands(ms.Start), *second.commands(ms.Start), *third.commands(ms.Start)]
    assert start.attempt == 2
    assert start.copies == ()


def lost_twice(world: World, *, copied: bool) -> tuple[Node, int]:
    """A job whose node was lost, and whose next attempt finds too little of its checkpoint on the same node."""
    node = world.node("n1")
    number = world.submit(requeue="auto")
    node.keep(number)
    if copied:
        node.tell(ms.VaultCopied("n1", "n1-1", number, 1, "a" * 64, 5, (("mark", 1, 1),)))
    node.gone(number)
    assert node.commands(ms.Start)[-1].copies == ()
    node.end(number, EXIT_UNRESTORED)
    return node, number


def test_a_job_that_cant_go_on_from_what_its_nodes_keep_goes_on_with_the_heads_copy(world: World) -> None:
    node, number = lost_twice(world, copied=True)
    start = node.commands(ms.Start)[-1]
    assert (start.attempt, start.copies, start.anew) == (3, (("n1", "a" * 64),), True)
    assert "with the copy at the head" in world.job(number).attempts[1].outcome
    assert world.job(number).losses == 2
    assert world.replays()


def test_the_next_head_says_so_too(world: World) -> None:
    node, _ = lost_twice(world, copied=True)
    node.running.clear()  # its START was lost
    world.restart()
    node.heard.clear()
    node.come()
    starts = node.commands(ms.Start)
    assert [(start.attempt, start.anew) for start in starts] == [(3, True)]


def test_what_was_left_is_not_waited_for_when_the_heads_copy_is_taken(world: World) -> None:
    node, second = world.node("n1", slots=1), world.node("n2", slots=1)
    number, other = world.submit(requeue="auto"), world.submit()
    node.keep(number)
    node.tell(ms.VaultCopied("n1", "n1-1", number, 1, "a" * 64, 5, (("mark", 1, 1),)))
    node.gone(number)
    second.keep()
    world.submit(priority=9)  # gets n1 as soon as it is free
    node.end(number, EXIT_UNRESTORED)
    second.end(other)
    assert [(start.attempt, start.anew) for start in second.commands(ms.Start)] == [(1, False), (3, True)]


@pytest.mark.parametrize(("code", "copies"), [(0, ()), (1, (("n1", "a" * 64),))])
def test_a_job_that_was_done_begins_anew_when_it_is_queued_again_whatever_copy_is_at_the_head(
    world: World, code: int, copies: tuple[tuple[str, str], ...]
) -> None:
    node = world.node("n1")
    number = world.submit()
    node.tell(ms.VaultCopied("n1", "n1-1", number, 1, "a" * 64, 5, (("mark", 1, 1),)))
    node.end(number, code)
    node.keep()
    world.answer(ms.Requeue(((number, 1),)))
    assert [(start.attempt, start.copies) for start in node.commands(ms.Start)] == [(1, ()), (2, copies)]
    assert world.replays()


def test_a_copy_that_is_of_no_use_either_ends_the_job_in_words(world: World) -> None:
    node, number = lost_twice(world, copied=True)
    node.end(number, EXIT_UNRESTORED)
    assert (world.job(number).state, world.job(number).exit_code) == ("failed", EXIT_UNRESTORED)
    assert "no whole copy of it is at the head" in world.job(number).reason


def test_without_a_copy_a_lost_checkpoint_ends_the_job_in_words(world: World) -> None:
    _, number = lost_twice(world, copied=False)
    assert (world.job(number).state, world.job(number).exit_code) == ("failed", EXIT_UNRESTORED)
    assert "no whole copy of it is at the head" in world.job(number).reason
    assert world.replays()


def test_an_exit_with_86_of_a_first_attempt_is_the_jobs_own(world: World) -> None:
    node = world.node("n1")
    number = world.submit()
    node.tell(ms.VaultCopied("n1", "n1-1", number, 1, "a" * 64, 5, (("mark", 1, 1),)))
    node.end(number, EXIT_UNRESTORED)
    assert (world.job(number).state, world.job(number).reason) == ("failed", "exit code 86")


def test_a_copy_that_names_what_no_checkpoint_is_called_is_not_taken(world: World) -> None:
    node = world.node("n1")
    number = world.submit()
    node.tell(ms.VaultCopied("n1", "n1-1", number, 1, "a" * 64, 5, (("x" * 65, 1, 1),)))
    assert world.job(number).copies == []


def test_what_is_kept_is_over_with_its_job_and_an_hour_after_a_failure(world: World) -> None:
    node = world.node("n1")
    done, failed = world.submit(), world.submit()
    node.end(done)
    node.end(failed, 3)
    node.keep(done, failed, 999)
    assert [over.jobs for over in node.commands(ms.VaultsOver)] == [(done, 999)]
    world.wait(vaults.KEEP_FAILED_S + 1)
    node.reborn().come().keep(failed)
    assert node.commands(ms.VaultsOver)[-1].jobs == (failed,)


def test_failures_are_expected_as_often_as_the_cluster_has_seen_them(world: World) -> None:
    for name in ("n1", "n2"):
        world.node(name)
    calm_s = vaults.mtbf_s(world.state, 1, START_S)
    assert vaults.mtbf_s(world.state, 2, START_S) == calm_s / 2
    world.wait(1_000.0)
    assert world.state.lost == 2
    assert vaults.mtbf_s(world.state, 1, world.wall_s) < calm_s / 2


# ---- programs that know nothing of it


def able(node: Node, fact: str = ms.CRIU_WORKS) -> Node:
    """Let a node tell whether it can move programs."""
    node.criu = fact
    return node.come()


def test_a_movable_job_goes_only_where_programs_can_be_moved_and_says_why_it_waits(world: World) -> None:
    first = able(world.node("n1", slots=8), "no criu here passes 'criu check': none is installed")
    world.node("n2")
    number = world.submit(movable=True)
    other = world.submit()
    assert [world.job(one).state for one in (number, other)] == ["queued", "running"]
    assert world.why(number)[0] == (
        "is movable, and n[1-2] can't move programs (no criu here passes 'criu check': none is installed):"
        " 'make criu' there"
    )
    able(world.nodes["n2"])
    assert [part.node for part in world.job(number).attempts[-1].parts] == ["n2"]
    assert first.incarnation == world.state.nodes["n1"].incarnation
    assert world.replays()


def test_a_movable_job_hides_nobody_of_the_same_size_that_stands_behind_it(world: World) -> None:
    world.node("n1", slots=1)
    blocked = world.submit(movable=True)
    other = world.submit()
    assert [world.job(one).state for one in (blocked, other)] == ["queued", "running"]


def test_a_movable_job_that_waits_for_room_says_which_nodes_are_of_no_use_to_it(world: World) -> None:
    able(world.node("n1", slots=1))
    world.node("n2", slots=1)
    first, second = world.submit(movable=True), world.submit(movable=True)
    assert world.why(second)[:2] == (
        f"waits for 1 rank: job {first} in the way",
        "is movable, and n2 can't move programs (not told yet): 'make criu' there",
    )


def test_a_movable_job_isnt_sent_where_no_program_can_be_moved(world: World) -> None:
    able(world.node("n1"))
    world.node("n2")
    number = world.submit(movable=True)
    assert "a criu works" in refused(world.answer(ms.Migrate(((number, 1),), "n2")))["why"]
    able(world.nodes["n2"])
    assert isinstance(world.answer(ms.Migrate(((number, 1),), "n2")), ms.JobsAre)


def test_who_submits_a_movable_job_that_has_nowhere_to_go_is_told(world: World) -> None:
    world.node("n1")
    answer = world.answer(ms.Submit("key", spec(movable=True), 1000, 1000, ()))
    assert "no node can move programs" in answer.warnings[0]


# ---- who makes room


def test_the_youngest_of_the_lowest_priority_make_room_and_no_more_than_needed() -> None:
    world = World(settings(preempt_above=100))
    node = world.node("n1", slots=4)
    low = [world.submit(priority=-200) for _ in range(4)]
    node.keep(*low)
    high = world.submit(ranks=2)
    asked = [number for number in low if world.job(number).move]
    assert asked == low[2:]
    for number in asked:
        node.end(number, EXIT_HALTED)
    assert world.job(high).state == "running"
    assert [world.job(number).state for number in asked] == ["queued", "queued"]
    assert "made room for job 5" in world.why(asked[0])[-1]
    assert world.replays()


@pytest.mark.parametrize(("priority", "keeps", "above"), [(-99, True, 100), (-200, False, 100), (-200, True, 0)])
def test_nobody_makes_room_who_is_as_urgent_or_has_no_checkpoint_or_where_it_is_switched_off(
    priority: int, keeps: bool, above: int
) -> None:
    world = World(settings(preempt_above=above))
    node = world.node("n1", slots=1)
    low = world.submit(priority=priority)
    node.keep(*([low] if keeps else []))
    world.submit()
    world.wait(5.0, node)
    assert world.job(low).move is None


def test_where_files_are_shared_no_job_is_moved_off_all_its_nodes(world: World) -> None:
    world = World(replace(world.config, files=FilesConfig(backend="shared", path="/srv")))
    for name in ("n1", "n2"):
        world.node(name)
    number = world.submit()
    assert "can't leave all its nodes" in refused(world.answer(ms.Migrate(((number, 1),))))["what"]
    world.answer(ms.Drain("n1", ""), "root")
    assert world.job(number).move is None


def test_ranks_that_are_moved_get_what_all_nodes_of_the_halted_attempt_have_of_them_or_none(world: World) -> None:
    nodes = {name: able(world.node(name, slots=2)) for name in ("n1", "n2", "n3")}
    number = world.submit(ranks=4, movable=True, migratable=True)
    assert [part.node for part in world.job(number).attempts[0].parts] == ["n1", "n2"]
    world.answer(ms.Migrate(((number, 1),), "n1,n3"))
    for name, bundle in (("n1", "a" * 64), ("n2", "b" * 64)):
        nodes[name].tell(ms.VaultCopied(name, f"{name}-1", number, 1, bundle, 5))
        nodes[name].end(number, EXIT_HALTED)
    second = world.job(number).attempts[1]
    told, anew = vaults.copies(world.job(number), second, {})
    ranks = {part.node: range(part.first_rank, part.first_rank + part.ranks) for part in second.parts}
    assert (set(ranks), anew) == ({"n1", "n3"}, False)
    assert dict(told) == {name: "a" * 64 if 0 in ranks[name] else "b" * 64 for name in ranks}
    nodes["n1"].tell(ms.VaultCopied("n1", "n1-1", number, 2, "c" * 64, 5))
    nodes["n3"].tell(ms.VaultCopied("n3", "n3-1", number, 2, "d" * 64, 5))
    second.moved = False  # a node was lost while they were halting
    third = replace(second, number=3)
    assert vaults.copies(world.job(number), third, {}) == ((), False)
