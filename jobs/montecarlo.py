"""A farm of small tasks: the volume of a ball in many dimensions, by throwing points at the cube around it.

beo run -n 4 python jobs/montecarlo.py --tasks 2000 --points 50000

Tasks are handed out in rounds, and each has a seed from one generator, whose state is in the checkpoint. So every task
throws the same points, whoever does it, and however often the job is halted, killed, or goes on with other ranks.
"""

import argparse
import math

import numpy as np
from mpi4py import MPI

import beo

ROUND = 32  # tasks; not the number of ranks, on which nothing may depend
DIMENSIONS_MAX = 20
TASKS_MAX, POINTS_MAX = 10**8, 10**7

world = MPI.COMM_WORLD
parser = argparse.ArgumentParser(description="the volume of a ball, by chance")
parser.add_argument("--tasks", type=int, default=200, help="how many (default %(default)s)")
parser.add_argument("--points", type=int, default=10_000, help="in each (default %(default)s)")
parser.add_argument("--dimensions", type=int, default=5, help="of the ball (default %(default)s)")
parser.add_argument("--seed", type=int, default=1, help="of all chance (default %(default)s)")
parser.add_argument("--report-every", type=int, default=0, metavar="ROUNDS", help="print a line so often")
args = parser.parse_args()
for name, most in (("tasks", TASKS_MAX), ("points", POINTS_MAX), ("dimensions", DIMENSIONS_MAX)):
    if not 1 <= getattr(args, name) <= most:
        parser.error(f"--{name} must be 1 to {most}")
if args.seed < 0:
    parser.error("--seed must be 0 or more")


def hits(seed: int) -> int:
    """How many of a task's points are in the ball."""
    points = np.random.default_rng(seed).uniform(-1, 1, (args.points, args.dimensions))
    return int(np.count_nonzero((points**2).sum(1) <= 1))


chance = np.random.default_rng(args.seed)
with beo.checkpoint(world, chance=chance, inside=0, squares=0) as ck:
    for number in ck.range(-(-args.tasks // ROUND)):
        seeds = ck.chance.integers(2**63, size=min(ROUND, args.tasks - number * ROUND))
        found = np.zeros(len(seeds), np.int64)
        for task in range(world.rank, len(seeds), world.size):
            found[task] = hits(int(seeds[task]))
        world.Allreduce(MPI.IN_PLACE, found)  # of each task, only one rank has more than zero
        ck.inside += int(found.sum())
        ck.squares += int((found**2).sum())
        if world.rank == 0 and args.report_every and (number + 1) % args.report_every == 0:
            print(f"round {number + 1} inside {ck.inside}", flush=True)

if world.rank == 0:
    n, cube = args.tasks, 2.0**args.dimensions / args.points  # of which each point inside is worth so much
    mean, spread = ck.inside / n, math.sqrt(max(0.0, ck.squares / n - (ck.inside / n) ** 2) / max(1, n - 1))
    ball = math.pi ** (args.dimensions / 2) / math.gamma(args.dimensions / 2 + 1)
    print(f"inside {ck.inside} volume {mean * cube:.9f} ± {spread * cube:.1e} exact {ball:.9f}", flush=True)
