"""A rank's image in its memory: its parts one after another, as they lie, without a copy of them all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

from beo.checkpoints.manifest import BLOCK_BYTES, blocks
from beo.checkpoints.parity import Bytes
from beo.checkpoints.plan import layout

META_MAX_BYTES = 1 << 26
_LENGTH_BYTES = 8


def as_bytes(part: Any) -> Bytes:
    """Return the bytes of a contiguous buffer, uncopied. ValueError for another one."""
    view = memoryview(part)
    if not view.nbytes:
        return np.empty(0, np.uint8)
    if not view.c_contiguous:
        raise ValueError("a part of a checkpoint must be contiguous in memory")
    return np.frombuffer(view.cast("B"), np.uint8)


def header(meta: bytes) -> bytes:
    """Return what an image begins with: what the program wants to know before it reads the parts."""
    if len(meta) > META_MAX_BYTES:
        raise ValueError(f"the description of a checkpoint has {len(meta)} bytes: the limit is {META_MAX_BYTES}")
    return len(meta).to_bytes(_LENGTH_BYTES) + meta


def read_header(image: Bytes) -> tuple[bytes, int] | None:
    """Return the meta of an image, and where its parts begin; None where it has none."""
    if len(image) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(image[:_LENGTH_BYTES].tobytes())
    if length > min(META_MAX_BYTES, len(image) - _LENGTH_BYTES):
        return None
    meta = image[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes()
    return meta, layout([_LENGTH_BYTES + length])[1]


class Image:
    """The bytes of a rank's state. size: in bytes."""

    def __init__(self, meta: bytes, parts: Sequence[Any]) -> None:
        """Take buffers that are contiguous; they are looked at, not copied, until the checkpoint is made."""
        arrays = [np.frombuffer(header(meta), np.uint8), *map(as_bytes, parts)]
        starts, self.size = layout([len(array) for array in arrays])
        self._parts = [(start, array) for start, array in zip(starts, arrays, strict=True) if len(array)]
        self._starts = [start for start, _ in self._parts]

    def fill(self, start: int, block: Bytes) -> None:
        """Copy a block of it, and clear the little that lies between the parts."""
        at = start
        number = bisect_right(self._starts, start) - 1
        end = start + len(block)
        for begin, array in self._parts[number:]:
            if begin >= end:
                break
            low, high = max(start, begin), min(end, begin + len(array))
            if low < high:
                block[at - start : low - start] = 0
                block[low - start : high - start] = array[low - begin : high - begin]
                at = high
        block[at - start :] = 0


class Writing:
    """An image on its way into a file: block by block, in the order in which somebody wants to have them.

    So each block is copied, summed and sent in one go, while it is in the caches.
    """

    def __init__(self, image: Image, into: Bytes) -> None:
        """Take where it goes, as long as it is."""
        self._image, self._into = image, into
        self._sums: list[bytes] = [b""] * blocks(image.size)

    def piece(self, start: int, length: int) -> Bytes:
        """Return these bytes of the file, written; it may end before."""
        end = min(start + length, self._image.size)
        for number in range(start // BLOCK_BYTES, blocks(end)):
            if not self._sums[number]:
                at = number * BLOCK_BYTES
                block = self._into[at : at + BLOCK_BYTES]
                self._image.fill(at, block)
                self._sums[number] = xxhash.xxh3_64_digest(block.data)
        return self._into[start:end]

    def finish(self) -> bytes:
        """Write what nobody has wanted; return the checksums of all blocks."""
        self.piece(0, self._image.size)
        return b"".join(self._sums)
