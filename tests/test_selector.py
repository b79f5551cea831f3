"""Which jobs a verb means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo import selector
from beo.errors import UsageError


def test_ids_ranges_and_lists_are_united() -> None:
    assert selector.parse(["1,4-6", "9"]).pick([1, 2, 4, 6, 7, 9]) == ([1, 4, 6, 9], [])
    assert selector.parse(["1, 3"]).pick([1, 2, 3]) == ([1, 3], [])


def test_a_single_id_that_is_not_there_is_told_and_a_gap_in_a_range_is_not() -> None:
    assert selector.parse(["2", "3-5"]).pick([1, 4]) == ([4], [2])


def test_last_is_the_highest_id_and_all_is_all() -> None:
    assert selector.parse(["last"]).pick([3, 5, 8]) == ([8], [])
    assert selector.parse(["last"]).pick([]) == ([], [])
    assert selector.parse(["all"]).pick([3, 5]) == ([3, 5], [])


@pytest.mark.parametrize("word", ["", ",", "x", "0", "3-1", "-1", "1-", "1-2-3", "٣", "9" * 17, "all,1", "last,last"])
def test_what_names_no_job_is_refused_with_a_cure(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        selector.parse([word])
    assert caught.value.cure


def test_ranges_are_limited() -> None:
    with pytest.raises(UsageError, match="over 1000"):
        selector.parse(["1"] * (selector.PARTS_MAX + 1))


@given(
    st.sets(st.integers(1, 40)).map(sorted),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 10)), min_size=1, max_size=6),
)
def test_picking_is_what_looking_at_each_job_gives(ids: list[int], spans: list[tuple[int, int]]) -> None:
    ranges = [(low, low + length) for low, length in spans]
    found, missing = selector.parse([f"{low}-{high}" for low, high in ranges]).pick(ids)
    assert found == [n for n in ids if any(low <= n <= high for low, high in ranges)]
    assert set(missing) == {low for low, high in ranges if low == high and low not in ids}
