"""A program that takes part in checkpoints by hand, as files and words alone: what `beo.checkpoint` does for others.

python toy_steps.py STEPS STEP_S LOG: counts, and keeps its step in BEO_CHECKPOINT_DIR at each; ends when it is told to
halt. It tells LOG what it does.
"""

import os
import sys
import time
from pathlib import Path

steps, step_s, log = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
state = Path(os.environ["BEO_CHECKPOINT_DIR"], f"step-{os.environ['BEO_RANK']}")
word = Path(os.environ["BEO_CHECKPOINT_WORD"])


def tell(what: str) -> None:
    """Say where it is."""
    with log.open("a") as file:
        file.write(f"{os.environ['BEO_NODE']} {what} at {step}\n")


step = int(state.read_text()) if state.exists() else 0
tell("begins")
while step < steps:
    step += 1
    time.sleep(step_s)
    new = state.with_suffix(".new")
    new.write_text(str(step))
    new.rename(state)
    if word.read_bytes()[:1] != b"\0":
        tell("halts")
        sys.exit(85)
tell("ends")
