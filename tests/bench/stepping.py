"""A program of so many bytes a rank that tells when it computes: python stepping.py BYTES LOG, under MPI."""

import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import beo

world = MPI.COMM_WORLD
state = np.zeros(int(sys.argv[1]) // 8)
with beo.checkpoint(world, state=state, level="raid5", every=50) as ck, Path(sys.argv[2]).open("a") as log:
    for step in ck.range(1_000_000):
        state[step % len(state)] += 1
        time.sleep(0.01)
        if world.rank == 0:
            log.write(f"{time.time()} {step}\n")
            log.flush()
