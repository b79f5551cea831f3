"""An HTTP server without threads: many machines at once, large files by sendfile, and nobody who is slow or dead holds
up another.

Each connection is a small state machine that a selector drives. Who asks is answered by `Exchange.answer`, now or,
where somebody else has to be asked first, later.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from beo.boot.http import Bad, Head, find_end, find_range, parse_head, write_head
from beo.boot.request import BODY_MAX_BYTES, Response

CONNECTIONS_MAX = 600  # with those that wait for a file: well below the usual 1,024 descriptors of a process
OF_HOST_MAX = 16  # one machine can't take them all
BACKLOG = 512
HEAD_S = 10.0  # for a whole head, and between two requests
BODY_S = 20.0  # for what is posted, of 64 KiB at most
ANSWER_S = 30.0  # for whoever has to be asked first
PACE_S, PACE_BYTES = 20.0, 1 << 20  # who takes less of a large file in that time is dead, or as good as
SEND_BYTES = 1 << 20  # at a time: then it is somebody else's turn
READ_BYTES = 16 * 1024
TICK_S = 0.25

Ended = Callable[[], object]


class Exchange:
    """One connection, and what is asked and answered over it now."""

    def __init__(self, web: Web, link: socket.socket, peer: tuple[str, int]) -> None:
        """Begin to read."""
        self.peer = peer
        self.head: Head | None = None
        self.body = b""
        self.closed = False
        self._web = web
        self._link = link
        self._came = bytearray()
        self._out = b""
        self._file = -1
        self._at = self._left = self._paced = 0
        self._ended: Ended | None = None
        self._keeps = False
        self._busy = False  # the answer is being made
        self._heard_all = False  # the other side says nothing more, and waits
        self.due_s = time.monotonic() + HEAD_S
        web.selector.register(link, selectors.EVENT_READ, self._turn)

    # ---- answering

    def answer(self, response: Response, more: dict[str, str] | None = None, ended: Ended | None = None) -> None:
        """Send an answer, a part of it where that was asked for. ended: is called once, however that ends."""
        self._ended = ended
        if self.closed or self.head is None:
            self._end()
            return
        more, status, body = dict(more or {}), response.status, response.body
        length, self._at = len(body), 0
        try:
            if response.file:
                self._file = os.open(response.file, os.O_RDONLY | os.O_CLOEXEC)
                length = os.fstat(self._file).st_size
                more["Accept-Ranges"] = "bytes"
                part = find_range(self.head.headers.get("range", ""), length) if status == 200 else None
                if part:
                    self._at, status = part[0], 206
                    more["Content-Range"] = f"bytes {part[0]}-{part[0] + part[1] - 1}/{length}"
                    length = part[1]
        except Bad as error:
            more["Content-Range"] = f"bytes */{length}"
            status, body, length = error.status, b"", 0
            self._drop_file()
        except OSError:
            status, body, length = 404, b"", 0
        wanted = self.head.method != "HEAD"
        if not wanted:
            self._drop_file()
        self._left = length if self._file >= 0 else 0
        self._keeps = self.head.keeps and not self._heard_all
        self._out = write_head(status, length, response.kind, self._keeps, more) + (body if wanted else b"")
        self._busy = False
        self._pace()
        if self._heard_all:
            self._web.selector.register(self._link, selectors.EVENT_WRITE, self._turn)
        else:
            self._web.selector.modify(self._link, selectors.EVENT_READ | selectors.EVENT_WRITE, self._turn)

    def refuse(self, status: int, why: str) -> None:
        """Say why not, and end the connection."""
        self.head = Head("GET", "/", {}, {}, 0, False)
        self.answer(Response(status, f"beo: {why}\n".encode()))

    def close(self) -> None:
        """End it now."""
        if not self.closed:
            self.closed = True
            self._web.forget(self)
            with suppress(KeyError, ValueError):
                self._web.selector.unregister(self._link)
            self._link.close()
            self._drop_file()
            self._end()

    # ---- the connection

    def tick(self, now_s: float) -> None:
        """End it where the other side is too slow."""
        if now_s < self.due_s:
            return
        if self._out or self._left:
            if self._paced >= PACE_BYTES:
                self._pace()
                return
        elif (self._came or self.head) and not self._busy:
            self.refuse(408, "that took too long")
            return
        self.close()

    def _pace(self) -> None:
        self._paced = 0
        self.due_s = time.monotonic() + PACE_S

    def _turn(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                self._read()
            if not self.closed and mask & selectors.EVENT_WRITE:
                self._write()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()

    def _read(self) -> None:
        data = self._link.recv(READ_BYTES)
        if not data:
            # Who posts by a pipe, as init does with nc, ends his half with that. Nobody fetches a file so: he is gone.
            if self._busy and self.head and self.head.method == "POST":
                self._heard_all = True
                self._web.selector.unregister(self._link)
            else:
                self.close()
            return
        if len(self._came) > BODY_MAX_BYTES + READ_BYTES:  # who speaks on while he is answered
            self.close()
            return
        self._came += data
        if not self._busy and not self._out and not self._left:
            self._next()

    def _next(self) -> None:
        """Take what came as far as it is whole."""
        try:
            if self.head is None:
                end = find_end(self._came)
                if not end:
                    return
                self.head = parse_head(bytes(self._came[:end]))
                del self._came[:end]
                self.due_s = time.monotonic() + BODY_S
                if self.head.length > BODY_MAX_BYTES:
                    raise Bad(413, f"{BODY_MAX_BYTES} bytes at most can be posted at a time")
        except Bad as error:
            self.refuse(error.status, str(error))
            return
        if len(self._came) < self.head.length:
            return
        self.body = bytes(self._came[: self.head.length])
        del self._came[: self.head.length]
        self._busy = True
        self.due_s = time.monotonic() + ANSWER_S
        self._web.route(self)

    def _write(self) -> None:
        if self._out:
            sent = self._link.send(self._out)
            self._out = self._out[sent:]
            self._paced += sent
        elif self._left:
            sent = os.sendfile(self._link.fileno(), self._file, self._at, min(self._left, SEND_BYTES))
            if not sent:  # the file has become shorter: what was promised can't be kept
                self.close()
                return
            self._at += sent
            self._left -= sent
            self._paced += sent
        if not self._out and not self._left:
            self._drop_file()
            self._end()
            if not self._keeps:
                self._link.shutdown(socket.SHUT_WR)
                self.close()
                return
            self.head, self.body = None, b""
            self.due_s = time.monotonic() + HEAD_S
            self._web.selector.modify(self._link, selectors.EVENT_READ, self._turn)
            if self._came:
                self._next()

    def _drop_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._left = 0

    def _end(self) -> None:
        ended, self._ended = self._ended, None
        if ended:
            ended()


class Web:
    """Listens, and holds the connections."""

    def __init__(
        self, selector: selectors.BaseSelector, listeners: Sequence[socket.socket], route: Callable[[Exchange], object]
    ) -> None:
        """route: is called with each whole request, and answers it now or later."""
        self.selector, self.route = selector, route
        self._listeners = listeners
        self._links: dict[Exchange, str] = {}
        self._of_host: Counter[str] = Counter()
        for listener in listeners:
            listener.listen(BACKLOG)
            selector.register(listener, selectors.EVENT_READ, self._accepting(listener))
        self._tick_s = 0.0

    def __len__(self) -> int:
        """How many are connected."""
        return len(self._links)

    def tick(self, now_s: float) -> None:
        """Look for those that are too slow."""
        if now_s >= self._tick_s:
            self._tick_s = now_s + TICK_S
            for link in list(self._links):
                link.tick(now_s)

    def forget(self, exchange: Exchange) -> None:
        """A connection has ended."""
        host = self._links.pop(exchange)
        self._of_host[host] -= 1
        if not self._of_host[host]:
            del self._of_host[host]

    def close(self) -> None:
        """End all of them."""
        for link in list(self._links):
            link.close()
        for listener in self._listeners:
            self.selector.unregister(listener)
            listener.close()

    def _accepting(self, listener: socket.socket) -> Callable[[int], None]:
        return lambda _: self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                link, peer = listener.accept()
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EINTR):
                    continue
                return  # nobody waits, or no descriptor is left: those that wait are taken later
            host = str(peer[0])
            if len(self._links) >= CONNECTIONS_MAX or self._of_host[host] >= OF_HOST_MAX:
                with suppress(OSError):
                    link.setblocking(False)
                    link.send(write_head(503, 0, "text/plain", False, {"Retry-After": "2"}))
                link.close()
                continue
            link.setblocking(False)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            exchange = Exchange(self, link, (host, int(peer[1])))
            self._links[exchange] = host
            self._of_host[host] += 1
