"""Compute pi as the integral of 4 / (1 + x²) from 0 to 1 by the midpoint rule, its intervals shared out over the ranks.

beo run -n 4 python jobs/pi.py 100000000
echo 100000000 | beo run -n 4 python jobs/pi.py
"""

import math
import sys

import numpy as np
from mpi4py import MPI

INTERVALS_MAX = 10**12  # about an hour on one core; beyond it rounding eats what more intervals gain
CHUNK = 1 << 18  # intervals computed at once: the arrays stay within a core's cache

world = MPI.COMM_WORLD


def ask() -> int:
    """The number of intervals from the first argument, else from standard input; 0 where neither makes sense."""
    words = sys.argv[1:2] or sys.stdin.readline().split()[:1]
    try:
        intervals = int(words[0])
    except (IndexError, ValueError):
        return 0
    return intervals if 1 <= intervals <= INTERVALS_MAX else 0


def integrate(first: int, last: int, width: float) -> float:
    """The area over the intervals first, ..., last - 1, each of this width."""
    area = 0.0
    for begin in range(first, last, CHUNK):
        x = (np.arange(begin, min(begin + CHUNK, last)) + 0.5) * width
        area += width * float(np.sum(4.0 / (1.0 + x * x)))
    return area


# Only rank 0 has the standard input, and all must come to the same end: so rank 0 asks and the others are told.
intervals = world.bcast(ask() if world.rank == 0 else None)
if not intervals:
    if world.rank == 0:
        print(f"pi: give the number of intervals, 1 to {INTERVALS_MAX}, as argument or on stdin", file=sys.stderr)
    sys.exit(2)

start_s = MPI.Wtime()
first, last = (intervals * rank // world.size for rank in (world.rank, world.rank + 1))
pi = world.reduce(integrate(first, last, 1.0 / intervals))
if pi is not None:
    print(f"pi {pi:.16f} error {abs(pi - math.pi):.2e} seconds {MPI.Wtime() - start_s:.3f}", flush=True)
