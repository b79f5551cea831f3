"""Fetches chunks from the sources that are told: a few threads, each with a connection that it keeps for the next."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from beo.bulk import tickets
from beo.bulk.holdings import Coming, Holdings, Wrong
from beo.bulk.serving import STACK_BYTES, receive, set_limit
from beo.bulk.tickets import GONE, OK, REPLY_BYTES, Request
from beo.bulk.words import DEAD, LATE, SLOW, WRONG, Source
from beo.bulk.words import GONE as GONE_THERE
from beo.errors import BeoError, Internal

CONNECT_S = 3.0
REPLY_S = 5.0  # until the first byte
CHUNK_S = 20.0  # for all of it: a source that takes longer is slow, and a new head gives slots for longer
PIECE_BYTES = 1 << 20


class Unfit(Exception):
    """A source that was of no use; why: of words.py."""

    def __init__(self, why: str) -> None:
        """Say why."""
        super().__init__(why)
        self.why = why


class Fetched(msgspec.Struct, frozen=True):
    """What became of a source: the chunk is here, or it was `bad`, or nothing can be kept here (`failure`)."""

    source: Source
    bad: str = ""
    failure: BeoError | None = None


class Line:
    """A connection to one server at a time. For one thread."""

    def __init__(self, holdings: Holdings) -> None:
        """Nothing is connected yet."""
        self._holdings = holdings
        self._address = ""
        self._socket: socket.socket | None = None
        self._buffer = memoryview(bytearray(PIECE_BYTES))

    def fetch(self, source: Source) -> None:
        """Bring a chunk into the holdings. Raises Unfit where the source is of no use, BeoError where we are."""
        was_open = self._socket is not None and self._address == source.address
        deadline_s = time.monotonic() + CHUNK_S
        try:
            connection, reply = self._ask(source, deadline_s)
            if not reply and was_open:  # it had been closed for being idle
                self.close()
                connection, reply = self._ask(source, deadline_s)
            told = tickets.read_reply(reply)
            if told is None:
                raise Unfit(DEAD)
            status, size = told
            if status != OK:
                raise Unfit(GONE_THERE if status == GONE else LATE)
            if size != source.size:
                raise Unfit(WRONG)
            self._receive(connection, source, size, deadline_s)
        except OSError:
            self.close()
            raise Unfit(DEAD) from None
        except BaseException:
            self.close()
            raise

    def _ask(self, source: Source, deadline_s: float) -> tuple[socket.socket, bytes]:
        connection = self._connect(source.address)
        request = Request(source.name, source.ino, 0, 0, source.expires_s, source.ticket)
        try:
            connection.sendall(tickets.pack_request(request))
            return connection, receive(connection, REPLY_BYTES, min(deadline_s, time.monotonic() + REPLY_S))
        except (BrokenPipeError, ConnectionResetError):
            return connection, b""

    def _connect(self, address: str) -> socket.socket:
        if self._socket and self._address == address:
            return self._socket
        self.close()
        host, _, port = address.rpartition(":")
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.settimeout(CONNECT_S)
            made.connect((host, int(port)))
            made.settimeout(None)  # from here on the kernel keeps the time
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except (OSError, ValueError, OverflowError) as error:
            made.close()
            raise OSError(str(error)) from None
        self._socket, self._address = made, address
        return made

    def _receive(self, connection: socket.socket, source: Source, size: int, deadline_s: float) -> None:
        coming = self._holdings.begin(source.name, size)
        try:
            self._fill(connection, coming, size, deadline_s)
        except BaseException:
            coming.drop()
            raise
        try:
            coming.keep()
        except Wrong:
            raise Unfit(WRONG) from None

    def _fill(self, connection: socket.socket, coming: Coming, size: int, deadline_s: float) -> None:
        left = size
        set_limit(connection, REPLY_S)
        while left:
            if time.monotonic() > deadline_s:
                raise Unfit(SLOW)
            try:
                done = connection.recv_into(self._buffer, min(left, PIECE_BYTES))
            except BlockingIOError:
                raise Unfit(SLOW) from None
            if not done:
                raise Unfit(DEAD)
            coming.write(self._buffer[:done])
            left -= done

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._socket:
            self._socket.close()
        self._socket, self._address = None, ""


class Lanes:
    """Threads that fetch. `start` from one thread; what came of it is in `done`, and wake() is called."""

    def __init__(self, holdings: Holdings, count: int, wake: Callable[[], None]) -> None:
        """Start so many."""
        self.count = count
        self.busy = 0
        self._todo: queue.SimpleQueue[Source | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Fetched] = queue.SimpleQueue()
        self._wake = wake
        threading.stack_size(STACK_BYTES)
        self._threads = [
            threading.Thread(target=self._work, args=(Line(holdings),), name=f"lane {number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def free(self) -> int:
        """How many have nothing to do."""
        return self.count - self.busy

    def start(self, source: Source) -> None:
        """Fetch from there."""
        self.busy += 1
        self._todo.put(source)

    def done(self) -> list[Fetched]:
        """Return what has ended since the last call."""
        ended = []
        with suppress(queue.Empty):
            while True:
                ended.append(self._done.get_nowait())
        self.busy -= len(ended)
        return ended

    def close(self) -> None:
        """Let them end; what is under way isn't waited for."""
        for _ in self._threads:
            self._todo.put(None)

    def _work(self, line: Line) -> None:
        while source := self._todo.get():
            bad, failure = "", None
            try:
                line.fetch(source)
            except Unfit as unfit:
                bad = unfit.why
            except BeoError as error:
                failure = error
            except Exception as error:  # a lane that ended would be missed for ever
                failure = Internal("a chunk can't be fetched", f"{type(error).__name__}: {error}", "")
            self._done.put(Fetched(source, bad, failure))
            self._wake()
        line.close()
