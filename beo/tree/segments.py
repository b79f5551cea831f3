"""The data of the tree's log: what its entries say was written, in files that only ever grow at their end.

The journal keeps the entries, and this keeps what is too large for it, each under its entry's index. So a byte is
written here first, durable with its entry, and to its place in the store whenever there is time. Records follow each
other without gaps: a head (index, length, crc of both), then the data; whether that is right, its entry's digest says.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from bisect import bisect_right
from pathlib import Path

from beo.errors import BeoError, DamagedJournal, reason
from beo.snapshots import sync_folder

SEGMENT_BYTES = 64 << 20  # then another file begins
KEPT_BYTES = 256 << 20  # of what is in the store already, for a head that lags: more is copied by difference

_head = struct.Struct(">QII")  # index, length, crc
_crc_of = struct.Struct(">QI")


class _Segment:
    """One file; its records are for the entries from `first` on."""

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.size = 0
        self.places: dict[int, tuple[int, int]] = {}  # entry -> (offset, length)

    def scan(self) -> None:
        """Find the records; what is torn at the end is none."""
        end = os.fstat(self.fd).st_size
        while self.size + _head.size <= end:
            index, length, crc = _head.unpack(os.pread(self.fd, _head.size, self.size))
            if crc != _sum(index, length) or self.size + _head.size + length > end:
                break
            self.places[index] = self.size + _head.size, length
            self.size += _head.size + length

    def cut(self, size: int) -> None:
        os.ftruncate(self.fd, size)
        self.size = size
        self.places = {index: place for index, place in self.places.items() if place[0] < size}


class Segments:
    """The segments in one folder. `sync` is for any thread, all else for one."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, made if it is missing; raises BeoError where it can't be read."""
        self._folder = folder
        self._lock = threading.Lock()  # guards the two below
        self._unsynced: list[int] = []  # descriptors, our own duplicates
        self._is_new = False  # a file was made since the last sync
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            paths = sorted(path for path in folder.iterdir() if path.name.isdecimal())
            self._segments = [_Segment(path, int(path.name)) for path in paths]
            for segment in self._segments:
                segment.scan()
        except OSError as error:
            raise BeoError(f"can't read {folder}", reason(error), "make room or mend that disk") from None

    def put(self, index: int, data: bytes) -> None:
        """Keep the data of an entry behind all others, durable after `sync`. Raises OSError, as if nothing was done."""
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.size + len(data) > SEGMENT_BYTES:
            segment = _Segment(self._folder / f"{index:020d}", index)
            self._segments.append(segment)
            with self._lock:
                self._is_new = True
        head = _head.pack(index, len(data), _sum(index, len(data)))
        try:
            done = os.pwritev(segment.fd, [head, data], segment.size)
            while done < len(head) + len(data):  # a disk that fills takes a part first
                done += os.pwrite(segment.fd, (head + data)[done:], segment.size + done)
        except OSError:
            segment.cut(segment.size)
            raise
        segment.places[index] = segment.size + len(head), len(data)
        segment.size += len(head) + len(data)
        with self._lock:
            self._unsynced.append(os.dup(segment.fd))

    def sync(self) -> None:
        """Make durable what was put before this call. Raises OSError: end then."""
        with self._lock:
            unsynced, self._unsynced = self._unsynced, []
            is_new, self._is_new = self._is_new, False
        done: set[int] = set()
        for fd in unsynced:
            node = os.fstat(fd).st_ino
            if node not in done:
                os.fdatasync(fd)
                done.add(node)
        for fd in unsynced:
            os.close(fd)
        if is_new:
            sync_folder(self._folder)

    def get(self, index: int) -> bytes:
        """Return the data of an entry; raises DamagedJournal where it isn't here, or not as long as it was."""
        segment = self._segment_of(index)
        place = segment.places.get(index) if segment else None
        if segment is None or place is None:
            raise self._damaged(index)
        offset, length = place
        data = os.pread(segment.fd, length, offset)
        if len(data) != length:
            raise self._damaged(index)
        return data

    def size(self, index: int) -> int:
        """Return how long the data of an entry is, 0 where it isn't here."""
        segment = self._segment_of(index)
        return segment.places.get(index, (0, 0))[1] if segment else 0

    def forget(self, upto: int) -> None:
        """Drop the oldest segments of which everything is in the store, which has all up to this entry."""
        total = sum(segment.size for segment in self._segments)
        while len(self._segments) > 1 and self._segments[1].first <= upto + 1 and total > KEPT_BYTES:
            oldest = self._segments.pop(0)
            total -= oldest.size
            os.close(oldest.fd)
            oldest.path.unlink(missing_ok=True)

    def truncate_after(self, index: int) -> None:
        """Drop the data of every entry after `index`."""
        while self._segments and self._segments[-1].first > index:
            last = self._segments.pop()
            os.close(last.fd)
            last.path.unlink(missing_ok=True)
        if self._segments:
            last = self._segments[-1]
            behind = [offset for entry, (offset, _) in last.places.items() if entry > index]
            last.cut(min(behind) - _head.size if behind else last.size)

    def close(self) -> None:
        """Close all files."""
        for segment in self._segments:
            os.close(segment.fd)
        self._segments.clear()

    def _segment_of(self, index: int) -> _Segment | None:
        number = bisect_right(self._segments, index, key=lambda segment: segment.first) - 1
        return self._segments[number] if number >= 0 else None

    def _damaged(self, index: int) -> DamagedJournal:
        what = f"the data of entry {index} is not in {self._folder}"
        return DamagedJournal(what, "", "restore it, or let this head begin anew with 'beo ha rejoin --wipe'")


def _sum(index: int, length: int) -> int:
    return zlib.crc32(_crc_of.pack(index, length))
