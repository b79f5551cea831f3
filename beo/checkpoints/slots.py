"""The files of one node's checkpoints: two slots, overwritten in turn and in place.

    a/00003.image  a/00003.parity  a/00003.manifest      of rank 3 of the checkpoint in slot a; the same in slot b

Pages of memory that are there already are written to nearly twice as fast as new ones, so a file keeps its size and its
place, and stays mapped. It is made as long as needed before it is mapped: a full file system is then an error here, not
a signal in the middle of a copy. A manifest is removed before its slot is touched, and written under another name when
its rank has written all; it is *sealed*, by a rename, when all ranks have written theirs. So one sealed manifest proves
that its whole checkpoint was written, and that those are good too that a crash left unsealed.
Whatever is in the folder may have been put there by anybody: neither a link nor a pipe stands in for a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from beo.checkpoints.manifest import MANIFEST_MAX_BYTES, Manifest, Spoilt, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from beo.checkpoints.parity import Bytes

SLOTS = ("a", "b")
SEALED, WRITTEN = "manifest", "new"  # the two names of a manifest
_NAME = re.compile(r"(\d{5,7})\.(manifest|new)")
_OURS = re.compile(r"(\d{5,7})\.(image|parity|manifest|new)")  # whoever names a folder may have files there
_SAFE = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class _Mapped:
    """A file's bytes, and which file it is: another one may have its name by now."""

    data: Bytes
    device: int
    inode: int

    def is_of(self, found: os.stat_result) -> bool:
        return found.st_size == len(self.data) and (found.st_dev, found.st_ino) == (self.device, self.inode)


class Slots:
    """The two slots in a folder, as one process sees them."""

    def __init__(self, folder: Path) -> None:
        """Make what is missing. OSError where it can't be made."""
        self.folder = folder
        for slot in SLOTS:
            (folder / slot).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._maps: dict[Path, _Mapped] = {}
        self._locks: dict[str, int] = {}

    def lock(self, slot: str) -> bool:
        """Keep everybody else from reading a slot that is about to change; False where somebody reads it just now.

        That is who copies it to the head (beo/bulk/keeper.py), which takes longer than to write it.
        """
        if slot in self._locks:
            return True
        fd = os.open(self.folder / slot, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._locks[slot] = fd
        return True

    def unlock(self) -> None:
        """Let everybody read again."""
        while self._locks:
            os.close(self._locks.popitem()[1])

    def path(self, slot: str, rank: int, what: str) -> Path:
        """Where the image, the parity or the manifest of a rank lies."""
        return self.folder / slot / f"{rank:05d}.{what}"

    def make(self, slot: str, rank: int, kind: str, size: int) -> Bytes:
        """Return the bytes of a file, of this size, to be written to. OSError where there is no room for it."""
        path = self.path(slot, rank, kind)
        known = self._maps.pop(path, None)
        with contextlib.suppress(OSError):
            if known and len(known.data) == size and known.is_of(path.lstat()):
                self._maps[path] = known
                return known.data
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o600)
        try:
            if size < os.fstat(fd).st_size:
                os.ftruncate(fd, size)
            if size:
                os.posix_fallocate(fd, 0, size)  # of a file that is long enough too: it may have holes
            return self._map(path, fd, size, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)

    def find(self, slot: str, rank: int, kind: str, size: int) -> Bytes | None:
        """Return the bytes of a file that must have this size; None where there is no such."""
        path = self.path(slot, rank, kind)
        try:
            fd = os.open(path, os.O_RDWR | _SAFE)
        except OSError:
            return None
        try:
            found = os.fstat(fd)
            if found.st_size != size or not stat.S_ISREG(found.st_mode):
                return None
            known = self._maps.get(path)
            if known and known.is_of(found):
                return known.data
            return self._map(path, fd, size, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)

    def _map(self, path: Path, fd: int, size: int, access: int) -> Bytes:
        import numpy as np  # a third of what it takes to begin: who only reads manifests does without

        if not size:
            return np.empty(0, np.uint8)
        mapped = mmap.mmap(fd, size, prot=access)
        told = os.fstat(fd)
        found = np.frombuffer(mapped, np.uint8)
        self._maps[path] = _Mapped(found, told.st_dev, told.st_ino)
        return found

    def clear(self, slot: str, rank: int) -> None:
        """Take a rank's manifest away: what is beside it counts no more. OSError where it stays."""
        for name in (SEALED, WRITTEN):
            self.path(slot, rank, name).unlink(missing_ok=True)

    def write(self, manifest: Manifest) -> None:
        """Write a manifest that isn't sealed yet. OSError where there is no room for it."""
        path = self.path(manifest.whole.slot, manifest.rank, WRITTEN)
        path.unlink(missing_ok=True)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600)
            with open(fd, "wb") as file:
                file.write(encode(manifest))
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def seal(self, slot: str, rank: int) -> None:
        """Seal what was written. OSError where it isn't there."""
        self.path(slot, rank, WRITTEN).rename(self.path(slot, rank, SEALED))

    def manifests(self) -> list[tuple[Manifest, bool]]:
        """Return all that can be read, each with whether it is sealed."""
        return [(manifest, path.suffix == f".{SEALED}") for path, manifest, _ in self.contents()]

    def contents(self) -> list[tuple[Path, Manifest, bytes]]:
        """Return the same, each with its path and its bytes."""
        found = []
        for slot in SLOTS:
            for path in sorted((self.folder / slot).iterdir()):
                match = _NAME.fullmatch(path.name)
                if match:
                    with contextlib.suppress(OSError, Spoilt):
                        data = _content(path)
                        manifest = decode(data)
                        if self.path(slot, manifest.rank, match[2]) == path and manifest.whole.slot == slot:
                            found.append((path, manifest, data))
        return found

    def keep_only(self, name: str) -> None:
        """Seal the manifests of the checkpoint of this name, and remove all others. Raises OSError."""
        for manifest, sealed in self.manifests():
            slot = manifest.whole.slot
            if manifest.whole.name == name:
                if not sealed:
                    self.seal(slot, manifest.rank)
            else:
                self.path(slot, manifest.rank, SEALED if sealed else WRITTEN).unlink(missing_ok=True)

    def drop_others(self, slot: str, ranks: set[int]) -> None:
        """Remove the files of other ranks than these from a slot, to have their memory back."""
        for path in (self.folder / slot).iterdir():
            match = _OURS.fullmatch(path.name)
            if match and int(match[1]) not in ranks:
                path.unlink(missing_ok=True)
                self._maps.pop(path, None)

    def remove(self) -> None:
        """Remove everything that is ours: there is no checkpoint any more."""
        self._maps.clear()
        for slot in SLOTS:
            for path in (self.folder / slot).iterdir():
                if _OURS.fullmatch(path.name):
                    path.unlink(missing_ok=True)


def places(folder: Path) -> list[Path]:
    """Return the folders of programs in a job's folder: each has two slots."""
    found = (path for path in (folder, *sorted(folder.iterdir())) if path.is_dir() and not path.is_symlink())
    return [path for path in found if all((path / slot).is_dir() for slot in SLOTS)]


def _content(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | _SAFE)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Spoilt("it is no file")
        data = file.read(MANIFEST_MAX_BYTES + 1)
    if len(data) > MANIFEST_MAX_BYTES:
        raise Spoilt("it is too long")
    return data
