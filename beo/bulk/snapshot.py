"""Takes the files that a job is to have along, as they are now: reads them and cuts them into chunks.

What changes while it is read is read again, and refused if it doesn't stop changing: half of the one and half of the
other state of a file is nobody's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Sequence
from io import FileIO

from beo.bulk.chunks import (
    BUNDLE_MAX_BYTES,
    FILES_MAX,
    PACKED_MAX_BYTES,
    PATH_MAX_BYTES,
    PERMISSIONS,
    Chunk,
    Cut,
    Cutter,
    Folder,
    Link,
    chunk_of,
    leads_out,
    pieces,
    shown,
)
from beo.bulk.words import CHUNK_MAX_BYTES
from beo.errors import BeoError, Conflict, NotFound, Refused, UsageError
from beo.units import format_size

READ_BYTES = CHUNK_MAX_BYTES  # at a time
TRIES = 3  # to read a file that changes meanwhile

_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class Rules:
    """Which files are taken, by their paths, and what is known of them before they are read: here all, and nothing."""

    def takes(self, path: bytes) -> bool:
        """Whether a file is taken."""
        return True

    def chunks(self, path: bytes, size: int) -> Sequence[Chunk]:
        """Return the chunks that a file is known to have, so that it isn't read; () where it must be."""
        return ()

    def is_good(self, path: bytes, start: int, data: bytes) -> bool:
        """Whether these bytes of a file, from `start` on, are what they must be; else nothing of it is taken."""
        return True


class Snapshot:
    """What is named by `inputs`, relative to the folder `cwd`. Raises BeoError that names what can't be taken.

    What is within `cwd` keeps its path, what is outside comes in by its last name. A link that is named itself stands
    for what it leads to; others are kept as links. files, size_bytes: how much it is, known once `cuts` has ended.
    """

    def __init__(self, inputs: Sequence[str], cwd: str, rules: Rules | None = None) -> None:
        """Look at all there is; nothing is read yet."""
        self._rules = rules or Rules()
        self._cwd = os.fsencode(os.path.abspath(cwd))
        self._found: dict[bytes, tuple[bytes, os.stat_result]] = {}  # path -> source, what it is
        self._links: dict[bytes, bytes] = {}
        self._named: dict[bytes, str] = {}
        self.files = 0
        self.size_bytes = 0
        self.bundle = ""
        # The deepest first: what is named stands for what it leads to, also where a folder above is taken as a whole.
        for text in sorted(inputs, key=lambda text: -self._place(text)[0].count(b"/") - bool(self._place(text)[0])):
            self._name(text)
        for path in self._links:
            if leads_out(self._links, path):
                target = os.fsdecode(self._links[path])
                raise UsageError(
                    f"the link {shown(self._found[path][0])} leads out of what is taken along",
                    f"to {target}",
                    "name what it leads to with --in instead, or take it away",
                )

    def _place(self, text: str) -> tuple[bytes, bytes]:
        """Where a named file goes, and where it is; the first is empty for `cwd` itself."""
        source = os.path.normpath(os.path.join(self._cwd, os.fsencode(text)))
        path = os.path.relpath(source, self._cwd)
        if path.split(b"/")[0] == b"..":
            path = os.path.basename(source)
            if not path:
                raise UsageError(f"--in {text}: that is the whole machine", "", "name what the job needs")
        return (b"" if path == b"." else path), source

    def _name(self, text: str) -> None:
        path, source = self._place(text)
        other = self._named.get(path)
        if other is not None and self._place(other)[1] != source:
            why = "what is outside this folder comes in under its last name"
            raise UsageError(f"{other} and {text} would both be {shown(path)}", why, "rename one of them")
        self._named[path] = text
        try:
            known = os.stat(source)
        except OSError as error:
            raise _told(error, source, f"--in {text}") from None
        above = path.rpartition(b"/")[0]
        steps = above.split(b"/") if above else []
        for number in range(len(steps)):
            folder = b"/".join(steps[: number + 1])
            self._take(folder, os.path.join(self._cwd, folder), os.stat(os.path.join(self._cwd, folder)))
        if path:
            self._take(path, source, known)
        if stat.S_ISDIR(known.st_mode):
            self._walk(path, source)

    def _walk(self, path: bytes, source: bytes) -> None:
        ahead = [(path, source)]
        while ahead:
            folder, at = ahead.pop()
            try:
                with os.scandir(at) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
                for entry in entries:
                    below = folder + b"/" + entry.name if folder else entry.name
                    known = entry.stat(follow_symlinks=False)
                    self._take(below, entry.path, known)
                    if stat.S_ISDIR(known.st_mode):
                        ahead.append((below, entry.path))
            except OSError as error:
                raise _told(error, at, shown(at)) from None

    def _take(self, path: bytes, source: bytes, known: os.stat_result) -> None:
        if path in self._found or (stat.S_ISREG(known.st_mode) and not self._rules.takes(path)):
            return
        kind = _KINDS.get(stat.S_IFMT(known.st_mode))
        if kind:
            why = "only files, folders and symbolic links can be taken along"
            raise UsageError(f"{shown(source)} is {kind}", why, "take it away, or name with --in what the job needs")
        if len(path) > PATH_MAX_BYTES:
            raise UsageError(f"{shown(path)}… is too long a path", f"the limit is {PATH_MAX_BYTES} bytes", "shorten it")
        self._found[path] = source, known
        if stat.S_ISLNK(known.st_mode):
            self._links[path] = os.readlink(source)
        elif stat.S_ISREG(known.st_mode):
            self.size_bytes += known.st_size
        if len(self._found) > FILES_MAX:
            cure = "name with --in what the job needs, or put them into one archive"
            raise UsageError("the inputs are too many files", f"the limit is {FILES_MAX} of one job", cure)
        if self.size_bytes > BUNDLE_MAX_BYTES:
            cure = "put them into the tree once ('beo put'), and let jobs read them there"
            raise UsageError(
                "the inputs are too large", f"the limit is {format_size(BUNDLE_MAX_BYTES)} of one job", cure
            )

    def cuts(self) -> Iterator[Cut]:
        """Read everything; yield its chunks. When all are yielded, `bundle` has the bundle's name."""
        cutter = Cutter()
        size = 0
        for path in sorted(self._found, key=lambda path: path.split(b"/")):
            source, known = self._found[path]
            if stat.S_ISLNK(known.st_mode):
                cutter.add(Link(path, self._links[path]))
            elif stat.S_ISDIR(known.st_mode):
                cutter.add(Folder(path, known.st_mode & PERMISSIONS, known.st_mtime_ns))
            elif chunks := self._rules.chunks(path, known.st_size):
                cutter.large(path, known.st_mode & PERMISSIONS, known.st_mtime_ns, chunks)
                size += known.st_size
            else:
                size += yield from _file(cutter, path, source, self._rules)
        for cut in cutter.finish():
            yield cut
            self.bundle = cut.name
        self.files, self.size_bytes = len(self._found), size


