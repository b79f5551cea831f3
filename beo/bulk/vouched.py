"""What of a job's folder goes into its copy, and what of that is in the last one already.

A program's checkpoints (beo/checkpoints/slots.py) are copied with their manifests and those images that are what these
say, which is checked as they are read. So an image that is in a copy was good, and while its manifest is byte for byte
the same nothing else was written since: a manifest goes before its image is touched. Such a one isn't read again. Times
would prove nothing: images are written to through memory.

Left out is what nobody could begin with: images that are spoilt or that no manifest vouches for, and the parity. Copies
count where all ranks' images are in them (headnode/bundles.py), and whoever begins with them makes its parity anew.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from beo import messages as ms
from beo.bulk.chunks import PACKED_MAX_BYTES, Chunk, File, Manifest, chunks_of
from beo.bulk.snapshot import Rules
from beo.checkpoints.manifest import BLOCK_BYTES, SUM_BYTES, Whole, sums
from beo.checkpoints.plan import IMAGE, PARITY
from beo.checkpoints.slots import SLOTS, Slots

_UNIT = re.compile(rf"\d{{5,7}}\.({IMAGE}|{PARITY})".encode())


class _Expected(NamedTuple):
    """What a file's bytes must be: so many, with these checksums of their blocks."""

    size: int
    sums: bytes


class _Part(NamedTuple):
    """What one manifest, at `path`, vouches for. image: where it is and what it must be; None: it has none."""

    whole: Whole
    rank: int
    path: bytes
    image: tuple[bytes, _Expected] | None


class Vouched(Rules):
    """The rules of one snapshot of a job's folder. Paths are relative to that."""

    def __init__(self, folder: Path, programs: Sequence[Path]) -> None:
        """Read the manifests. programs: those of `slots.places`, their slots locked."""
        self._programs: list[list[_Part]] = []
        self._slots: set[bytes] = set()
        self._manifests: dict[bytes, bytes] = {}
        self._expected: dict[bytes, _Expected] = {}
        self._spared: Mapping[bytes, tuple[Chunk, ...]] = {}
        self._good: dict[bytes, int] = {}  # up to where a file was what it must be
        for place in programs:
            self._slots.update(os.fsencode((place / slot).relative_to(folder)) for slot in SLOTS)
            self._programs.append(self._parts(Slots(place), folder))

    def _parts(self, slots: Slots, folder: Path) -> list[_Part]:
        parts = []
        for path, manifest, data in slots.contents():
            whole, rank = manifest.whole, manifest.rank
            mine, image = os.fsencode(path.relative_to(folder)), None
            if manifest.has_image:
                where = os.fsencode(slots.path(whole.slot, rank, IMAGE).relative_to(folder))
                image = where, _Expected(whole.sizes[rank], manifest.image)
                self._expected[where] = image[1]  # of two manifests the one that isn't sealed yet was written later
            self._manifests[mine] = data
            self._expected[mine] = _Expected(len(data), sums(data))
            parts.append(_Part(whole, rank, mine, image))
        return parts

    @property
    def manifests(self) -> Mapping[bytes, bytes]:
        """What is in each, by its path."""
        return self._manifests

    # ---- what the last copy has

    def unchanged(self, last: Manifest, contents: Mapping[bytes, bytes]) -> dict[bytes, tuple[Chunk, ...]]:
        """Return which images are in the last copy as they are now, and their chunks. contents: of its manifests."""
        files = {entry.path: entry for entry in last.entries if isinstance(entry, File)}
        found = {}
        for part in self._all():
            if not part.image or contents.get(part.path) != self._manifests[part.path]:
                continue
            path, expected = part.image
            file = files.get(path)
            if file and file.size == expected.size > PACKED_MAX_BYTES and expected == self._expected[path]:
                found[path] = tuple(chunks_of(last, file))
        return found

    def spare(self, unchanged: Mapping[bytes, tuple[Chunk, ...]]) -> None:
        """Let these not be read: their chunks are in the tree."""
        self._spared = unchanged

    # ---- the rules

    def takes(self, path: bytes) -> bool:
        """Leave out parity, and images that nothing vouches for."""
        folder, _, name = path.rpartition(b"/")
        unit = _UNIT.fullmatch(name) if folder in self._slots else None
        if unit and unit[1] == PARITY.encode():
            return len(self._programs) > 1  # copies are matched by one program: of others an image may be missing
        return not unit or path in self._expected

    def chunks(self, path: bytes, size: int) -> Sequence[Chunk]:
        """Return those of an image that is spared."""
        if path not in self._spared or size != self._expected[path].size:
            return ()
        self._good[path] = size
        return self._spared[path]

    def is_good(self, path: bytes, start: int, data: bytes) -> bool:
        """Hold the bytes of images and manifests against what they must be. start: where a block begins."""
        expected = self._expected.get(path)
        if expected is None:
            return True
        first, found = start // BLOCK_BYTES * SUM_BYTES, sums(data)
        if found != expected.sums[first : first + len(found)]:
            self._good.pop(path, None)
            return False
        self._good[path] = start + len(data)
        return True

    # ---- what there is

    def checkpoints(self) -> tuple[tuple[str, int, int], ...]:
        """Return what is in the snapshot that was made: name, images, ranks of each checkpoint, program by program."""
        found: list[tuple[str, int, int]] = []
        for parts in self._programs:
            images: dict[str, set[int]] = {}
            for part in parts:
                images.setdefault(part.whole.name, set()).update({part.rank} if self._is_whole(part) else ())
            ranks = {part.whole.name: len(part.whole.nodes) for part in parts}
            known = (name for name in ranks if len(name) <= ms.CHECKPOINT_NAME_MAX)
            found += [(name, len(images[name]), ranks[name]) for name in known]
        return tuple(found[: ms.CHECKPOINTS_MAX])

    def _is_whole(self, part: _Part) -> bool:
        """Whether a manifest and its image are in it as they belong together."""
        if not part.image or self._good.get(part.path) != self._expected[part.path].size:
            return False
        path, expected = part.image
        return expected == self._expected[path] and self._good.get(path) == expected.size

    def _all(self) -> Iterable[_Part]:
        return (part for parts in self._programs for part in parts)
