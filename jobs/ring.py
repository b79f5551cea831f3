"""Send a token round the ring of ranks in several sizes; every rank checks every number in it before passing it on.

beo run -n 4 python jobs/ring.py --laps 100
"""

import argparse
import sys

import numpy as np
from mpi4py import MPI

SIZES_BYTES = (8, 1 << 10, 1 << 20, 1 << 23)  # MPI sends small, middling and large messages in different ways
LAPS_MAX = 10**6  # lap numbers stay exact in the token's float64s

parser = argparse.ArgumentParser(description="send a token round the ring of ranks")
parser.add_argument("--laps", type=int, default=10, help="rounds for each size (default %(default)s)")
args = parser.parse_args()
if not 1 <= args.laps <= LAPS_MAX:
    parser.error(f"--laps must be 1 to {LAPS_MAX}")

world = MPI.COMM_WORLD
left, right = (world.rank - 1) % world.size, (world.rank + 1) % world.size
hop = world.rank or world.size  # how many hops bring the token here from rank 0

for size_bytes in SIZES_BYTES:
    start = np.arange(size_bytes // 8, dtype=np.float64)
    token = np.empty_like(start)
    world.Barrier()
    start_s = MPI.Wtime()
    for lap in range(args.laps):
        arrival = world.Irecv(token, source=left)  # before any send, so that a ring of one rank works too
        if world.rank == 0:
            world.Send(start + lap, dest=right)
        arrival.Wait()
        if not np.array_equal(token, start + lap + hop - 1):
            print(f"ring: rank {world.rank} got a wrong token of {size_bytes} bytes in lap {lap}", file=sys.stderr)
            world.Abort(1)
        if world.rank != 0:
            world.Send(token + 1, dest=right)  # each rank leaves its mark: a skipped one would show
    hop_us = (MPI.Wtime() - start_s) / (args.laps * world.size) * 1e6
    if world.rank == 0:
        done = f"token of {size_bytes} bytes: {args.laps} laps of {world.size} ranks"
        print(f"{done}, {hop_us:.1f} us a hop, checks included", flush=True)
