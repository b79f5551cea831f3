"""Which jobs a verb means: ``last``, ``7``, ``1-3``, ``1,4-6``, ``all``."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from beo.errors import UsageError

JOB_ID_MAX = 2**53 - 1  # what every JSON reader keeps exact
PARTS_MAX = 1_000  # ranges in one selector

_PART = r"([0-9]{1,16})(?:-([0-9]{1,16}))?"


class Selector:
    """A parsed selector: inclusive ranges of ids, or one of the words ``last`` and ``all``."""

    def __init__(self, word: str = "", ranges: tuple[tuple[int, int], ...] = ()) -> None:
        """Take ``last`` or ``all`` as word, or ranges."""
        self.word = word
        self.ranges = ranges

    def pick(self, ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return the ids among `ids` (ascending) that are meant, and single ids that were named but aren't there."""
        known = list(ids)
        if self.word == "all":
            return known, []
        if self.word == "last":
            return known[-1:], []
        found: list[int] = []
        missing = []
        above = 0  # what lies below has been picked: ranges may overlap
        for low, high in sorted(self.ranges):
            at = bisect_left(known, max(low, above))
            found += known[at : bisect_right(known, high, lo=at)]
            above = max(above, high + 1)
            if low == high and not _holds(known, low):
                missing.append(low)
        return found, missing


def _holds(ascending: list[int], number: int) -> bool:
    at = bisect_left(ascending, number)
    return at < len(ascending) and ascending[at] == number


def parse(texts: Iterable[str]) -> Selector:
    """Read selectors as typed on a command line; several are united."""
    words = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not words:
        raise UsageError("no job named", "", "name one: an id, 'last', '1-3' or 'all'")
    if len(words) > PARTS_MAX:
        raise UsageError(f"over {PARTS_MAX} jobs and ranges named", "", "use one range, like 1-5000")
    for word in ("all", "last"):
        if word in words:
            if len(words) > 1:
                raise UsageError(f"{word!r} stands alone", f"got {' '.join(words)[:80]!r}", "name it without others")
            return Selector(word)
    ranges = []
    for word in words:
        match = re.fullmatch(_PART, word)
        low = int(match[1]) if match else 0
        high = int(match[2] or low) if match else 0
        if not match or not 1 <= low <= high <= JOB_ID_MAX:
            raise UsageError(f"{word[:80]!r} names no job", "", "use an id, 'last', a range like 1-3, or 'all'")
        ranges.append((low, high))
    return Selector("", tuple(ranges))
