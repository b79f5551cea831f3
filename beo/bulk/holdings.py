"""The chunks that a node holds, in a folder of bounded size: what was used last stays longest.

A chunk is written aside, and gets its name when its digest was verified. Nothing is synced: what a crash of the machine
spoils is noticed, since what an earlier process has left is verified when it is first wanted. For many threads; one
process at a time has a folder.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from beo.bulk.words import CHUNK_MAX_BYTES, DIGEST_BYTES, name_of, parts_of
from beo.errors import BeoError, reason

PART_OF_MEMORY = 10  # one tenth, where nothing else is set
READ_BYTES = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Full(BeoError):
    """What is in use leaves no room for another chunk."""


class Wrong(BeoError):
    """The bytes are not those that the name says."""


class Holdings:
    """The folder. Names are as in words.py."""

    def __init__(self, folder: Path, room_bytes: int) -> None:
        """Take the folder, made if it is missing; forget what an earlier process has left half. Raises BeoError."""
        self._held, self._aside = folder / "held", folder / "aside"
        self._room_bytes = max(room_bytes, 2 * CHUNK_MAX_BYTES)
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()  # what was used last stands last
        self._verified: dict[bytes, bool] = {}
        self._pins: dict[bytes, int] = {}
        self._used_bytes = self._coming_bytes = 0
        self._next = 1
        self._gained: dict[bytes, bool] = {}
        self._lost: dict[bytes, bool] = {}
        try:
            for made in (self._held, self._aside):
                made.mkdir(mode=0o700, parents=True, exist_ok=True)
            for entry in os.scandir(self._aside):
                os.unlink(entry.path)
            self._scan()
        except OSError as error:
            raise BeoError(f"can't use {folder}", reason(error), "make room or mend that disk") from None
        with self._lock:
            self._make_room(0)

    def _scan(self) -> None:
        found: list[tuple[int, bytes, int]] = []
        for user in os.scandir(self._held):
            for entry in os.scandir(user.path):
                try:
                    name = name_of(int(user.name), entry.name)
                except ValueError:
                    os.unlink(entry.path)
                    continue
                status = entry.stat()
                found.append((status.st_mtime_ns, name, status.st_size))
        for _, name, size in sorted(found):
            self._add(name, size)

    # ---- what is here

    def __contains__(self, name: bytes) -> bool:
        """Whether a chunk is here, as far as is known."""
        with self._lock:
            return name in self._sizes

    @property
    def used_bytes(self) -> int:
        """How much is taken, with what is being written."""
        return self._used_bytes + self._coming_bytes

    def names(self) -> list[bytes]:
        """Return what is here, what was used last standing last."""
        with self._lock:
            return list(self._sizes)

    def path(self, name: bytes) -> Path:
        """Return where a chunk is, or would be."""
        uid, text = parts_of(name)
        return self._held / str(uid) / text

    def open(self, name: bytes) -> int | None:
        """Return a descriptor of a chunk, to be closed by the caller; None where it isn't here, or is damaged."""
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
            is_verified = name in self._verified
        try:
            fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            self.forget(name)
            return None
        if is_verified or self._verify(name, fd):
            return fd
        os.close(fd)
        return None

    def has(self, name: bytes) -> bool:
        """Whether a chunk is here and is what its name says."""
        fd = self.open(name)
        if fd is None:
            return False
        os.close(fd)
        return True

    def doubt(self, name: bytes) -> None:
        """Somebody says that it is wrong: look again when it is wanted next."""
        with self._lock:
            self._verified.pop(name, None)

    def _verify(self, name: bytes, fd: int) -> bool:
        made, offset = blake2b(digest_size=DIGEST_BYTES), 0
        with suppress(OSError):  # a bad sector
            while piece := os.pread(fd, READ_BYTES, offset):
                made.update(piece)
                offset += len(piece)
        if made.digest() == parts_of_digest(name):
            with self._lock:
                if name in self._sizes:
                    self._verified[name] = True
            return True
        self.forget(name)
        return False

    # ---- what is in use

    def pin(self, name: bytes) -> bool:
        """Keep a chunk here until `unpin`; whether it is here."""
        with self._lock:
            if name not in self._sizes:
                return False
            self._pins[name] = self._pins.get(name, 0) + 1
            return True

    def unpin(self, name: bytes) -> None:
        """It is in use once less."""
        with self._lock:
            left = self._pins.pop(name) - 1
            if left:
                self._pins[name] = left

    # ---- what comes and goes

    def begin(self, name: bytes, size: int) -> Coming:
        """Make room for a chunk of at most so many bytes, and return what to write it into; raises Full or BeoError."""
        with self._lock:
            self._make_room(size)
            self._coming_bytes += size
            path = self._aside / f"{parts_of(name)[1][:16]}.{self._next}"
            self._next += 1
        try:
            return Coming(self, name, size, path)
        except OSError as error:
            self._release(size)
            raise BeoError(f"can't write {path}", reason(error), "make room or mend that disk") from None

    def forget(self, name: bytes) -> None:
        """Remove a chunk; who has it open can read on."""
        with self._lock:
            self._remove(name)

    def news(self) -> tuple[list[bytes], list[bytes]]:
        """Return what has come and gone since the last call: (gained, lost)."""
        with self._lock:
            news = list(self._gained), list(self._lost)
            self._gained.clear()
            self._lost.clear()
            return news

    def _add(self, name: bytes, size: int) -> None:
        self._used_bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size
        self._gained[name] = True
        self._lost.pop(name, None)

    def _remove(self, name: bytes) -> None:
        size = self._sizes.pop(name, None)
        if size is None:
            return
        self._used_bytes -= size
        self._verified.pop(name, None)
        self._gained.pop(name, None)
        self._lost[name] = True
        with suppress(OSError):
            self.path(name).unlink()

    def _make_room(self, size: int) -> None:
        in_use = sum(self._sizes[name] for name in self._pins) + self._coming_bytes
        if in_use + size > self._room_bytes:
            why = f"{in_use} bytes of {self._room_bytes} are in use"
            raise Full("no room for another chunk", why, "raise held_bytes_max in [files] of this node's beo.toml")
        for name in list(self._sizes):
            if self._used_bytes + self._coming_bytes + size <= self._room_bytes:
                return
            if name not in self._pins:
                self._remove(name)

    def _give_way(self, size: int) -> bool:
        """The disk is full: let go what was used longest ago, at least so much; whether there was something."""
        with self._lock:
            freed = 0
            for name in [name for name in self._sizes if name not in self._pins]:
                if freed >= size:
                    break
                freed += self._sizes[name]
                self._remove(name)
            return freed > 0

    def _release(self, size: int) -> None:
        with self._lock:
            self._coming_bytes -= size

    def _take(self, name: bytes, size: int, reserved: int, path: Path) -> None:
        """What was written aside gets its name."""
        with self._lock:
            self._coming_bytes -= reserved
            target = self.path(name)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            os.rename(path, target)
            self._add(name, size)
            self._verified[name] = True


