"""What the consoles of machines that boot from this head have said: the last of it, in one file per machine.

Such a machine has no monitor, and no disk that would outlive its end. What is here is neither replicated nor fsynced:
it is for a person who wonders why a node doesn't come. A file is a ring: it has the last bytes of a stream, behind a
line that tells where in the stream they begin.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from beo import messages as ms

KEPT_MAX_BYTES = 128 * 1024  # of one machine: a boot says a quarter of it
SLACK_BYTES = KEPT_MAX_BYTES  # the file may grow by so much more before its beginning is dropped
READ_MAX_BYTES = 64 * 1024  # in one answer
LAST_BYTES = 16 * 1024  # of who doesn't say from where on: some screens
_HEADER_BYTES = 24


def _path(folder: Path, mac: str) -> Path:
    return folder / mac.replace(":", "-")


def append(folder: Path, mac: str, data: bytes) -> None:
    """Add what a machine's console has said; raises OSError. mac: as it stands on record."""
    path = _path(folder, mac)
    folder.mkdir(mode=0o700, exist_ok=True)
    begins, kept = _load(path)
    if kept and len(kept) + len(data) <= KEPT_MAX_BYTES + SLACK_BYTES:
        with path.open("ab") as file:
            file.write(data)
        return
    whole = (kept + data)[-KEPT_MAX_BYTES:]
    begins += len(kept) + len(data) - len(whole)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(f"{begins:023d}\n".encode() + whole)
    os.replace(temporary, path)


def _load(path: Path) -> tuple[int, bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0, b""
    header = data[:_HEADER_BYTES].strip()
    return (int(header), data[_HEADER_BYTES:]) if len(header) == _HEADER_BYTES - 1 and header.isdigit() else (0, b"")


def read(folder: Path, mac: str, after: int) -> ms.ConsoleIs:
    """Return what comes after so many bytes of the stream, as far as it is kept; after -1: the last of it."""
    try:
        begins, kept = _load(_path(folder, mac))
    except OSError:
        begins, kept = 0, b""
    ends = begins + len(kept)
    start = max(begins, ends - LAST_BYTES if after < 0 or after > ends else after)
    data = kept[start - begins : start - begins + READ_MAX_BYTES]
    return ms.ConsoleIs(data, start, start + len(data))


def keep_only(folder: Path, macs: Collection[str]) -> None:
    """Drop what is kept of machines that are on record no more."""
    known = {_path(folder, mac).name for mac in macs}
    try:
        for entry in os.scandir(folder):
            if entry.name not in known:
                os.unlink(entry.path)
    except FileNotFoundError:
        pass  # nothing was ever kept, or another thread has been here
