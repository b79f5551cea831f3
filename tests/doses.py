"""How often the long tests do their harm: as often as was promised, or, where there is less time, a part of it."""

import os

PART = float(os.environ.get("BEO_DOSE", "1"))  # of each whole dose


def dose(whole: int) -> int:
    """Return how many kills or faults to do."""
    return max(1, round(whole * PART))
