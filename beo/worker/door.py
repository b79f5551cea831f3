"""The door of a job to its own warden: a socket in its TMPDIR, by which its processes start steps (`BEO_STEPS`).

One connection is one step. Only who is behind the attempt's walls and is its user (or root) is let in. A client may be
hostile: it can harm nobody but its own job, and of the warden's memory and descriptors it gets so much and no more.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import deque

from beo.worker import contain
from beo.worker.frames import FrameError, Frames, frame
from beo.worker.loop import BROKEN, READ, WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

NAME = ".beo-steps"
"""The socket's name in the TMPDIR."""
PATH_LENGTH_MAX = 107
"""Longest path that a socket can be bound to (sun_path)."""
CLIENTS_MAX = 512
"""Connections at a time: each takes a descriptor, and in the worst case FRAME_BYTES_MAX of memory."""
FRAME_BYTES_MAX = 1 << 20
"""Longest message of a client: the most arguments and environment that a job may have, twice."""
RECEIVE_BYTES = 64 << 10
BACKLOG = 128
FULL_S = 0.1
"""How long nobody is let in when descriptors have run out."""


class Client:
    """One connection. `hear` is called with each message, and with None when it has hung up."""

    def __init__(self, connection: socket.socket, loop: Loop, gone: Callable[[Client], None]) -> None:
        self.hear: Callable[[dict[str, Any] | None], None] = lambda _: None
        self._connection: socket.socket | None = connection
        self._loop = loop
        self._gone = gone
        self._frames = Frames(FRAME_BYTES_MAX)
        self._unsent = bytearray()
        self._sent_bytes = 0  # of all
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()
        self._closing = False
        self._paused = False
        connection.setblocking(False)
        self._watch()

    def send(self, message: dict[str, Any], sent: Callable[[], None] | None = None) -> None:
        """Send a message; `sent` is called when the client has it, or nobody will ever have it."""
        if self._connection and not self._closing:
            self._unsent += frame(message)
            if sent:
                self._marks.append((self._sent_bytes + len(self._unsent), sent))
            self._flush()
        elif sent:
            sent()

    def end(self, message: dict[str, Any]) -> None:
        """Send the last message, and hang up when it has gone out. Nothing is heard any more."""
        self.hear = lambda _: None
        self.send(message)
        self._closing = True
        self._flush()

    def refuse(self, what: str, why: str = "", cure: str = "") -> None:
        """Say that it can't be, and hang up."""
        self.end({"op": "refused", "what": what, "why": why, "cure": cure})

    def pause(self, paused: bool) -> None:
        """Don't listen for now (or again)."""
        if self._paused != paused:
            self._paused = paused
            self._watch()

    def close(self) -> None:
        """Hang up now."""
        if self._connection:
            self._loop.unwatch(self._connection.fileno())
            self._connection.close()
            self._connection = None
            self._unsent.clear()
            self._gone(self)
            marks, self._marks = self._marks, deque()
            for _, sent in marks:
                sent()

    def _watch(self) -> None:
        if self._connection:
            events = BROKEN if self._paused or self._closing else READ
            self._loop.watch(self._connection.fileno(), self._ready, events | (WRITE if self._unsent else 0))

    def _ready(self) -> None:
        self._flush()
        if self._connection and not self._closing:
            self._receive()

    def _receive(self) -> None:
        try:
            # While it is paused, only the other end's closing can have woken us (or that there is room to write).
            flags = socket.MSG_PEEK if self._paused else 0
            data = self._connection.recv(1 if self._paused else RECEIVE_BYTES, flags) if self._connection else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hung_up()
        elif not self._paused:
            try:
                for message in self._frames.feed(data):
                    self.hear(message)
            except FrameError as error:
                self._break(str(error))
        elif self._is_broken():
            self._hung_up()

    def _is_broken(self) -> bool:
        """Whether the other end has gone, though not all that it said was read."""
        try:
            assert self._connection
            self._connection.send(b"", socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    def _break(self, why: str) -> None:
        hear = self.hear
        self.refuse("that is no message of a step", why, "start steps with 'beo run'")
        hear(None)

    def _hung_up(self) -> None:
        hear = self.hear
        self.close()
        hear(None)

    def _flush(self) -> None:
        if not self._connection:
            return
        wanted = bool(self._unsent)
        try:
            while self._unsent:
                sent_bytes = self._connection.send(self._unsent, socket.MSG_NOSIGNAL)
                del self._unsent[:sent_bytes]
                self._sent_bytes += sent_bytes
        except BlockingIOError:
            pass
        except OSError:  # it has gone, which is heard next
            self._sent_bytes += len(self._unsent)
            self._unsent.clear()
        if wanted or self._closing:
            self._watch()
        while self._marks and self._marks[0][0] <= self._sent_bytes:
            self._marks.popleft()[1]()
        if self._closing and not self._unsent:
            self.close()


class Door:
    """Listens at `path`, which must be in a folder that nobody but us can write to yet.

    uid: whose job it is. entered: called with each client that may come in.
    """

    def __init__(self, path: str, kind: str, uid: int, gid: int, loop: Loop, entered: Callable[[Client], None]) -> None:
        self.path = path
        self._kind = kind
        self._uid = uid
        self._loop = loop
        self._entered = entered
        self._clients: set[Client] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(path)
            if uid != os.geteuid():
                os.chown(path, uid, gid)
            self._listener.listen(BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Let nobody in any more, and hang up on all."""
        self._loop.forget("door")
        self._loop.unwatch(self._listener.fileno())
        self._listener.close()
        for client in list(self._clients):
            client.hear = lambda _: None
            client.close()
        try:
            os.unlink(self.path)
        except OSError:
            pass  # the job may have removed it, with all of its folder

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptors left: don't spin
            self._loop.unwatch(self._listener.fileno())
            self._loop.after(FULL_S, "door", lambda: self._loop.watch(self._listener.fileno(), self._accept))
            return
        client = Client(connection, self._loop, self._clients.discard)
        self._clients.add(client)
        trouble = self._trouble(connection)
        if trouble:
            client.refuse(*trouble)
        elif len(self._clients) > CLIENTS_MAX:
            client.refuse("too many steps at once", f"a node serves {CLIENTS_MAX}", "start fewer, or wait for some")
        else:
            self._entered(client)

    def _trouble(self, connection: socket.socket) -> tuple[str, str, str] | None:
        """Say why whoever is at the other end may not come in."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid not in (0, self._uid):
            return "this job isn't yours", f"it belongs to uid {self._uid}", "start steps from your own job"
        # The kernel translates the number into our namespace: who has none there is outside.
        if pid == 0 or (self._kind == "subreaper" and pid not in contain.descendants(os.getpid())):
            return "this process is no part of the job", "it runs outside of the job's walls", "call it from the job"
        return None
