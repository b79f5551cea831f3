"""Which files of a folder are a job's results: those that its patterns mean, and that are new or changed."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b

import msgspec

from beo.bulk.words import DIGEST_BYTES

WALKED_MAX = 1_000_000  # files that are looked at: more, and the folder is not the job's own
READ_BYTES = 1 << 20
_WILD = re.compile(r"[*?\[]")

Facts = tuple[int, int, int, int]  # inode, size, times of change (of its bytes, and of anything): nanoseconds
Listing = dict[bytes, Facts]

encode = msgspec.msgpack.encode
decode_listing = msgspec.msgpack.Decoder(dict[bytes, Facts]).decode
decode_digests = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode


class TooMany(ValueError):
    """There are too many files to look through; the text says where."""


def listing(folder: str, patterns: Sequence[str]) -> Listing:
    """Return what there is in a folder of what the patterns mean: files and symbolic links, by their relative paths.

    A pattern is as fnmatch has it, so that * stands for / too; what names a folder means all below it. Links are not
    followed. Raises OSError where the folder can't be read, TooMany.
    """
    top = os.fsencode(folder)
    found: Listing = {}
    meant = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
    walked = 0
    ahead: list[tuple[bytes, bool]] = [(start, False) for start in _starts(patterns)]
    while ahead:
        path, inside = ahead.pop()
        at = os.path.join(top, path) if path else top
        inside = inside or (bool(path) and _is_meant(path, meant))
        try:
            known = os.lstat(at)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if stat.S_ISDIR(known.st_mode):
            walked += 1
            with os.scandir(at) as entries:
                for entry in entries:
                    walked += 1
                    ahead.append((os.path.join(path, entry.name) if path else entry.name, inside))
            if walked > WALKED_MAX:
                raise TooMany(f"there are over {WALKED_MAX} files in {folder}: say with --out which folder it is")
        elif inside and (stat.S_ISREG(known.st_mode) or stat.S_ISLNK(known.st_mode)):
            found[path] = known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns
    return found


def _is_meant(path: bytes, meant: Sequence[re.Pattern[str]]) -> bool:
    text = os.fsdecode(path)
    return any(pattern.match(text) for pattern in meant)


def _starts(patterns: Sequence[str]) -> Iterator[bytes]:
    """Where to look: the folders before the first wildcard of each, none of them within another."""
    starts = []
    for pattern in patterns:
        plain = []
        for step in pattern.split("/"):
            if _WILD.search(step):
                break
            plain.append(step)
        starts.append(os.fsencode("/".join(plain)))
    for start in dict.fromkeys(starts):
        if not any(start != other and (not other or start.startswith(other + b"/")) for other in starts):
            yield start


def changed(before: Mapping[bytes, Facts], now: Mapping[bytes, Facts]) -> list[bytes]:
    """Return the paths of what is new or another than before, in order."""
    return sorted(path for path, facts in now.items() if before.get(path) != facts)


def digest(path: bytes) -> bytes:
    """Return what tells the contents of a file, or of a link, from any other. Raises OSError."""
    found = blake2b(digest_size=DIGEST_BYTES)
    if os.path.islink(path):
        found.update(b"link " + os.readlink(path))
        return found.digest()
    found.update(b"file ")
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb", buffering=0) as file:
        while block := file.read(READ_BYTES):
            found.update(block)
    return found.digest()


def names(mine: Mapping[bytes, bytes], earlier: Sequence[Mapping[bytes, bytes]], node: str) -> dict[bytes, bytes]:
    """Return under which names a node's files are kept, by their paths.

    mine: path -> digest. earlier: the same of the nodes before it: the first that has a path keeps the name. What is
    the same there is left out; what is another gets the node's name at its end.
    """
    kept = {}
    for path, own in mine.items():
        other = next((files[path] for files in earlier if path in files), None)
        if other is None:
            kept[path] = path
        elif other != own:
            kept[path] = path + b"." + node.encode()
    return kept
