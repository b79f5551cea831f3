"""What a head had in its journal and the cluster does not: put aside before it is cut off, one JSON line per entry.

A folder `head/orphans/` with a file per cut, named by the first and last index and the last entry's hash, so that the
same cut never gives two files. At levels B and C nothing of it was ever acknowledged; at level A it may have been.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from beo import events
from beo.entries import Entry
from beo.errors import BeoError, reason

FILES_MAX = 1_000  # more cuts than a cluster sees in its life; beyond, the oldest goes
FILE_MAX_BYTES = 256 << 20  # of one file that is read back


class Orphan(msgspec.Struct, frozen=True):
    """One entry: where it stood, when it was put aside, what kind of event it is, and its bytes in base64."""

    index: int
    epoch: int
    time_s: float
    kind: str
    data: str

    @property
    def event(self) -> events.Event:
        """The event itself. Raises msgspec.DecodeError for bytes that are none."""
        return events.decode(base64.b64decode(self.data))


_lines = msgspec.json.Decoder(Orphan)


def encode(entries: Iterable[Entry], time_s: float) -> bytes:
    """Return the lines for these entries."""
    lines = []
    for entry in entries:
        try:
            kind = type(events.decode(entry.data)).__name__
        except msgspec.DecodeError:  # of a later beo: kept all the same
            kind = "?"
        orphan = Orphan(entry.index, entry.epoch, time_s, kind, base64.b64encode(entry.data).decode())
        lines.append(msgspec.json.encode(orphan) + b"\n")
    return b"".join(lines)


def decode(text: bytes) -> Iterator[Orphan]:
    """Yield what the lines hold; raises ValueError at the first that holds none. A last line cut short is left out."""
    *lines, last = text.split(b"\n")
    for line in [*lines, last] if last and last.endswith(b"}") else lines:
        yield _lines.decode(line)


def put_aside(folder: Path, entries: Sequence[Entry], time_s: float) -> None:
    """Keep these entries in a file of their own, durably, before they are cut off. Raises OSError."""
    if not entries:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"{entries[0].index:012d}-{entries[-1].index:012d}-{entries[-1].hash.hex()[:12]}.jsonl"
    new = folder / f".{name}.new"
    with new.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(encode(entries, time_s))
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / name)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    for old in files(folder)[:-FILES_MAX]:
        with suppress(OSError):
            old.unlink()


def files(folder: Path) -> list[Path]:
    """Return the files of a folder, the oldest first; none where there is no folder."""
    with suppress(OSError):
        return sorted(folder.glob("*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return []


def read(path: Path) -> list[Orphan]:
    """Return what a file holds. Raises BeoError where it can't be read or is none of ours."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise ValueError(f"it has more than {FILE_MAX_BYTES >> 20} MiB")
        return list(decode(path.read_bytes()))
    except (OSError, ValueError) as error:  # of msgspec, too
        raise BeoError(f"{path} can't be read", reason(error), "move it aside") from None


class Count:
    """How many entries were put aside and not submitted again; counted anew only where the folder has changed."""

    def __init__(self, folder: Path, count: Callable[[Path], int]) -> None:
        """Take the folder, which need not be there; count(folder) counts."""
        self._folder = folder
        self._counts = count
        self._seen_ns = 0
        self._count = 0

    def now(self) -> int:
        """Return the number."""
        try:
            seen_ns = self._folder.stat().st_mtime_ns
        except OSError:
            return 0
        if seen_ns != self._seen_ns:
            self._seen_ns, self._count = seen_ns, self._counts(self._folder)
        return self._count


def count(folder: Path) -> int:
    """Return how many entries were put aside, as far as their files can be read."""
    total = 0
    for path in files(folder):
        with suppress(OSError), path.open("rb") as file:
            total += sum(1 for _ in file)
    return total
