"""No order of words, crashes and reboots lets two heads contradict each other: all of them are tried, in small bounds.

What is looked at in every state is in walk.py: no value of the register has two meanings, no index two committed
entries, who begins to act has every committed entry, and never do two heads act without needing a lease.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim import mutants
from tests.walk import Bounds, Broken, Walk

ELECTIONS = Bounds(voters=3, epoch=4, n=2, idle=True)  # A was restarted: both may stand, again and again
PAIR = Bounds(voters=3)  # two epochs and three values, by way of alone and in step again
BOUNDS = [
    (PAIR, 31_000),
    (ELECTIONS, 47_000),
    (Bounds(voters=1, jobs=1, crashes=1), 9_600),
    (Bounds(voters=1, epoch=3, n=4, jobs=1), 38_000),
    (Bounds(voters=1, n=4, reboots=1, crashes=1), 39_000),
    (Bounds(voters=0, epoch=3, n=4, jobs=1, crashes=1), 12_000),
]
LARGER = [
    (Bounds(voters=3, crashes=1), 95_000),
    (Bounds(voters=3, jobs=1), 160_000),
    (Bounds(voters=3, epoch=3), 440_000),
]
# A guard that is off, and bounds within which that is found.
MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], Bounds]] = [
    (mutants.keep_the_role_after_a_higher_promise, ELECTIONS),
    (mutants.win_with_half_of_the_voters, ELECTIONS),
    (mutants.drop_a_value_without_a_majority, PAIR),
    (mutants.let_a_stale_head_stand, Bounds(voters=1, jobs=1)),
    (mutants.commit_alone_while_that_is_only_proposed, Bounds(voters=1, jobs=1)),
    (mutants.acknowledge_before_the_standby_has_it, Bounds(voters=1, jobs=1)),
    (mutants.swap_voters_without_a_joint_set, Bounds(voters=1, n=4, reboots=1)),
]


def explore(bounds: Bounds, least: int) -> None:
    """Go everywhere; at least so many states are there, and what matters has happened in some of them."""
    walk = Walk(bounds)
    assert walk.go() >= least
    wanted = {"take-over", "alone"} | ({"in step"} if not bounds.idle else set())
    wanted |= {"joint voters"} if bounds.reboots else set()
    assert walk.reached >= wanted


@pytest.mark.parametrize(("bounds", "least"), BOUNDS, ids=str)
def test_in_no_order_do_two_heads_contradict_each_other(bounds: Bounds, least: int) -> None:
    explore(bounds, least)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("bounds", "least"), LARGER, ids=str)
def test_in_larger_bounds_neither(bounds: Bounds, least: int) -> None:
    explore(bounds, least)


@pytest.mark.parametrize(("mistake", "bounds"), MISTAKES, ids=lambda it: getattr(it, "__name__", ""))
def test_a_mistake_is_found_in_some_order(
    mistake: Callable[[pytest.MonkeyPatch], None], bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(Broken):
        Walk(bounds).go()


def test_a_voter_that_forgets_and_keeps_its_name_is_found_out() -> None:
    with pytest.raises(Broken, match="two heads act"):
        Walk(Bounds(voters=1, reboots=1, amnesia=True)).go()
