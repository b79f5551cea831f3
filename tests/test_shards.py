"""Whatever the numbers of ranks before and now: every rank gets its rows of the same array, halos and all."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beo.checkpoints.shards import Span, spans

Partition = tuple[list[int], list[int], int]


@st.composite
def partitions(draw: st.DrawFn) -> Partition:
    """Two ways to share out the same rows: lengths with halos, before and now, and the halo."""
    halo = draw(st.integers(0, 3))
    rows = draw(st.integers(0, 40))

    def lengths() -> list[int]:
        cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=7)))
        bounds = [0, *cuts, rows]
        return [high - low + 2 * halo for low, high in pairwise(bounds)]

    return lengths(), lengths(), halo


def parts(whole: np.ndarray, lengths: list[int], halo: int) -> list[np.ndarray]:
    """Each rank's window on all rows, the edges among them."""
    starts = accumulate((length - 2 * halo for length in lengths), initial=0)
    return [whole[start : start + length] for start, length in zip(starts, lengths, strict=False)]


@given(partitions())
def test_any_numbers_of_ranks_before_and_now_give_the_same_array(example: Partition) -> None:
    old, new, halo = example
    whole = np.arange(sum(old) - 2 * halo * (len(old) - 1))
    before = parts(whole, old, halo)
    for rank, expected in enumerate(parts(whole, new, halo)):
        got = np.full(len(expected), -1)
        for span in spans(old, new, rank, halo):
            got[span.to : span.to + span.count] = before[span.rank][span.start : span.start + span.count]
        assert np.array_equal(got, expected)


@given(partitions())
def test_a_rank_takes_its_own_rows_from_those_who_had_them_and_no_halo_of_theirs(example: Partition) -> None:
    old, new, halo = example
    holders = [rank for rank, length in enumerate(old) if length > 2 * halo]
    for rank in range(len(new)):
        for span in spans(old, new, rank, halo):
            if (span.count, span.start) == (old[span.rank], 0):
                continue  # as it was, with its halos
            assert span.start >= halo or span.rank == (holders or [0])[0]
            assert span.start + span.count <= old[span.rank] - halo or span.rank == (holders or [0])[-1]


def test_a_part_that_is_as_it_was_comes_whole_from_whoever_had_it() -> None:
    assert spans([6, 5], [6, 5], 1, halo=1) == [Span(1, 0, 0, 5)]


@pytest.mark.parametrize(
    ("old", "new", "halo", "why"),
    [
        ([3, 3], [7], 0, "there were 6 rows in all, and now there are 7"),
        ([4, 4], [4], 1, "there were 4 rows in all, and now there are 2"),
        ([4, 1], [3], 1, "rank 1 has 1 rows"),
    ],
)
def test_rows_that_are_another_number_are_refused(old: list[int], new: list[int], halo: int, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        spans(old, new, 0, halo)
