"""Which jobs start now, and where."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo import events as ev
from beo.headnode import schedule
from beo.headnode.model import Attempt, Job
from beo.headnode.schedule import PATIENCE_S, Placement, back_off_s, narrow, place, plan
from beo.headnode.state import State
from tests.world import START_S, spec

from tests.test_state import joined, started, submitted  # isort: skip


def job(**words: Any) -> Job:
    return Job(1, "key", "ann", 0, 0, (), spec(**words), START_S)


def free(*slots: int, mem_bytes: int = 1 << 40) -> dict[str, tuple[int, int]]:
    return {f"n{number}": (count, mem_bytes) for number, count in enumerate(slots, 1)}


def cluster(*slots: int) -> State:
    state = State()
    for number, count in enumerate(slots, 1):
        state.apply(joined(f"n{number}", f"i{number}", slots=count))
    return state


def queued(state: State, *wishes: dict[str, Any]) -> State:
    for wish in wishes:
        number = state.next_job
        age_s = wish.pop("age_s", 0.0)
        state.apply(submitted(number, made=spec(**wish), time_s=START_S - age_s))
    return state


def planned(state: State, *ready: str) -> list[int]:
    return [placement.job for placement in plan(state, ready or tuple(state.nodes), START_S)]


# ---- one job


def test_a_job_goes_to_one_node_where_one_has_room() -> None:
    assert place(job(ranks=3), free(2, 4, 8)) == (("n2", 0, 3),)


def test_a_job_takes_as_few_nodes_as_fit() -> None:
    assert place(job(ranks=9), free(2, 4, 8)) == (("n2", 0, 1), ("n3", 1, 8))


def test_slots_per_rank_are_never_split() -> None:
    assert place(job(ranks=2, cpus=3), free(5, 5)) == (("n1", 0, 1), ("n2", 1, 1))
    assert place(job(ranks=3, cpus=3), free(5, 5)) is None


def test_memory_counts_as_slots_do() -> None:
    assert place(job(ranks=3, mem_bytes=1 << 30), free(8, 8, mem_bytes=2 << 30)) == (("n1", 0, 2), ("n2", 2, 1))


def test_nodes_asked_for_are_all_used_and_evenly() -> None:
    assert place(job(ranks=8, nodes=4), free(8, 8, 8, 8, 8)) == tuple((f"n{n}", 2 * n - 2, 2) for n in (1, 2, 3, 4))
    assert place(job(ranks=3, nodes=3), free(8, 8)) is None


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=7),
    st.integers(1, 20),
    st.integers(0, 7),
    st.integers(1, 3),
)
def test_a_placement_has_every_rank_on_nodes_with_room_for_it(
    slots: list[int], ranks: int, nodes: int, cpus: int
) -> None:
    wish, room = job(ranks=ranks, nodes=min(nodes, ranks), cpus=cpus), free(*slots)
    parts = place(wish, room)
    fits = sorted((count // cpus for count in slots), reverse=True)
    if parts is None:
        usable = [fit for fit in fits if fit][: wish.spec.nodes or None]
        assert sum(usable) < ranks or len(usable) < wish.spec.nodes
        return
    assert sum(count for _, _, count in parts) == ranks
    assert [first for _, first, _ in parts] == [sum(p[2] for p in parts[:n]) for n in range(len(parts))]
    assert all(1 <= count <= room[name][0] // cpus for name, _, count in parts)
    assert len({name for name, _, _ in parts}) == len(parts) == (wish.spec.nodes or len(parts))
    if not nodes:
        assert sum(fits[: len(parts) - 1]) < ranks, "fewer nodes would have done"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.data())
def test_ranks_are_spread_as_evenly_as_the_room_allows(slots: list[int], data: st.DataObject) -> None:
    ranks = data.draw(st.integers(len(slots), max(len(slots), sum(slots))))
    parts = place(job(ranks=ranks, nodes=len(slots)), free(*slots))
    if parts is None:
        assert sum(slots) < ranks
        return
    full = {name for name, _, count in parts if count == free(*slots)[name][0]}
    most = max(count for _, _, count in parts)
    assert all(count >= most - 1 for name, _, count in parts if name not in full)


# ---- the queue


def test_jobs_start_by_priority_then_by_age() -> None:
    state = queued(cluster(2), {"priority": 0}, {"priority": 9}, {"priority": 0})
    assert planned(state) == [2, 1]


def test_a_small_job_passes_a_wide_one_that_does_not_fit() -> None:
    assert planned(queued(cluster(2), {"ranks": 2, "cpus": 2}, {})) == [2]


def test_a_wide_job_that_waited_long_is_passed_by_nobody() -> None:
    state = queued(cluster(2, 2), {})
    state.apply(started(1, 1, ("n1", "i1", 0, 1)))
    queued(state, {"ranks": 4, "age_s": PATIENCE_S + 1}, {})
    assert planned(state) == []


def test_a_job_that_the_cluster_can_never_hold_blocks_nobody_however_long_it_waits() -> None:
    assert planned(queued(cluster(2), {"ranks": 99, "age_s": 10 * PATIENCE_S}, {})) == [2]


def test_thousands_of_hopeless_jobs_hide_nothing_behind_them() -> None:
    wide = [{"ranks": 3} for _ in range(schedule.LOOKS_MAX + 10)]
    assert planned(queued(cluster(2), *wide, {})) == [len(wide) + 1]


def test_a_node_that_is_not_ready_or_lost_gets_nothing() -> None:
    state = queued(cluster(1, 1, 1), {}, {}, {})
    state.apply(ev.NodeLost("n2", "i2", "silent", START_S))
    assert plan(state, ("n1", "n2"), START_S) == [Placement(1, (("n1", 0, 1, 0),))]


def test_slots_in_use_and_slots_given_away_in_the_same_plan_are_not_free() -> None:
    state = queued(cluster(3), {"ranks": 2})
    state.apply(started(1, 1, ("n1", "i1", 0, 2)))
    assert planned(queued(state, {}, {})) == [2]


@pytest.mark.parametrize(
    ("slots", "wish", "parts"),
    [
        ([4], {"ranks": 1, "slots": 3}, (("n1", 0, 1, 2),)),
        ([2, 2], {"ranks": 1, "slots": 3}, (("n1", 0, 1, 1), ("n2", 1, 0, 1))),
        ([2, 2], {"ranks": 2, "nodes": 2, "slots": 4}, (("n1", 0, 1, 1), ("n2", 1, 1, 1))),
        ([4, 4], {"ranks": 2, "cpus": 2, "slots": 7}, (("n1", 0, 2, 0), ("n2", 2, 0, 2))),
        ([2, 2], {"ranks": 1, "slots": 4, "batch": True}, (("n1", 0, 2, 0), ("n2", 2, 2, 0))),
    ],
)
def test_slots_beyond_the_ranks_are_part_of_the_allocation(
    slots: list[int], wish: dict[str, Any], parts: tuple[tuple[str, int, int, int], ...]
) -> None:
    state = queued(cluster(*slots), wish)
    assert plan(state, tuple(state.nodes), START_S) == [Placement(1, parts)]


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 2), st.integers(0, 1)), max_size=12),
)
def test_no_plan_gives_a_slot_away_twice(slots: list[int], wishes: list[tuple[int, int, int]]) -> None:
    state = queued(cluster(*slots), *({"ranks": r, "cpus": c, "priority": p} for r, c, p in wishes))
    for placement in plan(state, tuple(state.nodes), START_S):
        parts = [(name, state.nodes[name].incarnation, first, ranks) for name, first, ranks, _ in placement.parts]
        state.apply(started(placement.job, 1, *parts))
    assert all(0 <= node.used_slots <= node.slots for node in state.nodes.values())
    assert planned(state) == [], "a plan leaves nothing that could start"


@pytest.mark.parametrize("slots", [[], [4]])
def test_an_empty_cluster_or_queue_needs_no_plan(slots: list[int]) -> None:
    assert planned(cluster(*slots)) == []


# ---- jobs that are lost again and again


def test_a_job_that_is_lost_at_once_again_and_again_is_slowed_down_and_another_is_not() -> None:
    def lost_after(*lasted_s: float) -> Job:
        found = job()
        found.attempts = [
            Attempt(number, number, "nonce", START_S - lasting, [], ended_s=START_S, cause=("lost", 75, "gone"))
            for number, lasting in enumerate(lasted_s, 1)
        ]
        return found

    assert back_off_s(job(), START_S) == 0
    assert back_off_s(lost_after(0.1), START_S) == 0, "the first loss is repeated at once"
    assert back_off_s(lost_after(0.1, 0.1), START_S) == 1
    assert back_off_s(lost_after(0.1, 0.1, 0.1), START_S + 1.5) == 0.5
    assert back_off_s(lost_after(0.1, 0.1, 0.1), START_S + 2) == 0
    assert back_off_s(lost_after(*[0.1] * 8), START_S) == schedule.BACK_OFF_MAX_S
    assert back_off_s(lost_after(0.1, 0.1, 3600.0), START_S) == 0, "an attempt that lasted was no fault of the job's"
    assert back_off_s(lost_after(0.1, 0.1, 0.1), START_S - 60) == 0, "a clock that was set back delays nothing"


def test_a_job_that_is_slowed_down_does_not_hold_up_another_of_its_shape() -> None:
    state = queued(cluster(1), {}, {})
    for number in (1, 2):
        state.apply(started(1, attempt=number))
        state.apply(ev.PartGone(1, number, "n1", "its warden was killed", START_S))
    assert planned(state) == [2]


# ---- nodes that lack something


def lacking(*lacks: str, uid: str = "0") -> State:
    """Nodes n1, n2, ... of one slot, each with what it says that it lacks."""
    state = State()
    for number, words in enumerate(lacks, 1):
        facts = {"contain": "pidns", "uid": uid, "lacks": words}
        state.apply(msgspec.structs.replace(joined(f"n{number}", f"i{number}", slots=1), facts=facts))
    return state


def where(state: State) -> dict[int, str]:
    return {found.job: found.parts[0][0] for found in plan(state, tuple(state.nodes), START_S)}


def test_a_job_in_the_tree_goes_to_a_node_that_mounts_it() -> None:
    state = queued(lacking("tree", ""), {"in_tree": True}, {"in_tree": True}, {})
    assert where(state) == {1: "n2", 3: "n1"}


def test_a_node_without_other_users_takes_roots_jobs_alone() -> None:
    state = queued(lacking("users"), {})
    assert not where(state), "the job is of uid 1000"
    assert not narrow(lacking("leash").nodes.values()).owned, "what no job needs is in nobody's way"
