"""The files of snapshots: beside the journal, one each, complete from the moment that one has its name.

A file is named after its entry and its CRC, `snapshot-INDEX-CRC`, so one name never means two contents. It holds a
header (magic with the format, index, epoch, rolling hash, length, CRC) and the state. It counts once the journal names
it; whatever the journal doesn't name is the rest of a failure, and is swept away.
"""

import os
import re
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from beo.entries import HASH_BYTES, Position, Snapshot, crc_of
from beo.errors import BeoError, DamagedJournal
from beo.mark import CURE_DAMAGE

STATE_LIMIT_BYTES: Final = 1 << 30  # a head that loads it holds it twice for a moment, next to what it decodes
CHUNK_BYTES: Final = 1 << 20  # written and synced in one go: an fsync of the journal never waits for much of it
SPACE_LEFT_MIN_BYTES: Final = (
    64 << 20
)  # of the disk: a snapshot can wait, a commit that meets a full disk ends the head

_MAGIC: Final = b"beosnap1"
_HEADER: Final = struct.Struct(f">8sQQ{HASH_BYTES}sQI")  # magic, index, epoch, hash, length of the state, CRC
_NAME: Final = re.compile(r"snapshot-\d+-[0-9a-f]{8}(\.\d+)?")  # with a process' number while it is being written


class Stamp(NamedTuple):
    """What tells one snapshot from all others: its position, and the CRC over that and the state."""

    position: Position
    crc: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"snapshot-{self.position.idx}-{self.crc:08x}"


def write(folder: Path, snapshot: Snapshot) -> Stamp:
    """Make the file of a snapshot, durably, and return its stamp; it has its name once it is complete.

    Raises BeoError if the state is over `STATE_LIMIT_BYTES` or the disk has not the room, and OSError where writing
    fails; then nothing is left.
    """
    index, epoch, hash, state = snapshot.index, snapshot.epoch, snapshot.hash, snapshot.state
    if len(state) > STATE_LIMIT_BYTES:
        what = f"a snapshot of {len(state) >> 20} MiB is too large for the journal"
        raise BeoError(what, f"the limit is {STATE_LIMIT_BYTES >> 20} MiB", "purge old jobs")
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < len(state) + SPACE_LEFT_MIN_BYTES:
        why = f"it takes {len(state) >> 20} MiB, and {SPACE_LEFT_MIN_BYTES >> 20} MiB are left for the journal itself"
        raise BeoError(f"{folder} has no room for a snapshot", why, "free some space there")
    stamp = Stamp(Position(index, epoch, hash), crc_of(index, epoch, hash, state))
    unfinished = folder / f"{stamp.name}.{os.getpid()}"
    unfinished.unlink(missing_ok=True)  # of a process that had this number before
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, memoryview(_HEADER.pack(_MAGIC, index, epoch, hash, len(state), stamp.crc)))
            for start in range(0, len(state), CHUNK_BYTES):
                _write_all(fd, memoryview(state)[start : start + CHUNK_BYTES])
                os.fdatasync(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        unfinished.rename(folder / stamp.name)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return stamp


def stamp_of(path: Path) -> Stamp:
    """Return what a snapshot's file says that it is, by its header alone; raises DamagedJournal where it says nothing.

    Raises OSError where it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        size_bytes = os.fstat(file.fileno()).st_size
    if len(header) == _HEADER.size and header.startswith(_MAGIC):
        _, index, epoch, hash, length, crc = _HEADER.unpack(header)
        if size_bytes == _HEADER.size + length:
            return Stamp(Position(index, epoch, hash), crc)
    raise DamagedJournal(f"{path} is damaged", "it is no whole snapshot of a journal", CURE_DAMAGE)


def check(path: Path, stamp: Stamp) -> None:
    """Read the file of a snapshot; raises DamagedJournal if it is missing, damaged, or another than `stamp`."""
    try:
        found = stamp_of(path)
        index, epoch, hash = stamp.position
        crc = crc_of(index, epoch, hash, b"")
        with path.open("rb") as file:
            file.seek(_HEADER.size)
            while chunk := file.read(CHUNK_BYTES):
                crc = zlib.crc32(chunk, crc)
    except OSError as error:
        raise DamagedJournal(f"{path} cannot be read", str(error), CURE_DAMAGE) from error
    except struct.error:  # a flipped bit in the stamp
        crc = -1
    if found != stamp or crc != stamp.crc:
        raise DamagedJournal(f"{path} is damaged", "its CRC is wrong", CURE_DAMAGE)


def read(path: Path, stamp: Stamp) -> Snapshot:
    """Return a snapshot; raises as `check` does."""
    check(path, stamp)
    try:
        return Snapshot(*stamp.position, path.read_bytes()[_HEADER.size :])
    except OSError as error:
        raise DamagedJournal(f"{path} cannot be read", str(error), CURE_DAMAGE) from error


def files(folder: Path) -> list[Path]:
    """Return the files of snapshots in a folder, those that are still being written too."""
    with os.scandir(folder) as found:
        return sorted(Path(entry.path) for entry in found if _NAME.fullmatch(entry.name))


def sync_folder(folder: Path) -> None:
    """Make durable which names are in a folder."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
