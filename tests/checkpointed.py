"""A program that takes part in its checkpoints: python checkpointed.py STEPS STEP_S EVERY LOG."""

import os
import sys
import time
from pathlib import Path

import numpy as np

import beo

steps, step_s, every, log = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
total = np.zeros(200_000)
with beo.checkpoint(total=total, every=every) as ck:
    with log.open("a") as file:
        file.write(f"{os.environ['BEO_NODE']} begins at {int(total[0])}\n")
    for _ in ck.range(steps):
        total += 1
        time.sleep(step_s)
print(f"total {int(total.sum())}", flush=True)
