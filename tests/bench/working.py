"""A program of so many bytes a rank that computes without a pause: python working.py BYTES LOG EVERY, under MPI.

It logs when each step ended and how long it computed; the checkpoint between two steps isn't counted. EVERY: steps
between two checkpoints.
"""

import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import beo

world = MPI.COMM_WORLD
state = np.random.default_rng(world.rank).random(int(sys.argv[1]) // 8)  # what repeats itself would be sent once
work = np.linspace(0, 1, 500_000)
with (
    beo.checkpoint(world, state=state, every=int(sys.argv[3])) as ck,
    Path(f"{sys.argv[2]}-{world.rank}").open("a") as log,
):
    for _ in ck.range(1_000_000):
        began_s = time.perf_counter()
        state[:: 1 << 9] += 1  # something in each page
        np.sin(work)
        took_s = time.perf_counter() - began_s
        log.write(f"{time.time()} {took_s}\n")
        log.flush()
