"""Stars under each other's gravity, shared out over the ranks: every star feels every other in each step.

beo run -n 4 python jobs/nbody.py --n 200 --steps 1000 --report-every 100

The leapfrog scheme is symmetric in time, so the energy wanders a little and doesn't drift. Each star's pull is summed
up over all stars in the same order, whoever does it: the checksum is the same on any number of ranks, and when the job
is halted or killed and goes on from its checkpoint, on as many ranks as before or on others.
"""

import argparse
import zlib

import numpy as np
from mpi4py import MPI

import beo

N_MAX = 20_000
DT, SOFT = 1e-3, 0.05  # a step, and how near two stars come at most: the pull of one that is hit stays finite

world = MPI.COMM_WORLD
parser = argparse.ArgumentParser(description="stars under each other's gravity")
parser.add_argument("--n", type=int, default=100, help="stars (default %(default)s)")
parser.add_argument("--steps", type=int, default=200, help="time steps (default %(default)s)")
parser.add_argument("--report-every", type=int, default=0, metavar="STEPS", help="print a line so often")
args = parser.parse_args()
if not max(2, world.size) <= args.n <= N_MAX:
    parser.error(f"--n must be {max(2, world.size)} (a star for each rank) to {N_MAX}")

counts = [args.n * (rank + 1) // world.size - args.n * rank // world.size for rank in range(world.size)]
first = sum(counts[: world.rank])
chance = np.random.default_rng(1)  # the same on all ranks: each takes its own stars of it
mine = slice(first, first + counts[world.rank])
place = chance.normal(size=(args.n, 3))[mine].copy()
speed = chance.normal(scale=0.3, size=(args.n, 3))[mine].copy()


def everybody(own: np.ndarray) -> np.ndarray:
    """All stars' rows, out of every rank's own."""
    rows = np.empty((args.n, 3))
    world.Allgatherv(own, (rows, [3 * count for count in counts]))
    return rows


def pull(own: np.ndarray) -> np.ndarray:
    """What all stars, of mass 1 / n each, do to the speed of this rank's own, in a unit of time."""
    stars = everybody(own)
    away = (stars - star for star in own)
    return np.array([(d / ((d**2).sum(1, keepdims=True) + SOFT**2) ** 1.5).sum(0) / args.n for d in away])


def energy() -> float:
    """Of motion and of position, of all stars."""
    stars, motion = everybody(place), (everybody(speed) ** 2).sum() / 2
    near = sum((1 / np.sqrt(((stars[i + 1 :] - stars[i]) ** 2).sum(1) + SOFT**2)).sum() for i in range(args.n))
    return float((motion - near / args.n) / args.n)


start_s, before = MPI.Wtime(), energy()
with beo.checkpoint(world, place=place, speed=speed, before=before, step=0).shard("place").shard("speed") as ck:
    for ck.step in ck.range(args.steps):
        speed += pull(place) * (DT / 2)
        place += speed * DT
        speed += pull(place) * (DT / 2)
        if args.report_every and (ck.step + 1) % args.report_every == 0 and (now := energy()) and world.rank == 0:
            print(f"step {ck.step + 1} energy {now:.6f} after {MPI.Wtime() - start_s:.2f} s", flush=True)

after, stars = energy(), everybody(place)
if world.rank == 0:
    drift, checksum = abs(after / ck.before - 1), zlib.crc32(stars.tobytes())
    print(f"steps {args.steps} checksum {checksum:08x} energy {after:.9f} drift {drift:.1e}", flush=True)
