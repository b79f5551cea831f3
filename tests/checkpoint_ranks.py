"""Real ranks for the tests of the store: `mpiexec -n K python -m tests.checkpoint_ranks WHAT FOLDER ...`.

save FOLDER LEVEL STEP...     save these steps; "ready" is printed before, so that somebody can kill in the middle
load FOLDER LEVEL             read all and print what was found: the step, "none", or the refusal
full FOLDER LEVEL RANK ROOM   save while one rank's folder has no room; print what each rank was told
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mpi4py import MPI

from beo.checkpoints.store import Store
from beo.errors import BeoError
from tests.checkpoint_world import image, meta_of, parts_of, read_all


def size_of(rank: int, step: int) -> int:
    """Return how many bytes a rank has at a step: others each time, so that files grow and shrink."""
    return (rank * 700_001 + step % 7 * 300_007) % 3_000_000


def save(store: Store, rank: int, step: int) -> None:
    """Take one checkpoint."""
    own = image(rank, step, size_of(rank, step))
    store.save(step, parts_of(own), meta_of(rank, step, len(own)))


def main() -> int:
    """Do what is asked."""
    comm = MPI.COMM_WORLD
    what, top, level, *rest = sys.argv[1:]
    node = f"n{comm.rank}"
    try:
        store = Store(comm, Path(top) / node, level, node)
        if what == "load":
            found = read_all(store)
            told = "none" if found is None else str(found)
        else:
            store.newest()
            comm.barrier()
            if comm.rank == 0:
                print("ready", os.getpid(), flush=True)
            for step in map(int, rest):
                save(store, comm.rank, step)
                if comm.rank == 0:
                    with (Path(top) / "saved").open("ab", buffering=0) as file:
                        file.write(b"%d\n" % step)
            told = "done"
    except BeoError as error:
        told = f"{type(error).__name__}: {error}"
    everyone = comm.gather(told)
    if comm.rank == 0:
        print("told", sorted(set(everyone or ())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
