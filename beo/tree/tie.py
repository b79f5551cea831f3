"""Between a head and the process beside it that serves the tree: what the head's role is, and how that process fares.

Datagrams between two sockets in the head's own folder, which nobody else can enter. Each side says all there is again
and again, so that one that was started anew, or lost a word, knows it a moment later.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import msgspec

from beo.config import write_durably
from beo.errors import BeoError, reason

WORD_MAX_BYTES = 65_536
SAY_EVERY_S = 0.05  # at least so often: a role must be known well within a lease
KEYS_MAX_BYTES = 64 << 20

HEAD, TREE = "head.sock", "tree.sock"


class Role(msgspec.Struct, frozen=True, array_like=True, tag="Role"):
    """The head to its tree. number: grows with each change of what follows but `until_s`.

    leads: serve the tree; epoch: of whom acts. other: where the other head's tree is, "" where there is none or it
    isn't known; both: nothing is acknowledged before the other one has it, too. until_s: no other head can act before
    this time of CLOCK_BOOTTIME. keys: grows with each change of the file of keys.
    """

    number: int
    leads: bool
    epoch: int
    other: str
    both: bool
    until_s: float
    keys: int


class Report(msgspec.Struct, frozen=True, array_like=True, tag="Report"):
    """The tree to its head: where it listens, and, of a role's number, how far the other head is behind.

    in_step: it has everything; missing: what it lacks, in entries and stale inodes, -1: not known. stalled_s: for how
    long it has taken nothing though it lacks something. trouble: what a person should know. lacks: where this head
    follows, what it lacks itself of what was acknowledged, as far as it knows.
    """

    address: str
    number: int
    in_step: bool
    missing: int
    stalled_s: float
    trouble: str
    files: int = 0
    lacks: int = 0


class Known(msgspec.Struct, frozen=True, array_like=True):
    """Who holds a key: as the head's state has it. uid -1: any."""

    name: str
    role: str
    uid: int
    gids: tuple[int, ...]
    node: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Role | Report).decode


class Tie:
    """One end. For one thread."""

    def __init__(self, folder: Path, own: str, other: str) -> None:
        """Listen in `folder` as `own`; raises BeoError where that can't be."""
        self._other = str(folder / other)
        path = folder / own
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            path.unlink(missing_ok=True)
            # By a descriptor of the folder: a path may be longer than an address of a socket.
            with _Folder(folder) as short:
                self._socket.bind(f"{short}/{own}")
        except OSError as error:
            self._socket.close()
            raise BeoError(f"can't listen at {path}", reason(error), "look at that folder") from None
        self._folder = folder

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._socket.fileno()

    def say(self, word: Role | Report) -> None:
        """Say it, if the other end is there."""
        with suppress(OSError), _Folder(self._folder) as short:
            self._socket.sendto(_encode(word), f"{short}/{os.path.basename(self._other)}")

    def hear(self) -> Role | Report | None:
        """Return the newest word that has come since the last call; None where none has."""
        newest = None
        while True:
            try:
                newest = _decode(self._socket.recv(WORD_MAX_BYTES))
            except BlockingIOError:
                return newest
            except (OSError, msgspec.DecodeError):
                continue

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class _Folder:
    """A short path of a folder, however long its own is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> str:
        self._fd = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def write_keys(folder: Path, keys: dict[str, Known]) -> None:
    """Let the tree know who may speak."""
    write_durably(folder / "keys", msgspec.json.encode(keys), 0o600)


def read_keys(folder: Path) -> dict[str, Known]:
    """Return who may speak; nobody where the head hasn't said yet."""
    try:
        with (folder / "keys").open("rb") as file:
            return msgspec.json.decode(file.read(KEYS_MAX_BYTES), type=dict[str, Known])
    except (OSError, msgspec.DecodeError):
        return {}
