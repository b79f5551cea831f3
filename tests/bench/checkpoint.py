"""What a checkpoint costs: four ranks, as on four nodes, with 256 MB each; beside copying and writing by all four.

Everything is taken in turn in one run of mpiexec, since what memory yields varies by the moment:
`mpiexec -n 4 python -m tests.bench.checkpoint FOLDER` prints the samples as JSON. FOLDER is a tmpfs as the agent makes
it for a vault (as root; else it is in /dev/shm).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from beo.checkpoints.combine import SEGMENT_BYTES, combine
from beo.checkpoints.image import Image, Writing
from beo.checkpoints.manifest import sums
from beo.checkpoints.parity import Bytes, Scratch
from beo.checkpoints.plan import parity_sizes, stripes
from beo.checkpoints.store import Store, encoding
from tests.bench import stage, table

if TYPE_CHECKING:
    from mpi4py.MPI import Intracomm

RANKS = 4
SIZE = 256_000_000  # bytes of each rank
TOTAL_GB = RANKS * SIZE / 1e9
ROUNDS = 7
PIECE = 1 << 20  # bytes of one write
LEVELS = ("raid0", "raid1", "raid4", "raid5", "rs")
LIMIT_S = 600.0

ENCODE_AIM = {"raid5": "0.53 × of memcpy (8 where it is 15)", "rs": "far above redset's 1.6 GB/s"}

Samples = dict[str, list[float]]


def checkpoint(_: Path) -> Iterator[table.Row]:
    """Encoding, saving, making again and reading, for each level."""
    found = _samples()
    bare = [TOTAL_GB / s for s in found["memcpy"]]
    for level in LEVELS[1:]:
        beo = [TOTAL_GB / s for s in found[f"encode {level}"]]
        yield table.Row(f"parity of 4 × 256 MB, {level}", "GB/s", "memcpy", ENCODE_AIM.get(level, ""), beo, bare)
    for level in LEVELS:
        aim = "1.5 ×" + (" and 0.26 s (4 GB/s)" if level == "raid5" else "")
        what = f"the program is blocked for 4 × 256 MB, {level}"
        yield table.Row(what, "s", "the same written to tmpfs", aim, found[f"save {level}"], found["tmpfs"])
    for level in LEVELS:
        what = f"the same for the first time, {level}"
        yield table.Row(what, "s", "a new file of tmpfs", "", found[f"first {level}"], found["tmpfs new"])
    taken = zip(found["summed"], found["unsummed"], found["parity summed"], found["save raid5"], strict=True)
    share = [100 * (summed - copied + parity) / save for summed, copied, parity, save in taken]
    yield table.Row("by how much checksums make that longer, raid5", "%", "", "5 %", share)
    for level in LEVELS[1:]:
        what = f"a lost rank of 256 MB made again, {level}"
        yield table.Row(what, "s", "", "0.25 s", found[f"rebuild {level}"])
    yield table.Row("4 × 256 MB verified and read, raid5", "s", "memcpy", "", found["restore"], found["memcpy"])


def _samples() -> Samples:
    """Let ranks measure, in memory."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="beo-bench-", dir=where) as top, _vault(top):
        argv = [str(stage.BIN / "mpiexec"), "-n", str(RANKS), sys.executable, "-m", "tests.bench.checkpoint", top]
        done = subprocess.run(argv, cwd=stage.ROOT, stdout=subprocess.PIPE, timeout=LIMIT_S, check=True)
    samples: Samples = json.loads(done.stdout)
    return samples


@contextmanager
def _vault(top: str) -> Iterator[None]:
    """Mount what a vault is; without root's rights, nothing."""
    if os.geteuid():
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=75%,huge=within_size", "tmpfs", top], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", top], check=True)


