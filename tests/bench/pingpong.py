"""How long a message takes between two ranks, there and back: medians, one JSON object on stdout.

beo run -n 2 python tests/bench/pingpong.py
"""

import json
import os
import statistics
import time

import numpy as np
from mpi4py import MPI

ROUNDS = {8: 5_000, 1 << 20: 200}  # by size in bytes
WARM_UP = 20  # of the first messages, which open connections

world = MPI.COMM_WORLD
medians_us = {}
for size_bytes, rounds in ROUNDS.items():
    data = np.zeros(size_bytes, dtype=np.uint8)
    took_s = []
    world.Barrier()
    for _ in range(WARM_UP + rounds):
        began_s = time.perf_counter()
        if world.rank == 0:
            world.Send(data, dest=1)
            world.Recv(data, source=1)
        else:
            world.Recv(data, source=0)
            world.Send(data, dest=0)
        took_s.append(time.perf_counter() - began_s)
    medians_us[size_bytes] = 1e6 * statistics.median(took_s[WARM_UP:])
if world.rank == 0:
    network = {name: value for name, value in os.environ.items() if name.startswith(("MPIR_", "UCX_", "FI_"))}
    print(json.dumps({"round_us": medians_us, "network": network}), flush=True)
