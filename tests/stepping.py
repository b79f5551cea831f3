"""A program of several ranks that writes down each step and each checkpoint: python stepping.py STEPS STEP_S EVERY LOG.

LEVEL in the environment is how it is protected. A line is written when the thing is done: `step N`, `kept N` (a
checkpoint holds N steps), and `begins N` when a run of it begins.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import beo

steps, step_s, every, log = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
world = MPI.COMM_WORLD
part = np.arange(50_000) + world.rank


def tell(what: str, number: int) -> None:
    """Write a line, by the first rank."""
    if world.rank == 0:
        with log.open("a") as file:
            file.write(f"{what} {number}\n")


with beo.checkpoint(world, part=part, done=0, every=every, level=os.environ["LEVEL"]) as ck:
    tell("begins", ck.done)
    saves = 0
    while ck.done < steps:
        ck.safe_point()
        if ck.counters.saves > saves:
            saves = ck.counters.saves
            tell("kept", ck.done)
        part += world.allreduce(int(part[0])) % 7
        time.sleep(step_s)
        ck.done += 1
        tell("step", ck.done)
    total = world.reduce(int(part.sum()))
if world.rank == 0:
    print(f"total {total}", flush=True)
