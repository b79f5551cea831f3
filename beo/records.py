"""Records: how the output of many ranks shares one stream of bytes.

A record is a header (rank, which of its two descriptors, length) and so many bytes as the rank wrote them. Wardens
write records into spools, agents ship them in chunks of whole records, the head stores the same bytes, and only who
shows or exports them takes them apart. `worker/spool.py` runs without beo's packages and has a writer of its own; a
test holds the two together.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from beo.errors import Internal

HEADER = struct.Struct(">IBI")  # rank, fd, length of the data
NUMBERS_MAX = 1 << 31  # ranks that a job spawns have numbers of their own, up to this (worker/steps.py)
STDOUT = 1
STDERR = 2
RECORD_SIZE_MAX_BYTES = (
    64 * 1024
)  # of data: what a pipe holds, and a quarter of a chunk, so that a chunk is never stuck


class Record(NamedTuple):
    """`data` that `rank` wrote to its descriptor `fd` (STDOUT or STDERR)."""

    rank: int
    fd: int
    data: bytes


class DamagedRecord(Internal):
    """Bytes that should be records and are not."""


def pack(rank: int, fd: int, data: bytes) -> bytes:
    """Return one record; `data` has at most RECORD_SIZE_MAX_BYTES."""
    if not _is_sound(rank, fd, len(data)):
        raise _damaged(0, rank, fd, len(data))
    return HEADER.pack(rank, fd, len(data)) + data


def whole_length(data: bytes) -> int:
    """Return the length of the whole records that `data` begins with; raises DamagedRecord if the first one is none."""
    start, end = 0, len(data)
    while start + HEADER.size <= end:
        rank, fd, length = HEADER.unpack_from(data, start)
        if not _is_sound(rank, fd, length):
            if start:
                break  # what is before the damage counts
            raise _damaged(start, rank, fd, length)
        behind = start + HEADER.size + length
        if behind > end:
            break
        start = behind
    return start


def unpack(data: bytes) -> Iterator[Record]:
    """Yield the records of `data`, which are whole; raises DamagedRecord where they are not."""
    start, end = 0, len(data)
    while start < end:
        if start + HEADER.size > end:
            raise _cut_off(start)
        rank, fd, length = HEADER.unpack_from(data, start)
        if not _is_sound(rank, fd, length):
            raise _damaged(start, rank, fd, length)
        start += HEADER.size
        if start + length > end:
            raise _cut_off(start)
        yield Record(rank, fd, data[start : start + length])
        start += length


def _is_sound(rank: int, fd: int, length: int) -> bool:
    return rank < NUMBERS_MAX and STDOUT <= fd <= STDERR and length <= RECORD_SIZE_MAX_BYTES


def _damaged(start: int, rank: int, fd: int, length: int) -> DamagedRecord:
    why = f"it says rank {rank}, descriptor {fd}, {length} bytes"
    return DamagedRecord(
        f"no output record at byte {start}", why, "look for a failing disk below the spool or the head"
    )


def _cut_off(start: int) -> DamagedRecord:
    return DamagedRecord(f"no output record at byte {start}", "it is cut off", "look for a full or failing disk")
