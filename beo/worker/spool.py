"""The spool: one file per attempt and node with everything its ranks print, in records.

A record is a header (`>IBI`: rank, 1 for stdout or 2 for stderr, length in bytes) and its data. Nothing is dropped:
what the disk doesn't take now waits in memory, the ranks' pipes are left alone meanwhile, and so the ranks wait too.
"""

from __future__ import annotations

import os
import struct

from beo.worker.disk import is_full

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HEADER = struct.Struct(">IBI")
RECORD_BYTES_MAX = 64 << 10
"""Longest record, which is what a pipe holds: a reader needs no more memory than this per record."""


def records(spool: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The whole records in `spool`, as (rank, fd, data); a torn one at the end is left out."""
    at = 0
    while len(spool) - at >= HEADER.size:
        rank, fd, length = HEADER.unpack_from(spool, at)
        if len(spool) - at - HEADER.size < length:
            return
        at += HEADER.size
        yield rank, fd, spool[at : at + length]
        at += length


class Spool:
    """The writer of a spool file, which is made with the first record: a job that prints nothing makes none."""

    def __init__(self, path: str, free_min_bytes: int = 0) -> None:
        """free_min_bytes: what it leaves of its disk, see bounds.py."""
        self.path = path
        self.free_min_bytes = free_min_bytes
        self.whole_bytes = 0
        """Length of the whole records in the file: what a reader may rely on."""
        self.trouble = ""
        """Why the last write failed, such as "No space left on device"; empty when all is well."""
        self._fd = -1
        self._made = False
        self._written_bytes = 0  # of the first waiting record
        self._waiting: list[bytes] = []

    def add(self, rank: int, fd: int, data: bytes) -> None:
        """Queue one rank's output, in records of at most RECORD_BYTES_MAX."""
        for at in range(0, len(data), RECORD_BYTES_MAX):
            part = data[at : at + RECORD_BYTES_MAX]
            self._waiting.append(HEADER.pack(rank, fd, len(part)) + part)

    def write(self) -> bool:
        """Write what is queued; False (and `trouble`) while the disk doesn't take it all."""
        if not self._waiting:
            return True
        if self.free_min_bytes and is_full(os.path.dirname(self.path), self.free_min_bytes):
            self.trouble = "the disk is full but for what is kept free"
            return False
        try:
            if self._fd < 0:
                # Appending only and never truncating: the warden that made this file is the only one that writes it.
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._made = True
            while self._waiting:
                text = b"".join(self._waiting)[self._written_bytes :]
                self._advance(os.write(self._fd, text))
        except OSError as error:
            self.trouble = error.strerror or str(error)
            return False
        self.trouble = ""
        return True

    def close(self) -> None:
        """Close the file, which stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def delete(self) -> None:
        """Close the file and remove it, if there is one."""
        self.close()
        if self._made:
            self._made = False
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass

    def _advance(self, size_bytes: int) -> None:
        size_bytes += self._written_bytes
        while self._waiting and size_bytes >= len(self._waiting[0]):
            size_bytes -= len(self._waiting[0])
            self.whole_bytes += len(self._waiting.pop(0))
        self._written_bytes = size_bytes


class Stream:
    """One pipe of one rank, cut into pieces that a reader can put beside those of other ranks.

    With `holding`, a piece ends at the end of a line, so that lines of several ranks don't mix; what has no end yet is
    kept until `cut`, or until it is a record long.
    """

    __slots__ = ("fd", "holding", "kept", "kind", "rank")

    def __init__(self, rank: int, kind: int, fd: int, holding: bool) -> None:
        self.rank = rank
        self.kind = kind
        self.fd = fd
        self.holding = holding
        self.kept = b""

    def pieces(self, data: bytes) -> bytes:
        """What can be written now that `data` has come."""
        if not self.holding:
            return data
        data = self.kept + data
        end = data.rfind(b"\n") + 1
        if len(data) - end >= RECORD_BYTES_MAX:
            end = len(data)
        self.kept = data[end:]
        return data[:end]

    def cut(self) -> bytes:
        """What was kept back, now to be written as it is."""
        data, self.kept = self.kept, b""
        return data