class Coming:
    """A chunk on its way. Ends with `keep` or `drop`."""

    def __init__(self, holdings: Holdings, name: bytes, reserved: int, path: Path) -> None:
        """Make the file; raises OSError."""
        self._holdings, self._name, self._reserved, self._path = holdings, name, reserved, path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._digest = blake2b(digest_size=DIGEST_BYTES)
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes; raises Wrong where they are more than was said, BeoError where there is no room for them."""
        self._digest.update(data)
        view = memoryview(data)
        if self._size + len(view) > self._reserved:
            raise Wrong("more bytes than the chunk has", "", "")
        while view:
            try:
                done = os.write(self._fd, view)
            except OSError as error:
                if error.errno in _NO_ROOM and self._holdings._give_way(CHUNK_MAX_BYTES):
                    continue
                raise BeoError(f"can't write {self._path}", reason(error), "make room or mend that disk") from None
            view = view[done:]
            self._size += done

    def keep(self) -> None:
        """It is whole: give it its name; raises Wrong where it is another's."""
        if self._digest.digest() != parts_of_digest(self._name):
            self.drop()
            raise Wrong("the bytes of a chunk are not those that its name says", "", "")
        os.close(self._fd)
        try:
            self._holdings._take(self._name, self._size, self._reserved, self._path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(self._path)
            raise BeoError(f"can't name {self._path}", reason(error), "make room or mend that disk") from None

    def drop(self) -> None:
        """Forget it."""
        os.close(self._fd)
        with suppress(OSError):
            os.unlink(self._path)
        self._holdings._release(self._reserved)


def parts_of_digest(name: bytes) -> bytes:
    """Return the digest in a name."""
    return name[4:]
