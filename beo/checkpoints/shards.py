"""Which rows of a distributed axis lie with which rank, and where to take them from when there are other ranks. Pure.

Each rank's part of the axis is contiguous, in the order of the ranks. With a halo of h, each part has h rows more at
either end: copies of its neighbours' rows, or, at the ends of the axis, the edge. So the rows that there are in all are
the edge, every rank's own rows, the edge; a part is a window on them, and windows overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Span:
    """Rows to copy: `count` of them, from row `start` of the old `rank`'s part to row `to` of the new one's."""

    rank: int
    start: int
    to: int
    count: int


def own_rows(lengths: Sequence[int], halo: int) -> list[int]:
    """Return how many rows of each part are its own. ValueError where a part is shorter than its two halos."""
    for rank, length in enumerate(lengths):
        if length < 2 * halo:
            raise ValueError(f"rank {rank} has {length} rows, and two halos of {halo} are more")
    return [length - 2 * halo for length in lengths]


def spans(old: Sequence[int], new: Sequence[int], rank: int, halo: int = 0) -> list[Span]:
    """Return from where the new rank `rank` has its rows. old, new: the lengths of all parts along the axis, in rows.

    A part that is as it was is taken from whoever had it, with its halos as they were. Raises ValueError where the
    rows aren't the same number in all.
    """
    before, after = own_rows(old, halo), own_rows(new, halo)
    if sum(before) != sum(after):
        raise ValueError(f"there were {sum(before)} rows in all, and now there are {sum(after)}")
    starts = list(accumulate(before, initial=0))
    low = sum(after[:rank])
    length = new[rank]
    for other, start in enumerate(starts[:-1]):
        if (start, before[other]) == (low, after[rank]) and before[other]:
            return [Span(other, 0, 0, length)]
    # Rows are numbered from the first edge on: part `other` begins with row starts[other], its own are `halo` later.
    found = []
    holders = [n for n, own in enumerate(before) if own] or [0]  # a rank without rows knows nothing of the edges
    for other in holders:
        first = starts[other] + (halo if other != holders[0] else 0)
        last = starts[other] + before[other] + halo + (halo if other == holders[-1] else 0)
        begin, end = max(first, low), min(last, low + length)
        if begin < end:
            found.append(Span(other, begin - starts[other], begin - low, end - begin))
    return found
