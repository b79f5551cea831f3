"""What stands beside an image: what it is a part of, and the checksums by which its bytes are believed. Pure.

Manifests are read from folders that their owner can write to, after crashes: a spoilt one counts as none.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import xxhash

from beo.checkpoints.plan import LEVELS, Stripe, parity_sizes, stripes

FORMAT = 1
BLOCK_BYTES = 1 << 20  # of one checksum
SUM_BYTES = 8
RANKS_MAX = 1 << 16
SIZE_MAX = 1 << 50
MANIFEST_MAX_BYTES = 1 << 28

_Size = Annotated[int, msgspec.Meta(ge=0, le=SIZE_MAX)]


class Whole(msgspec.Struct, frozen=True, array_like=True):
    """A checkpoint: what all its manifests agree on.

    number: of the checkpoint; they only grow. name: random, so that two of one number are told apart. step: what the
    program calls it. nodes, sizes: of each rank, its node and the size of its image. digests: of each rank, what stands
    for the checksums of its image and of its parity, by which one that was made again is known to be the same.
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
    name: str
    step: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    level: str
    nodes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=RANKS_MAX)]
    sizes: tuple[_Size, ...]
    time_s: float = 0.0
    digests: tuple[tuple[int, int], ...] = ()

    @property
    def slot(self) -> str:
        """In which of the two slots it lies."""
        return "ab"[self.number % 2]

    def stripes(self) -> tuple[Stripe, ...]:
        """What protects it."""
        return stripes(self.nodes, self.sizes, self.level)

    def parity_sizes(self) -> list[int]:
        """How many bytes of parity each rank keeps."""
        return parity_sizes(len(self.nodes), self.stripes())


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    """One rank's part of a checkpoint. image, parity: checksums of their blocks, SUM_BYTES each; b"": it has none.

    is_kept: whether the image (and the parity) are here; a part that was only made again may lack the one or the other.
    """

    format: int
    whole: Whole
    rank: int
    image: bytes
    parity: bytes
    has_image: bool = True
    has_parity: bool = True


class Spoilt(ValueError):
    """Bytes that are no manifest."""


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """Return its bytes, with a checksum before them."""
    body = _encoder.encode(manifest)
    return xxhash.xxh3_64_digest(body) + body


def decode(data: bytes) -> Manifest:
    """Read what `encode` made; raises Spoilt for anything else."""
    body = data[SUM_BYTES:]
    if len(data) <= SUM_BYTES or xxhash.xxh3_64_digest(body) != data[:SUM_BYTES]:
        raise Spoilt("its checksum is another one")
    try:
        found = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Spoilt(str(error)) from None
    whole = found.whole
    if found.format != FORMAT:
        raise Spoilt(f"its format is {found.format}, and this beo reads {FORMAT}")
    lengths = {len(whole.nodes), len(whole.sizes), len(whole.digests)}
    if whole.level not in LEVELS or len(lengths) > 1 or not 0 <= found.rank < len(whole.nodes):
        raise Spoilt("it contradicts itself")
    try:
        kept = whole.parity_sizes()[found.rank]
    except ValueError as error:
        raise Spoilt(str(error)) from None
    for sums, size, there, told in (
        (found.image, whole.sizes[found.rank], found.has_image, whole.digests[found.rank][0]),
        (found.parity, kept, found.has_parity, whole.digests[found.rank][1]),
    ):
        if there and len(sums) != SUM_BYTES * blocks(size):
            raise Spoilt("it has not one checksum for each block")
        if there and digest(sums) != told:
            raise Spoilt("its checksums aren't those that all ranks were told")
    return found


def blocks(size: int) -> int:
    """How many blocks so many bytes are."""
    return -(-size // BLOCK_BYTES)


def sums(data: Any) -> bytes:
    """Return the checksums of the blocks of a buffer of bytes."""
    view = memoryview(data)
    starts = range(0, len(view), BLOCK_BYTES)
    return b"".join(xxhash.xxh3_64_digest(view[start : start + BLOCK_BYTES]) for start in starts)


def digest(checksums: bytes) -> int:
    """Return what stands for the checksums of an image or a parity."""
    return xxhash.xxh3_64_intdigest(checksums)


def spoilt_blocks(data: Any, expected: bytes) -> list[int]:
    """Return which blocks of a buffer aren't what their checksums say."""
    found = sums(data)
    if found == expected:
        return []
    number = blocks(len(memoryview(data)))
    return [n for n in range(number) if found[n * SUM_BYTES :][:SUM_BYTES] != expected[n * SUM_BYTES :][:SUM_BYTES]]
