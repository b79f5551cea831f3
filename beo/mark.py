"""How far a journal was acknowledged, kept beside it, so that what is missing from it can't be missing in silence."""

import os
import struct
import zlib
from pathlib import Path
from typing import Final

from beo.entries import HASH_BYTES
from beo.errors import DamagedJournal

CURE_DAMAGE: Final = "rebuild this head from its standby or from a copy of its folder (keep the damaged one aside)"


class Mark:
    """The position up to which durability was acknowledged, in two slots written in turn, so that one is always whole.

    It is not synced with each commit. A kill of the process leaves it exact; after a power cut it may be older, and is
    then still true: a lower bound.
    """

    _SLOT: Final = struct.Struct(f">8sQQ{HASH_BYTES}s")  # magic, sequence number, index, hash; a CRC32 follows
    _MAGIC: Final = b"beomark1"
    _STRIDE_BYTES: Final = 4096  # slots never share a disk sector

    def __init__(self, path: Path) -> None:
        """Open the file, made where it is missing."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        found = self._whole_slots(path)
        self._sequence = found[-1][0] if found else 0

    @classmethod
    def _whole_slots(cls, path: Path) -> list[tuple[int, int, bytes]]:
        content, found = path.read_bytes()[: 2 * cls._STRIDE_BYTES], []
        for start in (0, cls._STRIDE_BYTES):
            packed, crc = content[start:][: cls._SLOT.size], content[start + cls._SLOT.size :][:4]
            if len(crc) == 4 and zlib.crc32(packed) == int.from_bytes(crc) and packed.startswith(cls._MAGIC):
                found.append(cls._SLOT.unpack(packed)[1:])
        return sorted(found)

    @classmethod
    def read(cls, path: Path) -> tuple[int, bytes] | None:
        """Return the acknowledged (index, hash), None if there is no mark; raise DamagedJournal if no slot is whole."""
        if not path.exists() or path.stat().st_size == 0:
            return None
        if not (found := cls._whole_slots(path)):
            cure = f"{CURE_DAMAGE}; to trust what {path.parent} still holds, move {path.name} aside"
            raise DamagedJournal(f"{path} is damaged", "it tells up to which entry the journal must reach", cure)
        return found[-1][1:]

    def write(self, index: int, hash: bytes) -> None:
        """Move the mark: everything up to this entry is durable."""
        self._sequence += 1
        packed = self._SLOT.pack(self._MAGIC, self._sequence, index, hash)
        os.pwrite(self._fd, packed + zlib.crc32(packed).to_bytes(4), self._sequence % 2 * self._STRIDE_BYTES)

    def settle(self, index: int, hash: bytes) -> None:
        """Write both slots and sync: from now on this is what the disk says too, even where it is lower than before."""
        self.write(index, hash)
        self.write(index, hash)
        self.sync()

    def sync(self) -> None:
        """Make the disk say so, too."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