def _file(cutter: Cutter, path: bytes, source: bytes, rules: Rules) -> Generator[Cut, None, int]:
    """Read one file; returns its size, 0 where it isn't taken after all."""
    for _ in range(TRIES):
        try:
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe in its place would be waited for
        except OSError as error:
            raise _told(error, source, shown(source)) from None
        with open(fd, "rb", buffering=0) as file:
            before = os.fstat(fd)
            mode, mtime_ns = before.st_mode & PERMISSIONS, before.st_mtime_ns
            if not stat.S_ISREG(before.st_mode):
                continue
            try:
                if before.st_size <= PACKED_MAX_BYTES:
                    data = b"".join(_blocks(file, before.st_size))
                    if not rules.is_good(path, 0, data):
                        return 0
                    if _same(before, os.fstat(fd), len(data)):
                        yield from cutter.small(path, mode, mtime_ns, data)
                        return len(data)
                else:
                    chunks, size = [], 0
                    for cut in pieces(_blocks(file, before.st_size)):
                        if not rules.is_good(path, size, cut.data):
                            return 0
                        yield cut
                        chunks.append(chunk_of(cut))
                        size += len(cut.data)
                    if _same(before, os.fstat(fd), size):
                        cutter.large(path, mode, mtime_ns, chunks)
                        return size
            except OSError as error:
                raise _told(error, source, shown(source)) from None
    raise Conflict(f"{shown(source)} changes while it is read", "", "wait until it is written, and submit again")


def _blocks(file: FileIO, size: int) -> Iterator[bytes]:
    left = size
    while left > 0 and (block := file.read(min(READ_BYTES, left))):
        left -= len(block)
        yield block


def _same(before: os.stat_result, after: os.stat_result, size: int) -> bool:
    return size == before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns


def _told(error: OSError, source: bytes, what: str) -> BeoError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(what, f"there is no {shown(source)} (any more)", "look at its name, and submit again")
    if isinstance(error, PermissionError):
        return Refused(f"{what} can't be read", "permission denied", "chmod it, or leave it out")
    return Conflict(f"{what} can't be read", (error.strerror or str(error)).lower(), "look at that disk")
