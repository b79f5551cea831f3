"""The register's file: what a head has promised, kept over every restart, in two slots so that one is always whole.

A thread of its own writes and syncs, since the control loop must go on with its heartbeats however slow the disk is. As
with the journal, its first error is its last act: nobody knows what the disk holds then.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from beo.errors import BeoError, reason
from beo.ha.acts import Kept

CURE_DAMAGE: Final = "without it this head could break its word: 'beo ha rejoin --wipe' makes it begin anew"
KEPT_MAX_BYTES: Final = 4_000  # two sets of five voters with the longest names take half of it

_HEADER: Final = struct.Struct(">8sQI")  # magic, sequence number, length; the text and a CRC32 of all follow
_MAGIC: Final = b"beokept1"
_STRIDE_BYTES: Final = 4096  # slots never share a disk sector
_decoder = msgspec.msgpack.Decoder(Kept)


def read(path: Path) -> Kept | None:
    """Return what was kept, None where nothing ever was; raises BeoError where no slot is whole."""
    try:
        content = path.read_bytes()[: 2 * _STRIDE_BYTES]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BeoError(f"can't read {path}", reason(error), CURE_DAMAGE) from None
    found = [slot for start in (0, _STRIDE_BYTES) if (slot := _slot(content[start:]))]
    if not found:
        raise BeoError(f"{path} is damaged", "no slot of it is whole", CURE_DAMAGE)
    return max(found, key=lambda slot: slot[0])[1]


def _slot(content: bytes) -> tuple[int, Kept] | None:
    if len(content) < _HEADER.size:
        return None
    magic, sequence, length = _HEADER.unpack_from(content)
    end = _HEADER.size + length
    if magic != _MAGIC or length > KEPT_MAX_BYTES or len(content) < end + 4:
        return None
    if zlib.crc32(content[:end]) != int.from_bytes(content[end : end + 4]):
        return None
    try:
        return sequence, _decoder.decode(content[_HEADER.size : end])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Keep:
    """The file, and the thread that writes it. `store` is for the control loop; on_stored(serial) comes from there."""

    def __init__(
        self, path: Path, on_stored: Callable[[int], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        """Open the file, made where it is missing, and start the thread. Raises OSError."""
        self._on_stored = on_stored
        self._on_failure = on_failure
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        os.fsync(folder)
        os.close(folder)
        content = os.pread(self._fd, 2 * _STRIDE_BYTES, 0)
        self._sequence = max((slot[0] for start in (0, _STRIDE_BYTES) if (slot := _slot(content[start:]))), default=0)
        self._wake = threading.Condition()
        self._next: tuple[int, Kept] | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="beo-register", daemon=True)
        self._thread.start()

    def store(self, serial: int, kept: Kept) -> None:
        """Write this; of several that wait, only the last is written, which stands for those before."""
        with self._wake:
            self._next = serial, kept
            self._wake.notify()

    def close(self) -> None:
        """Write what waits and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()
        os.close(self._fd)

    def write(self, kept: Kept) -> None:
        """Write and sync in this thread. Raises OSError."""
        text = msgspec.msgpack.encode(kept)
        if len(text) > KEPT_MAX_BYTES:
            raise OSError(f"{len(text)} bytes are too many for the register")
        self._sequence += 1
        packed = _HEADER.pack(_MAGIC, self._sequence, len(text)) + text
        packed += zlib.crc32(packed).to_bytes(4)
        if os.pwrite(self._fd, packed, self._sequence % 2 * _STRIDE_BYTES) != len(packed):
            raise OSError("the disk took a part only")
        os.fdatasync(self._fd)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._next or self._closing)
                item, self._next = self._next, None
            if item is None:
                return
            try:
                self.write(item[1])
            except BaseException as error:
                self._on_failure(error)
                return
            self._on_stored(item[0])
