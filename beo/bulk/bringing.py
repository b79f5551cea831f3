"""Brings chunks to this node, for whoever needs their bytes here: by the node's own process, or without any of it.

    with bring(where, "node01", uid, digests) as held:
        held.path(digest).read_bytes()

    for digest, data in stream(where, "node01", uid, digests):
        ...

`bring` keeps all of them here at once; `stream` gives them one by one as they come, for more than a node may hold.
Whoever is to give up root's rights makes a `Held` before, and streams by it: chunks come as open files, so he needs no
right to the folder. `read_by_session` needs no process: everything comes from the head, encrypted, through this one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from beo.bulk import words
from beo.bulk.words import Fails, Let, Want
from beo.config import Home
from beo.errors import BeoError, Conflict, Internal, NotFound, TimedOut, from_dict
from beo.tree.files import Files
from beo.tree.locate import session
from beo.tree.session import ROOT_CALLER

START_S = 10.0  # for the node's process to be there, which its agent starts
LOOK_S = 0.02
PATIENCE_S = 120.0  # with nothing that comes at all: a take-over takes a second, a chunk over a slow line some


class Held:
    """Chunks that this node's process holds for whoever has this: until he lets them go, or closes it."""

    def __init__(self, where: Home, node: str) -> None:
        """Connect to that process; raises Conflict where there is none, after START_S. To be done by who runs beo."""
        self._folder = where.nodes / node / "bulk"
        self._link = _connect(self._folder)

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


def _connect(folder: Path) -> socket.socket:
    deadline_s = time.monotonic() + START_S
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


class Brought:
    """Chunks of one user that are all here."""

    def __init__(self, held: Held, uid: int) -> None:
        """Look for them there."""
        self._held, self._uid = held, uid

    def path(self, digest: str) -> Path:
        """Return the file of one of them."""
        return self._held.path(self._uid, digest)


@contextmanager
def bring(
    where: Home, node: str, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S
) -> Iterator[Brought]:
    """Bring all these chunks of a user, and keep them here while the block lasts.

    Raises BeoError where one can't be brought: there is no such chunk, or no room for all of them at once.
    """
    held = Held(where, node)
    try:
        held.bring(uid, digests, patience_s)
        yield Brought(held, uid)
    finally:
        held.close()


def stream(
    where: Home, node: str, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S
) -> Iterator[tuple[str, bytes]]:
    """Yield (digest, bytes) of each of these chunks of a user once, as they come. Raises as `bring` does."""
    held = Held(where, node)
    try:
        yield from held.stream(uid, digests, patience_s)
    finally:
        held.close()


def read_by_session(where: Home, secret: str, uid: int, digests: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (digest, bytes) of each of these chunks of a user, in order, by a session of its own with the tree.

    secret: a node's key. Raises BeoError where one isn't there, or is damaged.
    """
    with Files(session(where, secret), ROOT_CALLER) as files:
        for digest in digests:
            path = "/" + b"/".join(words.path_of(words.name_of(uid, digest))).decode()
            try:
                data = b"".join(files.read(path))
            except OSError as error:
                cure = "submit that job's inputs again"
                raise NotFound(f"no chunk {digest[:16]}… of user {uid}", str(error.strerror), cure) from None
            if words.digest(data) != digest:
                raise BeoError("a chunk in the tree is damaged", path, "submit that job's inputs again")
            yield digest, data