class Ranks:
    """One rank's part of the measurements; all ranks measure together."""

    def __init__(self, comm: Intracomm, top: Path) -> None:
        """Take memory of two images."""
        self._comm, self._top = comm, top
        self._own = np.random.default_rng(comm.rank).integers(0, 256, SIZE, dtype=np.uint8)
        self._other = np.zeros(SIZE + PIECE, np.uint8)
        self._bare = top / f"bare{comm.rank}"
        self.samples: Samples = {}

    def measure(self, what: str, act: Callable[[], object]) -> None:
        """Add one sample: from when all begin until all have ended, in seconds."""
        self._comm.barrier()
        began_s = time.perf_counter()
        act()
        self._comm.barrier()
        self.samples.setdefault(what, []).append(time.perf_counter() - began_s)

    def run(self) -> None:
        """Take all samples."""
        self.measure("tmpfs new", self._write)
        for level in LEVELS:
            self._level(level)
            self._bare.unlink()
            self.measure("tmpfs new", self._write)
        self._bare.unlink()

    def _level(self, level: str) -> None:
        comm, top = self._comm, self._top / level
        node = f"n{comm.rank}"
        folder = top / node
        store = Store(comm, folder, level, node)
        nodes = tuple(comm.allgather(node))
        for _ in range(2):  # both slots
            self.measure(f"first {level}", lambda: store.save(0, [self._own]))
        image = Image(b"", [self._own])
        made = stripes(nodes, (image.size,) * RANKS, level)
        parity = np.zeros(parity_sizes(RANKS, made)[comm.rank], np.uint8)
        scratch = Scratch(SEGMENT_BYTES)
        for step in range(1, ROUNDS + 1):
            self._own[:: 1 << 12] += 1
            self.measure("memcpy", lambda: np.copyto(self._other[:SIZE], self._own))
            self.measure("tmpfs", self._write)
            if made:
                self.measure(f"encode {level}", lambda: encode(comm, self._other, made, parity, scratch))
            self.measure(f"save {level}", lambda step=step: store.save(step, [self._own]))  # type: ignore[misc]
            if level == "raid5":
                self.measure("summed", lambda: Writing(image, self._other).finish())
                self.measure("unsummed", lambda: np.copyto(self._other[:SIZE], self._own))
                self.measure("parity summed", lambda: sums(parity))
                sealed = Store(comm, folder, level, node)
                self.measure("restore", lambda sealed=sealed: self._read(sealed))  # type: ignore[misc]
        for _ in range(ROUNDS if level != "raid0" else 0):
            if comm.rank == 1:
                shutil.rmtree(folder)
            comm.barrier()
            again = Store(comm, folder, level, node)
            self.measure(f"rebuild {level}", again.newest)
            assert self._read(again) and np.array_equal(self._own, self._other[:SIZE])
        comm.barrier()
        if comm.rank == 0:
            shutil.rmtree(top)
        comm.barrier()

    def _read(self, store: Store) -> bool:
        sealed = store.newest()
        assert sealed
        sealed.fetch([(self._comm.rank, 0, self._other[:SIZE].data)])
        return True

    def _write(self) -> None:
        fd = os.open(self._bare, os.O_RDWR | os.O_CREAT)
        for start in range(0, SIZE, PIECE):
            os.pwrite(fd, self._own[start : start + PIECE].data, start)
        os.close(fd)


def encode(comm: Intracomm, image: Bytes, made: object, parity: Bytes, scratch: Scratch) -> None:
    """Make all parity of the images, as `Store.save` does, into memory."""
    combine(
        comm,
        encoding(made, comm.rank),  # type: ignore[arg-type]
        lambda piece, length: image[piece.start : piece.start + length],
        lambda piece, length: parity[piece.start : piece.start + length],
        lambda piece, total: None,
        scratch,
    )


def main() -> int:
    """Be one of the ranks; the first prints the samples."""
    from mpi4py import MPI

    ranks = Ranks(MPI.COMM_WORLD, Path(sys.argv[1]))
    ranks.run()
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(ranks.samples))
    return 0


if __name__ == "__main__":
    sys.exit(main())
