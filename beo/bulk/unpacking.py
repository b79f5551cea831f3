"""Puts a bundle's files into a folder, as its chunks come, in any order.

It writes as whoever runs it, and only below that folder: a manifest that was checked names nothing else, and no link of
it is ever followed. What it has not finished is of no use and must be taken away as a whole.
"""

from __future__ import annotations

import os

from beo.bulk.chunks import Damaged, Folder, Link, Manifest, Placement, check, placements

_NEW = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Unpacking:
    """One bundle on its way into a folder that is there and empty. Every method raises OSError as the disk does."""

    def __init__(self, manifest: Manifest, folder: str) -> None:
        """Make its folders, links and empty files. Raises Damaged for a manifest that contradicts itself."""
        self._manifest = manifest
        self._top = os.fsencode(folder)
        self._places: dict[str, list[Placement]] = {}
        self._sizes: dict[str, int] = {}
        for chunk, places in zip(manifest.chunks, placements(manifest), strict=True):
            name = chunk.name.hex()
            self._places.setdefault(name, []).extend(places)
            if self._sizes.setdefault(name, chunk.size) != chunk.size:
                raise Damaged(f"chunk {name[:12]}… has two sizes")
        for entry in manifest.entries:
            if isinstance(entry, Folder):
                os.mkdir(self._at(entry.path), 0o700)
            elif isinstance(entry, Link):
                os.symlink(entry.target, self._at(entry.path))
            elif not entry.size:
                os.close(os.open(self._at(entry.path), _NEW | os.O_EXCL, 0o600))

    @property
    def missing(self) -> list[str]:
        """The names of the chunks that are needed still."""
        return list(self._places)

    def take(self, name: str, data: bytes) -> None:
        """Take a chunk; raises Damaged where its bytes are others than its name says."""
        places = self._places[name]
        check(name, data)
        if len(data) != self._sizes[name]:
            raise Damaged(f"chunk {name[:12]}… has another size than its manifest says")
        view = memoryview(data)
        for place in places:
            fd = os.open(self._at(place.file.path), _NEW, 0o600)
            try:
                rest, at = view[place.start : place.start + place.size], place.offset
                while rest:
                    written = os.pwrite(fd, rest, at)
                    rest, at = rest[written:], at + written
            finally:
                os.close(fd)
        del self._places[name]

    def finish(self) -> None:
        """Everything was taken: set modes and times, those of a folder when all below it has its own."""
        assert not self._places
        for entry in reversed(self._manifest.entries):
            if isinstance(entry, Link):
                continue
            path = self._at(entry.path)
            os.chmod(path, entry.mode)
            os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._top, path)
