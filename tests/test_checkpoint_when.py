"""Checkpoints are as frequent as pays, and asking whether to take one costs next to nothing and answers soon."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.checkpoints import when

SECONDS = st.floats(1e-6, 1e5)


def lost_part(every_s: float, cost_s: float, mtbf_s: float) -> float:
    """How much longer all takes, by the exact model of failures at random (Daly 2006, without a time to restart)."""
    return mtbf_s * math.expm1((every_s + cost_s) / mtbf_s) / every_s - 1


@given(st.floats(0.01, 100), st.floats(1e4, 1e6))
def test_no_other_interval_loses_noticeably_less(cost_s: float, mtbf_s: float) -> None:
    best_s = when.interval_s(cost_s, mtbf_s)
    if not when.LEAST_S < best_s < when.MOST_S or best_s <= cost_s / when.COST_PART_MAX:
        return
    best = lost_part(best_s, cost_s, mtbf_s)
    assert all(best <= lost_part(best_s * factor, cost_s, mtbf_s) for factor in (0.5, 0.8, 1.25, 2.0))


@given(SECONDS, SECONDS)
def test_checkpoints_never_take_more_than_a_part_of_the_time_and_come_at_least_each_hour(
    cost_s: float, mtbf_s: float
) -> None:
    every_s = when.interval_s(cost_s, mtbf_s)
    assert cost_s <= when.COST_PART_MAX * every_s * 1.0001
    assert when.LEAST_S <= every_s <= max(when.MOST_S, cost_s / when.COST_PART_MAX)


@given(st.floats(0, 0.05), st.floats(0, 100))
def test_asking_costs_a_thousandth_of_the_time_or_is_answered_within_a_second(cost_s: float, step_s: float) -> None:
    between = 1
    for _ in range(60):
        between = when.steps_between(between, cost_s, step_s)
    assert between * step_s <= max(when.ANSWER_S_MAX, step_s)
    cheap = cost_s <= when.AGREEMENT_PART_MAX * between * step_s * 1.0001
    soonest_s = (between + 1) * step_s
    assert cheap or soonest_s >= when.ANSWER_S_MAX or step_s < 1e-9


@pytest.mark.parametrize(("before", "step_s", "then"), [(8, 1e-6, 16), (1024, 0.5, 2), (1024, 5.0, 1)])
def test_it_grows_slowly_and_falls_at_once(before: int, step_s: float, then: int) -> None:
    assert when.steps_between(before, 1e-3, step_s) == then
