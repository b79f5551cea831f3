"""Serves chunks over TCP, by sendfile: a thread for each connection, which waits in the kernel and not in Python.

Nobody is sent a byte who doesn't show a ticket for just this chunk. Nobody is waited for: each request, and each
answer, has its time, and each host its number of connections.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from beo.bulk import tickets
from beo.bulk.tickets import EXPIRED, GONE, OK, REQUEST_BYTES, Request
from beo.bulk.words import CHUNK_MAX_BYTES
from beo.errors import reason

CONNECTIONS_MAX = 512
CONNECTIONS_PER_HOST_MAX = 64  # four times what one node opens at a time to one other
REQUEST_S = 5.0  # for the whole of a request, from the end of the last one on
SEND_S = 30.0  # for a whole chunk: a receiver of less than 140 kB/s is let go
STALLED_S = 5.0  # with nothing taken at all
PIECE_BYTES = 512 << 10  # in one call, between two looks at the clock
BACKLOG = 256
STACK_BYTES = 256 << 10  # of a thread, which calls a dozen functions deep

_timeval = struct.Struct("ll")

log = logging.getLogger("beo.bulk")


class Serving:
    """A listening socket, and who has connected to it. `start` serves, `close` ends it all."""

    def __init__(
        self,
        listener: socket.socket,
        look: Callable[[Request], int | None],
        key: Callable[[], tuple[bytes, ...]],
        now_s: Callable[[], float],
    ) -> None:
        """Serve at a bound socket, which is closed with this.

        look(request) opens a chunk, and returns the descriptor, or None where it isn't here. key(): by which tickets
        are checked, the newest first; now_s(): the time by which they expire. All are called by many threads.
        """
        self._listener = listener
        self._look, self._key, self._now_s = look, key, now_s
        self._lock = threading.Lock()
        self._open: dict[socket.socket, str] = {}
        self._hosts: Counter[str] = Counter()
        self._closed = False
        self.sent_bytes = 0  # roughly: threads add to it without a lock
        self.refused = 0
        listener.listen(BACKLOG)
        self.address = "{}:{}".format(*listener.getsockname()[:2])

    def start(self) -> None:
        """Take connections, in a thread of its own."""
        threading.stack_size(STACK_BYTES)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def close(self) -> None:
        """Take no more, and end what is under way."""
        with self._lock:
            self._closed = True
            every = list(self._open)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._listener.close()
        for connection in every:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, (host, *_) = self._listener.accept()
            except OSError as error:
                if self._closed or error.errno in (errno.EBADF, errno.EINVAL):
                    return
                time.sleep(0.05)  # no descriptor is free: some will be
                continue
            if not self._admit(connection, host):
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()
            except RuntimeError:  # no thread is left
                self._leave(connection)

    def _admit(self, connection: socket.socket, host: str) -> bool:
        with self._lock:
            if self._closed or len(self._open) >= CONNECTIONS_MAX or self._hosts[host] >= CONNECTIONS_PER_HOST_MAX:
                return False
            self._open[connection] = host
            self._hosts[host] += 1
            return True

    def _leave(self, connection: socket.socket) -> None:
        with self._lock:
            host = self._open.pop(connection)
            self._hosts[host] -= 1
            if not self._hosts[host]:
                del self._hosts[host]
        connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            set_limit(connection, STALLED_S, socket.SO_SNDTIMEO)
            while request := self._request(connection):
                if not self._answer(connection, request):
                    return
        except OSError as error:
            log.debug("a connection ends: %s", reason(error))
        finally:
            self._leave(connection)

    def _request(self, connection: socket.socket) -> Request | None:
        """Return the next request; None where none comes in time, or what comes is nothing to be answered."""
        data = receive(connection, REQUEST_BYTES, time.monotonic() + REQUEST_S)
        request = tickets.read_request(data)
        if request is None:
            return None
        if not any(tickets.is_good(key, request) for key in self._key()):
            self.refused += 1
            return None
        return request

    def _answer(self, connection: socket.socket, request: Request) -> bool:
        if request.expires_s < self._now_s():
            connection.sendall(tickets.pack_reply(EXPIRED, 0))
            return True
        fd = self._look(request)
        if fd is None:
            connection.sendall(tickets.pack_reply(GONE, 0))
            return True
        try:
            there = max(0, min(os.fstat(fd).st_size, CHUNK_MAX_BYTES) - request.offset)
            size = min(request.size or there, there)
            connection.sendall(tickets.pack_reply(OK, size), socket.MSG_MORE if size else 0)
            return self._send(connection, fd, request.offset, size)
        finally:
            os.close(fd)

    def _send(self, connection: socket.socket, fd: int, offset: int, size: int) -> bool:
        """Send bytes of a file; False where the other side doesn't take them in time."""
        deadline_s = time.monotonic() + SEND_S
        out, end = connection.fileno(), offset + size
        while offset < end:
            # With nothing taken for STALLED_S this is EAGAIN; else it returns what was taken until then.
            done = os.sendfile(out, fd, offset, min(PIECE_BYTES, end - offset))
            if not done:  # the file is shorter than it was
                return False
            offset += done
            if offset < end and time.monotonic() > deadline_s:
                return False
        self.sent_bytes += size
        return True


def set_limit(connection: socket.socket, limit_s: float, of: int = socket.SO_RCVTIMEO) -> None:
    """Let the kernel end a call that gets on with nothing for so long: it raises BlockingIOError."""
    whole_s = int(limit_s)
    connection.setsockopt(socket.SOL_SOCKET, of, _timeval.pack(whole_s, max(1, int((limit_s - whole_s) * 1e6))))


def receive(connection: socket.socket, size: int, deadline_s: float) -> bytes:
    """Return `size` bytes, or fewer where the other side ends, or takes until after the deadline."""
    data = bytearray()
    while len(data) < size:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        set_limit(connection, left_s)
        try:
            piece = connection.recv(size - len(data))
        except BlockingIOError:
            break
        if not piece:
            break
        data += piece
    return bytes(data)


def listen_near(host: str, port: int) -> socket.socket:
    """Return a socket bound to a port, or where it isn't free to another one; raises OSError."""
    try:
        return listen(host, port)
    except (OSError, OverflowError):
        return listen(host)


def listen(host: str, port: int = 0) -> socket.socket:
    """Return a socket bound to a port, 0: a free one; raises OSError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
