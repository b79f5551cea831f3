"""The files of one node's checkpoints: two slots, overwritten in turn and in place.

    a/00003.image  a/00003.parity  a/00003.manifest      of rank 3 of the checkpoint in slot a; the same in slot b

Pages of memory that are there already are written to nearly twice as fast as new ones, so a file keeps its size and its
place, and stays mapped. It is made as long as needed before it is mapped: a full file system is then an error here, not
a signal in the middle of a copy. A manifest is removed before its slot is touched and comes back, by a rename, when all
ranks have written all; so what has a manifest is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
from pathlib import Path

import numpy as np

from beo.checkpoints.manifest import MANIFEST_MAX_BYTES, Manifest, Spoilt, decode, encode
from beo.checkpoints.parity import Bytes
from beo.checkpoints.plan import IMAGE

SLOTS = ("a", "b")
_NAME = re.compile(r"(\d{5,})\.manifest")


class Slots:
    """The two slots in a folder, as one process sees them."""

    def __init__(self, folder: Path) -> None:
        """Make what is missing. OSError where it can't be made."""
        self.folder = folder
        for slot in SLOTS:
            (folder / slot).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._maps: dict[Path, tuple[mmap.mmap, Bytes]] = {}
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
        known = self._maps.get(path)
        if known and len(known[1]) == size and path.exists() and path.stat().st_size == size:
            return known[1]
        self._maps.pop(path, None)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if size < os.fstat(fd).st_size:
                os.ftruncate(fd, size)
            elif size:
                os.posix_fallocate(fd, 0, size)
            return self._map(path, fd, size, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)

    def find(self, slot: str, rank: int, kind: str, size: int) -> Bytes | None:
        """Return the bytes of a file that must have this size; None where there is no such."""
        path = self.path(slot, rank, kind)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_size != size:
                return None
            known = self._maps.get(path)
            return known[1] if known else self._map(path, fd, size, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)

    def _map(self, path: Path, fd: int, size: int, access: int) -> Bytes:
        if not size:
            return np.empty(0, np.uint8)
        mapped = mmap.mmap(fd, size, prot=access)
        found = np.frombuffer(mapped, np.uint8)
        self._maps[path] = mapped, found
        return found

    def clear(self, slot: str, rank: int) -> None:
        """Take a rank's manifest away: what is beside it counts no more."""
        self.path(slot, rank, "manifest").unlink(missing_ok=True)

    def seal(self, manifest: Manifest) -> None:
        """Write a manifest, at last. OSError where there is no room for it."""
        path = self.path(manifest.whole.slot, manifest.rank, "manifest")
        new = path.with_suffix(".new")
        try:
            new.write_bytes(encode(manifest))
            new.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def manifests(self) -> list[Manifest]:
        """Return all that can be read; each of a rank whose files have the right sizes."""
        found = []
        for slot in SLOTS:
            for path in sorted((self.folder / slot).glob("*.manifest")):
                with contextlib.suppress(OSError, Spoilt):
                    if path.stat().st_size > MANIFEST_MAX_BYTES:
                        continue
                    manifest = decode(path.read_bytes())
                    match = _NAME.fullmatch(path.name)
                    if match and int(match[1]) == manifest.rank and manifest.whole.slot == slot:
                        found.append(manifest)
        return found

    def keep_only(self, name: str) -> None:
        """Remove all manifests but those of the checkpoint of this name."""
        for manifest in self.manifests():
            if manifest.whole.name != name:
                self.clear(manifest.whole.slot, manifest.rank)

    def drop_others(self, slot: str, ranks: set[int]) -> None:
        """Remove the files of other ranks than these from a slot, to have their memory back."""
        for path in (self.folder / slot).iterdir():
            stem = path.name.partition(".")[0]
            if not stem.isdigit() or int(stem) not in ranks:
                path.unlink(missing_ok=True)
                self._maps.pop(path, None)

    def remove(self) -> None:
        """Remove everything: there is no checkpoint any more."""
        self._maps.clear()
        for slot in SLOTS:
            for path in (self.folder / slot).iterdir():
                path.unlink(missing_ok=True)


def wanted(manifest: Manifest, kind: str) -> bool:
    """Whether a manifest says that its image or its parity is here."""
    return manifest.has_image if kind == IMAGE else manifest.has_parity
