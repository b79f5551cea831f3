"""A machine's files, put together from archives and folders, and written as a tar stream or as an initrd.

Nothing is unpacked and nothing is run: who assembles needs no root, and what comes out depends on what went in alone.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from beo.errors import UsageError

LINKS_MAX = 40  # followed on one way, like the kernel's limit


class Source(NamedTuple):
    """Where the data of a file is."""

    file: BinaryIO | None
    offset: int
    data: bytes = b""
    path: Path | None = None

    def pieces(self, size_bytes: int) -> Iterator[bytes]:
        """The data."""
        if self.file is not None:
            at = self.offset
            while at < self.offset + size_bytes:
                piece = os.pread(self.file.fileno(), min(1 << 20, self.offset + size_bytes - at), at)
                if not piece:
                    raise UsageError("an archive has changed while it was read", "", "try again")
                at += len(piece)
                yield piece
        elif self.path is not None:
            yield self.path.read_bytes()
        else:
            yield self.data


class Files:
    """The files of a machine, by their paths without a leading slash; what is added later takes a path's place."""

    def __init__(self, epoch_s: int) -> None:
        """Begin with none. epoch_s: no file is younger."""
        self._epoch_s = epoch_s
        self._members: dict[str, tuple[tarfile.TarInfo, Source]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> list[str]:
        """All paths, in order."""
        return sorted(self._members)

    def member(self, name: str) -> tarfile.TarInfo:
        """What is said of a path."""
        return self._members[name][0]

    def read(self, name: str) -> bytes:
        """The data of a file; a symbolic link is followed within these files. Raises KeyError."""
        info, source = self._members[self.resolve(name)]
        return b"".join(source.pieces(info.size))

    def resolve(self, name: str) -> str:
        """The path to which all links on the way lead; raises KeyError where there is nothing."""
        left, at = [part for part in name.split("/") if part], ""
        for _ in range(LINKS_MAX):
            while left:
                part = left.pop(0)
                at = posixpath.normpath(posixpath.join(at, part)) if part != ".." else posixpath.dirname(at)
                at = "" if at == "." else at
                found = self._members.get(at)
                if found and found[0].issym():
                    target = found[0].linkname
                    left = [*(piece for piece in target.split("/") if piece and piece != "."), *left]
                    at = "" if target.startswith("/") else posixpath.dirname(at)
                    break
            else:
                seen = {at}
                while (info := self._members[at][0]).islnk() and info.linkname not in seen:
                    at = info.linkname
                    seen.add(at)
                return at
        raise KeyError(name)

    def is_file(self, name: str) -> bool:
        """Whether a path, or what its links lead to, is a file."""
        try:
            return self._members[self.resolve(name)][0].isreg()
        except KeyError:
            return False

    # ---- adding

    def add(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        info = self._info(name, tarfile.REGTYPE, mode)
        info.size = len(data)
        self._put(info, Source(None, 0, data))

    def add_path(self, name: str, path: Path, mode: int = 0o644) -> None:
        """Add a file of this machine."""
        info = self._info(name, tarfile.REGTYPE, mode)
        info.size = path.stat().st_size
        self._put(info, Source(None, 0, b"", path))

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        info = self._info(name, tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._put(info, Source(None, 0))

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder, unless it is there."""
        if name not in self._members or not self._members[name][0].isdir():
            self._put(self._info(name, tarfile.DIRTYPE, mode), Source(None, 0))

    def node(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        info = self._info(name, tarfile.CHRTYPE, mode)
        info.devmajor, info.devminor = major, minor
        self._put(info, Source(None, 0))

    def take(self, info: tarfile.TarInfo, file: BinaryIO) -> None:
        """Add a member of an uncompressed archive, which stays open until all is written."""
        name = clean(info.name)
        if not name:
            return
        one = self._info(
            name, info.type if info.type != tarfile.GNUTYPE_SPARSE else tarfile.REGTYPE, info.mode & 0o7777
        )
        one.uid, one.gid, one.mtime = info.uid, info.gid, min(int(info.mtime), self._epoch_s)
        one.devmajor, one.devminor = info.devmajor, info.devminor
        if info.isreg():
            one.type, one.size = tarfile.REGTYPE, info.size
        elif info.islnk():
            one.linkname = clean(info.linkname)
        elif info.issym():
            one.linkname = info.linkname
        caps = {key: value for key, value in info.pax_headers.items() if key.startswith("SCHILY.xattr.")}
        one.pax_headers = caps
        self._put(one, Source(file, info.offset_data) if info.isreg() else Source(None, 0))

    def take_archive(self, file: BinaryIO) -> None:
        """Add all members of an uncompressed tar archive."""
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                self.take(info, file)

    def drop(self, name: str) -> None:
        """Take a path away, with all below it."""
        inside = f"{name}/"
        for other in [other for other in self._members if other == name or other.startswith(inside)]:
            del self._members[other]

    def drop_inside(self, name: str) -> None:
        """Take away all that is below a folder."""
        inside = f"{name}/" if name else ""
        for other in [other for other in self._members if other.startswith(inside)]:
            del self._members[other]

    def _info(self, name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.mtime = kind, mode, self._epoch_s
        return info

    def _put(self, info: tarfile.TarInfo, source: Source) -> None:
        """A path's folders are made, and where links stand in its way they are followed, as unpacking would."""
        parent, _, last = info.name.rpartition("/")
        if parent:
            parent = self._open(parent)
            info.name = f"{parent}/{last}" if parent else last
        old = self._members.get(info.name)
        if old and info.isdir() and old[0].issym():
            return  # a folder in the place of a link to one: /lib where /usr/lib is meant
        if old and old[0].isdir() and not info.isdir():
            self.drop(info.name)
        self._members[info.name] = info, source

    def _open(self, parent: str) -> str:
        at = ""
        for part in parent.split("/"):
            at = f"{at}/{part}" if at else part
            for _ in range(LINKS_MAX):
                found = self._members.get(at)
                if found is None:
                    self._members[at] = self._info(at, tarfile.DIRTYPE, 0o755), Source(None, 0)
                elif found[0].issym():
                    target = found[0].linkname
                    joined = (
                        target.lstrip("/") if target.startswith("/") else posixpath.join(posixpath.dirname(at), target)
                    )
                    at = clean(joined)
                    if at and at not in self._members:
                        at = self._open(at)
                    if not at:
                        break
                    continue
                elif not found[0].isdir():
                    self._members[at] = self._info(at, tarfile.DIRTYPE, 0o755), Source(None, 0)
                break
            else:
                raise UsageError(f"{parent} leads in a circle", "its links follow each other", "mend the archive")
        return at

    # ---- writing

    def write_tar(self, out: BinaryIO) -> None:
        """Write them as a tar archive: in the order of names, and each folder before what is in it.

        A hard link whose file is gone is left out; one that comes before its file is written as the file.
        """
        written: dict[str, str] = {}
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for name in self.names():
                info, source = self._members[name]
                if info.islnk():
                    target = info.linkname
                    try:
                        target = self.resolve(target)
                    except KeyError:
                        continue
                    first = written.get(target)
                    if first is None:
                        body, source = self._members[target]
                        written[target] = name
                        whole = self._info(name, tarfile.REGTYPE, body.mode)
                        whole.uid, whole.gid, whole.mtime, whole.size = body.uid, body.gid, body.mtime, body.size
                        whole.pax_headers = body.pax_headers
                        archive.addfile(whole, _Reader(source.pieces(body.size)))
                    else:
                        archive.addfile(self._hard_link(info, first))
                elif info.isreg():
                    first = written.setdefault(name, name)
                    if first != name:  # a hard link came before it
                        archive.addfile(self._hard_link(info, first))
                    else:
                        archive.addfile(info, _Reader(source.pieces(info.size)))
                else:
                    archive.addfile(info)

    def _hard_link(self, info: tarfile.TarInfo, first: str) -> tarfile.TarInfo:
        again = self._info(info.name, tarfile.LNKTYPE, info.mode)
        again.linkname = first
        return again

    def write_cpio(self, out: BinaryIO) -> None:
        """Write them as the kernel wants an initrd: a cpio archive of the form "newc"."""
        for number, name in enumerate([*self.names(), "TRAILER!!!"], 1):
            if name == "TRAILER!!!":
                info, data = tarfile.TarInfo(name), b""
                mode = 0
            else:
                info, source = self._members[name]
                data = info.linkname.encode() if info.issym() else b"".join(source.pieces(info.size))
                mode = info.mode | _CPIO_TYPES[info.type]
            raw = name.encode() + b"\0"
            fields = [number, mode, info.uid, info.gid, 2 if info.isdir() else 1, int(info.mtime), len(data)]
            fields += [0, 0, info.devmajor, info.devminor, len(raw), 0]
            head = b"070701" + b"".join(b"%08x" % field for field in fields) + raw
            out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))


_CPIO_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
}


class _Reader(io.RawIOBase):
    """Pieces as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size or size < 0:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self._rest += piece
        size = len(self._rest) if size < 0 else size
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def clean(name: str) -> str:
    """A path as it is kept: without a leading slash or dots; raises UsageError where it leads out of the root."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise UsageError(f"an archive has the path {name[:200]!r}", "it leads out of it", "don't use that archive")
    found = posixpath.normpath("/".join(parts)) if parts else ""
    return "" if found == "." else found
