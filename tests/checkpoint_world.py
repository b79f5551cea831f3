"""Nodes with a folder each, and ranks as threads that save and read there: what the tests of the store stand on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from beo.checkpoints.parity import Bytes
from beo.checkpoints.plan import layout
from beo.checkpoints.store import Store
from tests.ranks import ThreadComm, together

Result = TypeVar("Result")
SURVIVES = {"raid0": 0, "raid1": 1, "raid4": 1, "raid5": 1, "rs": 2}  # losses of whole nodes


def image(rank: int, step: int, size: int) -> Bytes:
    """Return what a rank has at a step: the same bytes for the same numbers."""
    return np.random.default_rng((rank, step)).integers(0, 256, size, dtype=np.uint8)


def parts_of(data: Bytes) -> list[Bytes]:
    """Return an image cut in three, of which the first may have any length."""
    third = len(data) // 3
    return [data[:third], data[third : 2 * third], data[2 * third :]]


def meta_of(rank: int, step: int, size: int) -> bytes:
    """Return what a rank says of its image: enough to know what must be in it."""
    return f"{rank} {step} {size}".encode()


def read_all(store: Store) -> int | None:
    """Read all images of the newest checkpoint and compare them; return its step, or None. Collective."""
    sealed = store.newest()
    if sealed is None:
        return None
    pairs: list[tuple[Bytes, Bytes]] = []
    wants = []
    for old, (meta, size) in enumerate(zip(sealed.metas, sealed.sizes, strict=True)):
        rank, step, length = map(int, meta.split())
        assert (rank, step) == (old, sealed.step)
        parts = parts_of(image(old, step, length))
        starts, total = layout([len(part) for part in parts])
        assert total == size
        for start, part in zip(starts, parts, strict=True):
            pairs.append((np.zeros(len(part), np.uint8), part))
            wants.append((old, start, pairs[-1][0].data))
    sealed.fetch(wants)
    assert all(np.array_equal(into, part) for into, part in pairs), "other bytes than were saved"
    return sealed.step


class World:
    """nodes: by rank, on which node it is."""

    def __init__(self, top: Path, nodes: Sequence[str], level: str | None) -> None:
        """Take a folder for the folders of the nodes."""
        self.top, self.nodes, self.level = top, tuple(nodes), level

    def folder(self, node: str) -> Path:
        """Return a node's."""
        return self.top / node

    def run(self, body: Callable[[Store], Result]) -> list[Result | Exception]:
        """Let each rank do something with a store of its own; what each returned or raised."""

        def of_rank(comm: ThreadComm) -> Result:
            node = self.nodes[comm.rank]
            return body(Store(comm, self.folder(node), self.level, node))

        return together(len(self.nodes), of_rank)

    def save(self, step: int, sizes: Sequence[int]) -> list[Exception | None]:
        """Let all ranks save images of these sizes."""

        def of_rank(comm: ThreadComm) -> None:
            rank, node = comm.rank, self.nodes[comm.rank]
            store = Store(comm, self.folder(node), self.level, node)
            own = image(rank, step, sizes[rank])
            store.save(step, parts_of(own), meta_of(rank, step, sizes[rank]))

        return together(len(self.nodes), of_rank)

    def load(self) -> list[int | Exception | None]:
        """Let all ranks read all images: the step that each found, None, or what it raised."""
        return self.run(read_all)

    def lose(self, *nodes: str) -> None:
        """Let nodes' folders be gone."""
        for node in nodes:
            shutil.rmtree(self.folder(node), ignore_errors=True)

    def keep(self, into: Path) -> None:
        """Put a copy of everything aside."""
        shutil.copytree(self.top, into)

    def put_back(self, kept: Path) -> None:
        """Have everything as it was when it was put aside."""
        shutil.rmtree(self.top, ignore_errors=True)
        shutil.copytree(kept, self.top)

    def files(self, kind: str) -> list[Path]:
        """Return all files of images, of parity or of manifests that aren't empty."""
        return sorted(path for path in self.top.glob(f"*/*/*.{kind}") if path.stat().st_size)


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 4]))
