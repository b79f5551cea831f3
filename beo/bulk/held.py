"""The socket of this node's process for chunks (node.py), for whoever wants some: they come as open files.

So who gives up root's rights after he has made a `Held` needs none to the folder.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from beo.bulk import words
from beo.bulk.words import Fails, Let, Want
from beo.config import Home
from beo.errors import Conflict, Internal, TimedOut, from_dict

START_S = 10.0  # for the node's process to be there, which its agent starts
LOOK_S = 0.02
PATIENCE_S = 120.0  # with nothing that comes at all: a take-over takes a second, a chunk over a slow line some


class Held:
    """Chunks that this node's process holds for whoever has this: until he lets them go, or closes it."""

    def __init__(self, where: Home, node: str, start_s: float = START_S) -> None:
        """Connect to that process; raises Conflict where there is none after so long. To be done by who runs beo."""
        self._folder = where.nodes / node / "bulk"
        self._link = _connect(self._folder, start_s)

    def path(self, uid: int, digest: str) -> Path:
        """Return the file of a user's chunk that has come."""
        return self._folder / "held" / str(uid) / digest

    def bring(self, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S) -> None:
        """Bring all these chunks of a user; they stay until the end. Raises BeoError where one can't be brought."""
        for _, fd in self._come(uid, digests, patience_s, together=True):
            os.close(fd)

    def stream(self, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S) -> Iterator[tuple[str, bytes]]:
        """Yield (digest, bytes) of each of these chunks of a user once, in the order in which they come.

        Raises BeoError where one can't be brought.
        """
        for digest, fd in self._come(uid, digests, patience_s, together=False):
            with open(fd, "rb", buffering=0) as file:
                data = file.read(words.CHUNK_MAX_BYTES)
            self._send(Let((words.name_of(uid, digest),)))
            yield digest, data

    def close(self) -> None:
        """Let everything go."""
        self._link.close()

    def _come(self, uid: int, digests: Sequence[str], patience_s: float, together: bool) -> Iterator[tuple[str, int]]:
        missing = dict.fromkeys((words.name_of(uid, digest) for digest in digests), True)
        names = tuple(missing)
        for start in range(0, len(names), words.PACKET_NAMES_MAX):
            self._send(Want(names[start : start + words.PACKET_NAMES_MAX], together))
        while missing:
            name, fd = self._next(patience_s)
            if missing.pop(name, None):
                yield words.parts_of(name)[1], fd
            else:
                os.close(fd)

    def _next(self, patience_s: float) -> tuple[bytes, int]:
        self._link.settimeout(patience_s)
        try:
            data, fds, _, _ = socket.recv_fds(self._link, words.PACKET_MAX_BYTES, 1)
        except TimeoutError:
            what = f"no chunk has come for {patience_s:g} s"
            raise TimedOut(what, "", "see 'beo ha status' and the node's log") from None
        except OSError:
            data, fds = b"", []
        if not data:
            raise Conflict("the node's process for chunks has ended", "", "try it again")
        try:
            notice = words.notice_decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise Internal("a notice of a chunk can't be read", str(error), "") from None
        if isinstance(notice, Fails):
            raise from_dict(notice.error)
        if not fds:
            raise Conflict("a chunk has come without its bytes", "no descriptor is left", "raise 'ulimit -n'")
        return notice.name, fds[0]

    def _send(self, order: Want | Let) -> None:
        try:
            self._link.settimeout(PATIENCE_S)
            self._link.send(words.encode(order))
        except OSError:
            raise Conflict("the node's process for chunks has ended", "", "try it again") from None


def _connect(folder: Path, start_s: float) -> socket.socket:
    deadline_s = time.monotonic() + start_s
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        with suppress(OSError):
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                link.connect(f"/proc/self/fd/{fd}/{words.SOCKET}")
                return link
            finally:
                os.close(fd)
        link.close()
        if time.monotonic() > deadline_s:
            raise Conflict(f"nobody brings chunks at {folder}", "is its agent alive?", "see the agent's log")
        time.sleep(LOOK_S)
