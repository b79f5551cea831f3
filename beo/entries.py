"""What a journal is made of: entries and snapshots, with the sums that tell whether they are whole and in place."""

import hashlib
import struct
import zlib
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

HASH_BYTES: Final = 16  # 128 bits: against accidents and divergence, not against a forger


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its place (from 1), the epoch of the head that wrote it, the rolling hash up to it, and its bytes."""

    index: int
    epoch: int
    hash: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state after applying every entry up to `index`, with that entry's epoch and rolling hash."""

    index: int
    epoch: int
    hash: bytes
    state: bytes


class Position(NamedTuple):
    """A place in a journal: with equal hashes, two journals hold the same entries up to it."""

    idx: int
    epoch: int
    hash: bytes


BEGINNING: Final = Position(0, 0, bytes(HASH_BYTES))
_HEADER: Final = struct.Struct(">QQ")  # index, epoch


def hash_of(previous: bytes, index: int, epoch: int, data: bytes) -> bytes:
    """Return the rolling hash of an entry behind one with the hash `previous`."""
    digest = hashlib.blake2b(previous, digest_size=HASH_BYTES)
    digest.update(_HEADER.pack(index, epoch))
    digest.update(data)
    return digest.digest()


def crc_of(index: int, epoch: int, hash: bytes, data: bytes) -> int:
    """Return the CRC32 that is kept with an entry (or a snapshot)."""
    return zlib.crc32(data, zlib.crc32(_HEADER.pack(index, epoch) + hash))


def is_whole(row: tuple[Any, ...]) -> bool:
    """Say whether a row (index, epoch, hash, CRC, bytes) is as it was written."""
    index, epoch, hash, crc, data = row
    try:
        return bool(crc_of(index, epoch, hash, data) == crc)
    except (TypeError, struct.error):  # a flipped bit can change a value's type, too
        return False
