"""Many machines are switched on together, in virtual time: all of them run, and soon."""

from __future__ import annotations

import pytest

from tests.sim.storm import World
from tests.sim.storm_plot import course

NODES = 200


def test_two_hundred_machines_run_in_a_third_of_the_time_that_the_head_alone_takes() -> None:
    alone, together = (course(NODES, 1, kind) for kind in ("the head alone", "from machine to machine"))
    assert len(together.course) == len(alone.course) == NODES
    assert together.done_s() < alone.done_s() / 3
    assert together.head_bytes < alone.head_bytes / 3


@pytest.mark.parametrize("seed", range(5))
def test_all_run_though_some_of_those_that_give_it_die_or_give_something_else(seed: int) -> None:
    world = World(NODES, seed, dying=20, lying=10)
    world.run()
    assert len(world.course) == NODES and world.wrong and world.cut
    assert world.done_s() < course(NODES, seed, "the head alone").done_s() / 2


def test_a_small_room_is_no_slower_than_by_the_head_alone() -> None:
    for nodes in (1, 3, 12):
        together, alone = (course(nodes, 1, kind) for kind in ("from machine to machine", "the head alone"))
        assert together.done_s() < alone.done_s() + 8.0
