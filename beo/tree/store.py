"""The bytes of the tree's files: one plain file per inode, named by its number. Follows the tree's log, behind it.

What a change does to bytes is *blind*: it never depends on what was there before. So to do changes again, in their
order, from any earlier point on, ends with the same bytes, and a head that was killed simply does again what follows
its last mark. Only what can't be taken back any more is done here (volume.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from beo.config import write_durably
from beo.errors import BeoError, DamagedJournal, reason
from beo.snapshots import sync_folder
from beo.tree.changes import Allocated, Change, Changed, Reaped, Wrote

FILES_OPEN_MAX = 256
FOLDERS = 256  # objects are spread over so many: a folder with millions of files is slow to look into
COPY_MAX_BYTES = 1 << 20
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of fallocate(2), linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Store:
    """The objects in one folder. For one thread. An OSError must end the process: what is missing comes again then."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, made if it is missing; raises BeoError where it can't be, or its mark is damaged."""
        self._folder = folder
        self._open: OrderedDict[int, int] = OrderedDict()  # ino -> descriptor
        self._dirty: dict[int, bool] = {}
        self._dropped: dict[int, bool] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number in range(FOLDERS):
                (folder / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise BeoError(f"can't make {folder}", reason(error), "make room or mend that disk") from None
        self.applied = self.marked = self._read_mark()

    def path(self, ino: int) -> Path:
        """Return where an inode's bytes are, or would be: one that never had any has no file."""
        return object_path(self._folder, ino)

    # ---- following the log

    def apply(self, index: int, change: Change) -> None:
        """Do what entry `index` does to bytes, if anything."""
        match change:
            case Wrote():
                _write(self._fd(change.ino), change.data, change.offset)
                self._dirty[change.ino] = True
            case Changed() if change.size is not None:
                os.ftruncate(self._fd(change.ino), change.size)
                self._dirty[change.ino] = True
            case Allocated():
                self._allocate(change)
            case Reaped():
                for ino in change.inos:
                    self.drop(ino)
        self.applied = index

    def sync(self) -> None:
        """Make all that was applied durable, and say so in the mark: from there on it is done again after a crash."""
        if self.applied != self.marked:
            self.sync_objects()
            self.mark(self.applied)

    def sync_objects(self) -> None:
        """Make what was written durable."""
        for ino in self._dirty:
            os.fdatasync(self._fd(ino))
        for number in {ino % FOLDERS for ino in (*self._dirty, *self._dropped)}:
            sync_folder(self._folder / f"{number:02x}")
        self._dirty.clear()
        self._dropped.clear()

    def mark(self, index: int) -> None:
        """Say that everything up to an entry is here, durably."""
        write_durably(self._folder / "applied", b"%d\n" % index, 0o600)
        self.applied = self.marked = index

    @property
    def unsynced(self) -> int:
        """How many objects wait for `sync`."""
        return len(self._dirty)

    # ---- bytes

    def read(self, ino: int, offset: int, size: int, length: int) -> bytes:
        """Return bytes of an inode that has `length` of them; what was never written is zeros."""
        size = max(0, min(size, length - offset))
        if not size:
            return b""
        try:
            data = os.pread(self._fd(ino, make=False), size, offset)
        except FileNotFoundError:
            return bytes(size)
        return data if len(data) == size else data + bytes(size - len(data))

    def size(self, ino: int) -> int:
        """Return how long an inode's file is."""
        try:
            return os.stat(self.path(ino)).st_size
        except FileNotFoundError:
            return 0

    def blocks(self, ino: int) -> int:
        """Return how many blocks of 512 bytes an inode takes."""
        try:
            return os.stat(self.path(ino)).st_blocks
        except FileNotFoundError:
            return 0

    def drop(self, ino: int) -> None:
        """Remove an inode's bytes."""
        fd = self._open.pop(ino, None)
        if fd is not None:
            os.close(fd)
        self._dirty.pop(ino, None)
        self._dropped[ino] = True
        self.path(ino).unlink(missing_ok=True)

    def put(self, ino: int, offset: int, data: bytes, size: int) -> None:
        """Write bytes of a copy of another head's object that has `size` bytes in all."""
        fd = self._fd(ino)
        if not offset:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
        if data.strip(b"\0"):
            _write(fd, data, offset)
        self._dirty[ino] = True

    def inos(self) -> list[int]:
        """Return the inodes that have a file here, in order."""
        names = (entry.name for number in range(FOLDERS) for entry in os.scandir(self._folder / f"{number:02x}"))
        return sorted(int(name) for name in names if name.isdecimal())

    def space(self) -> tuple[int, int, int, int]:
        """Return (bytes in all, free bytes, inodes in all, free inodes) of the disk."""
        found = os.statvfs(self._folder)
        return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, found.f_files, found.f_favail

    def close(self) -> None:
        """Close all files."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _read_mark(self) -> int:
        path = self._folder / "applied"
        try:
            return int(path.read_bytes())
        except FileNotFoundError:
            return 0
        except ValueError:
            raise DamagedJournal(
                f"{path} is damaged", "it holds no number", "restore it, or rejoin this head"
            ) from None

    def _fd(self, ino: int, make: bool = True) -> int:
        fd = self._open.get(ino)
        if fd is not None:
            self._open.move_to_end(ino)
            return fd
        while len(self._open) >= FILES_OPEN_MAX:
            os.close(self._open.popitem(last=False)[1])
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        fd = self._open[ino] = os.open(self.path(ino), flags, 0o600)
        return fd

    def _allocate(self, change: Allocated) -> None:
        fd = self._fd(change.ino)
        self._dirty[change.ino] = True
        mode = _KEEP_SIZE | _PUNCH_HOLE if change.punch else _KEEP_SIZE
        if _libc.fallocate(fd, mode, change.offset, change.length):
            number = ctypes.get_errno()
            if number not in (errno.EOPNOTSUPP, errno.ENOSPC):
                raise OSError(number, os.strerror(number), str(self.path(change.ino)))
            if change.punch:  # a disk without holes: the zeros have to be written
                _zero(fd, change.offset, min(change.length, change.size - change.offset))
        if os.fstat(fd).st_size < change.size:
            with suppress(FileNotFoundError):
                os.ftruncate(fd, change.size)


def redo(fd: int, change: Change, upto: int) -> None:
    """Do what a change does to the bytes of one file, up to so many."""
    match change:
        case Wrote() if change.offset < upto:
            _write(fd, change.data[: upto - change.offset], change.offset)
        case Changed() if change.size is not None:
            os.ftruncate(fd, min(change.size, upto))
        case Allocated() if change.punch:
            _zero(fd, change.offset, min(change.length, change.size - change.offset, upto - change.offset))


def _zero(fd: int, offset: int, length: int) -> None:
    while length > 0:
        size = min(length, COPY_MAX_BYTES)
        _write(fd, bytes(size), offset)
        offset, length = offset + size, length - size


def object_path(folder: Path, ino: int) -> Path:
    """Return where an inode's bytes are in a folder of objects."""
    return folder / f"{ino % FOLDERS:02x}" / str(ino)


def _write(fd: int, data: bytes, offset: int) -> None:
    """Write all of it: a disk that fills takes a part first."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
