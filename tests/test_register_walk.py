"""No order of words, crashes and reboots lets two heads contradict each other: all of them are tried, in small bounds.

What is looked at in every state is in walk.py: the chosen values of the register form one chain, no index has two
committed entries, who begins to act has every committed entry, and never do two heads act without needing a lease.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim import mutants
from tests.walk import ALONE, RESTARTED, Bounds, Broken, Walk

PAIR = Bounds()  # three voters; two epochs and three values, by way of alone and in step again
ELECTIONS = Bounds(epoch=4, n=2, begin=RESTARTED)  # both may stand, again and again
ONE_VOTER = Bounds(voters=1, jobs=1, crashes=1)
BACK = Bounds(voters=1, epoch=3, n=4, jobs=1)  # the role goes there and back
NO_VOTER = Bounds(voters=0, epoch=3, n=4, jobs=1)
REBOOT = Bounds(voters=1, n=4, reboots=1)  # voters are changed
FIVE_VOTERS = Bounds(n=4, begin=ALONE)

# How many states there are, at least, and what has happened in some of them.
ALL = {"A begins", "B begins", "alone", "in step again"}
TOOK_OVER = ALL - {"A begins"}
CHANGED = TOOK_OVER | {"joint voters"}
BOUNDS = {
    "a pair": (PAIR, 17_000, TOOK_OVER),
    "elections": (ELECTIONS, 39_000, ALL - {"in step again"}),
    "one voter": (ONE_VOTER, 9_700, TOOK_OVER),
    "no voter": (NO_VOTER, 2_300, ALL),
    "a voter reboots": (REBOOT, 10_000, CHANGED),
}
LARGER = {
    "there and back": (BACK, 32_000, ALL),
    "five voters": (FIVE_VOTERS, 79_000, CHANGED),
    "one voter that reboots": (ONE_VOTER._replace(reboots=1), 86_000, CHANGED),
    "two voters": (ONE_VOTER._replace(voters=2), 220_000, CHANGED),
    "a crash": (PAIR._replace(crashes=1), 70_000, TOOK_OVER),
    "a job": (PAIR._replace(jobs=1), 89_000, TOOK_OVER),
    "a third epoch": (PAIR._replace(epoch=3), 100_000, ALL),
    "no voter and a crash": (NO_VOTER._replace(crashes=1), 16_000, ALL),
}

# A guard that is off, and bounds within which that is found.
MISTAKES: list[tuple[Callable[[pytest.MonkeyPatch], None], Bounds]] = [
    (mutants.keep_the_role_after_a_higher_promise, ELECTIONS),
    (mutants.win_with_half_of_the_voters, ELECTIONS),
    (mutants.take_a_value_below_the_promise, ELECTIONS),
    (mutants.drop_a_value_without_a_majority, PAIR),
    (mutants.let_a_stale_head_stand, ONE_VOTER),
    (mutants.commit_alone_while_that_is_only_proposed, ONE_VOTER),
    (mutants.acknowledge_before_the_standby_has_it, ONE_VOTER),
    (mutants.believe_what_a_former_standby_had, ONE_VOTER),
    (mutants.cut_off_what_is_not_committed, ONE_VOTER),
    (mutants.be_in_step_with_what_is_not_durable, BACK),
    (mutants.compare_indices_alone, BACK),
    (mutants.swap_voters_without_a_joint_set, REBOOT),
    (mutants.take_fresh_voters_with_the_other_head, FIVE_VOTERS),
]


def explore(bounds: Bounds, least: int, happened: set[str]) -> None:
    walk = Walk(bounds)
    assert walk.go() >= least
    assert walk.reached >= happened


@pytest.mark.parametrize(("bounds", "least", "happened"), BOUNDS.values(), ids=BOUNDS)
def test_in_no_order_do_two_heads_contradict_each_other(bounds: Bounds, least: int, happened: set[str]) -> None:
    explore(bounds, least, happened)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("bounds", "least", "happened"), LARGER.values(), ids=LARGER)
def test_in_larger_bounds_neither(bounds: Bounds, least: int, happened: set[str]) -> None:
    explore(bounds, least, happened)


@pytest.mark.slow
@pytest.mark.parametrize(("mistake", "bounds"), MISTAKES, ids=lambda it: getattr(it, "__name__", ""))
def test_a_mistake_is_found_in_some_order(
    mistake: Callable[[pytest.MonkeyPatch], None], bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistake(monkeypatch)
    with pytest.raises(Broken):
        Walk(bounds).go()


def test_a_voter_that_forgets_and_keeps_its_name_is_found_out() -> None:
    with pytest.raises(Broken, match="chosen"):
        Walk(Bounds(voters=1, reboots=1, amnesia=True)).go()
