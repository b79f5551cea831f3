"""Heat spreading in a square plate: the 2-D heat equation, the plate's rows shared out over the ranks.

beo run -n 4 python jobs/heat2d.py --n 1000 --steps 5000 --report-every 1000

One edge is held at 0, the opposite one at 1. On that slope stands a bump that is known to shrink by cos(pi / (n + 1))
in each step, so the job knows its own error; the checksum covers every bit of the plate, whatever the number of ranks.
"""

import argparse
import zlib

import numpy as np
from mpi4py import MPI

import beo

N_MAX = 30_000  # a plate of 7 GB; computing it takes some four times as much, over all ranks

world = MPI.COMM_WORLD
parser = argparse.ArgumentParser(description="heat spreading in a square plate")
parser.add_argument("--n", type=int, default=200, help="rows and columns inside the edges (default %(default)s)")
parser.add_argument("--steps", type=int, default=1000, help="time steps (default %(default)s)")
parser.add_argument("--seconds", type=float, help="go on for so long, instead of a number of steps")
parser.add_argument("--report-every", type=int, default=0, metavar="STEPS", help="print a line so often")
args = parser.parse_args()
if not world.size <= args.n <= N_MAX:
    parser.error(f"--n must be {world.size} (a row for each rank) to {N_MAX}")

# Row i of the whole plate is i = 0 (edge), 1, ..., n, n + 1 (edge). This rank steps rows first + 1, ..., last and
# keeps a copy of the row on either side of them: its neighbour's (the halo) or the edge.
first, last = (args.n * rank // world.size for rank in (world.rank, world.rank + 1))
above = world.rank - 1 if world.rank > 0 else MPI.PROC_NULL
below = world.rank + 1 if world.rank < world.size - 1 else MPI.PROC_NULL
x = np.arange(args.n + 2) / (args.n + 1)
wave = np.sin(np.pi * x)
slope = x[first : last + 2, np.newaxis]
bump = np.outer(wave[first : last + 2], wave)
plate = slope + bump


def more(step: int) -> bool:
    """Whether to step on; where seconds were asked for, rank 0's clock decides for all."""
    return step < args.steps if args.seconds is None else bool(world.bcast(MPI.Wtime() - start_s < args.seconds))


start_s = MPI.Wtime()
with beo.checkpoint(world, plate=plate, step=0).shard("plate", axis=0, halo=1) as ck:
    while more(ck.step):
        ck.safe_point()
        world.Sendrecv(plate[1], dest=above, recvbuf=plate[-1], source=below)
        world.Sendrecv(plate[-2], dest=below, recvbuf=plate[0], source=above)
        # The explicit scheme with dt = dx² / 4, the longest stable step, is the mean of the four neighbours.
        plate[1:-1, 1:-1] = (plate[:-2, 1:-1] + plate[2:, 1:-1] + plate[1:-1, :-2] + plate[1:-1, 2:]) / 4
        ck.step += 1
        if world.rank == 0 and args.report_every and ck.step % args.report_every == 0:
            print(f"step {ck.step} after {MPI.Wtime() - start_s:.2f} s", flush=True)

error = world.reduce(np.abs(plate - slope - bump * np.cos(np.pi / (args.n + 1)) ** ck.step)[1:-1].max(), op=MPI.MAX)
rows = world.gather([zlib.crc32(row) for row in plate[1:-1]])
if rows is not None:
    checksum = zlib.crc32(np.concatenate(rows).tobytes())
    print(f"steps {ck.step} checksum {checksum:08x} error {error:.2e} seconds {MPI.Wtime() - start_s:.3f}", flush=True)
