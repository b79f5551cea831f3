"""Checkpoints in a folder, looked at by somebody who isn't the program: what there is, and whether it is sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beo.checkpoints.manifest import Manifest, Whole, blocks, spoilt_blocks
from beo.checkpoints.plan import IMAGE, PARITY, is_whole
from beo.checkpoints.slots import Slots, places


@dataclass(frozen=True)
class Part:
    """What one rank kept: its image or its parity. spoilt: how many of its blocks are no more what they were."""

    whole: Whole
    kind: str
    rank: int
    size_bytes: int
    blocks: int
    spoilt: int


@dataclass(frozen=True)
class Summary:
    """A checkpoint in several folders. lost: ranks whose image is missing or spoilt. is_whole: it can be restored."""

    whole: Whole
    parts: tuple[Part, ...]
    lost: tuple[int, ...]
    is_whole: bool


def parts(folder: Path) -> Iterator[Part]:
    """Read every block of every checkpoint in a node's folder, those of a program in a folder below it (place.py).

    An image that is missing counts as spoilt as a whole. Parity that is missing isn't: a copy at the head has none, and
    who begins with it makes it anew.
    """
    for slots in map(Slots, places(folder)):
        for manifest in (manifest for manifest, sealed in slots.manifests() if sealed):
            if manifest.has_image:
                yield _part(slots, manifest, IMAGE)
            parity = slots.path(manifest.whole.slot, manifest.rank, PARITY)
            if manifest.has_parity and manifest.parity and parity.exists():
                yield _part(slots, manifest, PARITY)


def _part(slots: Slots, manifest: Manifest, kind: str) -> Part:
    whole, rank = manifest.whole, manifest.rank
    size = whole.sizes[rank] if kind == IMAGE else whole.parity_sizes()[rank]
    data = slots.find(whole.slot, rank, kind, size) if size else np.empty(0, np.uint8)
    number = blocks(size)
    expected = manifest.image if kind == IMAGE else manifest.parity
    spoilt = number if data is None else len(spoilt_blocks(data, expected))
    return Part(whole, kind, rank, size, number, spoilt)


def summaries(folders: list[Path]) -> list[Summary]:
    """Return the checkpoints of which something is in these folders, the newest first."""
    found: dict[str, list[Part]] = {}
    for folder in folders:
        for part in parts(folder):
            found.setdefault(part.whole.name, []).append(part)
    return sorted((_summary(some) for some in found.values()), key=lambda one: -one.whole.number)


def _summary(some: list[Part]) -> Summary:
    whole = some[0].whole
    sound = {(part.kind, part.rank) for part in some if not part.spoilt}
    kept = whole.parity_sizes()
    ranks = range(len(whole.nodes))
    units = [(IMAGE, rank) for rank in ranks] + [(PARITY, rank) for rank in ranks if kept[rank]]
    lost = [unit for unit in units if unit not in sound]
    images = tuple(rank for kind, rank in lost if kind == IMAGE)
    return Summary(whole, tuple(some), images, is_whole(whole.stripes(), len(whole.nodes), lost))
