"""Brings chunks to this node, for whoever needs their bytes here: by the node's own process, or without any of it.

    with bring(where, "node01", uid, digests) as held:
        held.path(digest).read_bytes()

`stream` gives them one by one as they come, for more than a node may hold at one time. `read_by_session` needs no such
process: everything comes from the head, encrypted, through this one.
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
from beo.bulk.node import SOCKET
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
    """Chunks of one user that are here, and stay until the end of the block that they were brought by."""

    def __init__(self, where: Home, node: str, uid: int) -> None:
        """Connect to the node's process; raises Conflict where there is none, after START_S."""
        self._uid = uid
        self._folder = where.nodes / node / "bulk"
        self._link = _connect(self._folder)
        self._came: dict[str, bool] = {}

    def path(self, digest: str) -> Path:
        """Return the file of a chunk that has come."""
        return self._folder / "held" / str(self._uid) / digest

    def want(self, digests: Sequence[str], together: bool) -> None:
        """Ask for chunks, to be let go one by one or all `together`; raises ValueError for what is no digest."""
        names = [words.name_of(self._uid, digest) for digest in digests]
        for start in range(0, len(names), words.PACKET_NAMES_MAX):
            self._send(Want(tuple(names[start : start + words.PACKET_NAMES_MAX]), together))

    def let(self, digest: str) -> None:
        """It isn't needed here any more."""
        self._send(Let((words.name_of(self._uid, digest),)))

    def next(self, patience_s: float) -> list[str]:
        """Return the digests of chunks that have come; raises TimedOut, or what went wrong with one."""
        self._link.settimeout(patience_s)
        try:
            data = self._link.recv(words.PACKET_MAX_BYTES)
        except TimeoutError:
            what = f"no chunk has come for {patience_s:g} s"
            raise TimedOut(what, "", "see 'beo ha status' and the node's log") from None
        except OSError:
            data = b""
        if not data:
            raise Conflict("the node's process for chunks has ended", "", "try it again")
        try:
            notice = words.notice_decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise Internal("a notice of a chunk can't be read", str(error), "") from None
        if isinstance(notice, Fails):
            raise from_dict(notice.error)
        return [words.parts_of(name)[1] for name in notice.names]

    def close(self) -> None:
        """Let everything go."""
        self._link.close()

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
                link.connect(f"/proc/self/fd/{fd}/{SOCKET}")
                return link
            finally:
                os.close(fd)
        link.close()
        if time.monotonic() > deadline_s:
            raise Conflict(f"nobody brings chunks at {folder}", "is its agent alive?", "see the agent's log")
        time.sleep(LOOK_S)


@contextmanager
def bring(where: Home, node: str, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S) -> Iterator[Held]:
    """Bring all these chunks of a user, and keep them here while the block lasts.

    Raises BeoError where one can't be brought: there is no such chunk, or no room for all of them at once.
    """
    held = Held(where, node, uid)
    try:
        missing = dict.fromkeys(digests, True)
        held.want(list(missing), together=True)
        while missing:
            for digest in held.next(patience_s):
                missing.pop(digest, None)
        yield held
    finally:
        held.close()


def stream(
    where: Home, node: str, uid: int, digests: Sequence[str], patience_s: float = PATIENCE_S
) -> Iterator[tuple[str, Path]]:
    """Yield each of these chunks of a user once, (digest, file), in the order in which they come.

    A file is to be read before the next one is asked for: then it may be thrown out. Raises as `bring` does.
    """
    held = Held(where, node, uid)
    try:
        missing = dict.fromkeys(digests, True)
        held.want(list(missing), together=False)
        while missing:
            for digest in held.next(patience_s):
                if missing.pop(digest, None):
                    yield digest, held.path(digest)
                held.let(digest)
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
