"""A client at a job's terminal: its output as it comes, and stdin for rank 0. What `beo logs` and `beo run` stand on.

    console = Console(cluster.bulk, job, attempt, source=Source(0))
    while not console.ended:
        for rank, fd, data in console.step(timeout_s=0.5):
            ...

One thread, one loop, no waiting but in `step`. Both directions are by position and repeat what was not answered, so
output is neither lost nor doubled over any restart of the head or the agents, and stdin reaches the rank once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import msgspec

from beo import messages, records, version, wire
from beo.errors import Conflict, Internal, NoHead, Refused, from_dict
from beo.records import Record

__all__ = ["Console", "follow"]

# A head that dies takes its parked questions along; they are asked again when overdue, so they are kept short.
POLL_S = 2.0
OVERDUE_S = 1.0
PAUSE_S = 0.25  # before a question again that the head couldn't take
PAUSE_MIN_S = (
    0.005  # before one that couldn't be sent, doubled up to PAUSE_S: a connection is soon there, or not at all
)
REOPEN_S = 5.0  # without a word for so long beyond a question's time, the head may have moved
FETCH_BYTES = 512 * 1024  # in one answer: two chunks, half of what the head would give
PIECE_BYTES = 64 * 1024  # of stdin in one message: what a pipe holds
RESEND_FIRST_S = 0.1  # soon, since the first pieces often come before the rank is there
RESEND_MAX_S = 2.0

NO_WINDOW = (0, 0)

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is

if TYPE_CHECKING:
    from beo.contact import Channel

    Open = Callable[[], Channel]  # a new connection to the primary's bulk plane; may raise NoHead


class Source:
    """Where rank 0's input is read from, made ready and put back by `with`. A terminal is another kind of it."""

    def __init__(self, fd: int) -> None:
        """Take a descriptor, which stays the caller's."""
        self.fd = fd

    @property
    def window(self) -> tuple[int, int]:
        """The present (rows, columns) of the terminal that it is."""
        return NO_WINDOW

    def __enter__(self) -> Source:
        """Make ready: there is nothing to do for a file or a pipe."""
        return self

    def __exit__(self, *_: object) -> None:
        """Put back."""

    def read(self) -> bytes | None:
        """Return what there is, None at the end; raises OSError."""
        return os.read(self.fd, PIECE_BYTES) or None


class Console:
    """One attempt's output, and its stdin where a `source` is given. Closes neither that source nor the job."""

    def __init__(
        self,
        open_bulk: Open,
        job: int,
        attempt: int,
        *,
        cursor: int = 0,
        wait: bool = True,
        source: Source | None = None,
        wake_on: tuple[int, ...] = (),
        learn: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin at `cursor` (0: the beginning). Without `wait` the end of what is there is the end.

        `wake_on`: descriptors that end a step early when they are readable, for signals and other sockets. `learn` is
        called before a new connection is opened because the head there doesn't act, and no other is known.
        """
        self._learn = learn
        self._open_bulk = open_bulk
        self._key = job, attempt
        self._wait = wait
        self._poller = wire.Poller()
        self._wake_on = frozenset(wake_on)
        for fd in wake_on:
            self._poller.register(fd, wire.POLLIN)
        self._input = _Input(job, attempt, source) if source else None
        self._input_polled = False
        self._connection = self._open_bulk()
        self._connection.register(self._poller)
        self._request = 0
        self._asked = False  # a question is under way
        self._ask_at = 0.0  # when to ask (again)
        self._pause_s = PAUSE_MIN_S
        self._heard_at = time.monotonic()
        self.cursor = cursor  # behind the last record that `step` gave
        self.ended = False  # there is and will be no more output

    @property
    def input_closed(self) -> bool:
        """Whether rank 0 takes no more stdin, be it that all was delivered."""
        return self._input is None or self._input.closed

    def step(self, timeout_s: float) -> list[Record]:
        """Return what has come, after timeout_s at the latest; raises BeoError where the head refuses for good."""
        deadline = time.monotonic() + timeout_s
        woken = False
        while True:
            now = time.monotonic()
            if self._asked and self._connection.renewed:  # the head that was asked is no more
                self._ask_at = now
            self._ask(now)
            if self._input:
                self._send_input(self._input, now)
            found = self._receive()
            now = time.monotonic()
            if found or self.ended or woken or now >= deadline:
                return found
            input_at = self._input.next_at if self._input else deadline
            woken = self._sleep(min(deadline, self._ask_at, input_at, self._connection.next_at) - now)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _reopen(self) -> None:
        try:
            connection = self._open_bulk()
        except NoHead:
            return
        self._connection.unregister(self._poller)
        self._connection.close()
        self._connection = connection
        connection.register(self._poller)

    def _ask(self, now: float) -> None:
        if self.ended or now < self._ask_at:
            return
        if self._connection.refused:
            cure = "set BEO_DIR to the cluster that you mean, or ask its operator for a key"
            raise Refused(f"the head at {self._connection.address} does not know this key", "", cure)
        if now - self._heard_at > POLL_S + REOPEN_S:
            self._heard_at = now
            self._reopen()
        self._request += 1  # a late answer to an earlier question is told by its number
        wait_s = POLL_S if self._wait else 0.0
        fetch = messages.Fetch(*self._key, self.cursor, wait_s, FETCH_BYTES)
        self._connection.wait_s = wait_s
        self._asked = self._connection.send(self._request, messages.encode(fetch))
        self._pause_s = PAUSE_MIN_S if self._asked else min(2 * self._pause_s, PAUSE_S)
        self._ask_at = now + (wait_s + OVERDUE_S if self._asked else self._pause_s)

    def _receive(self) -> list[Record]:
        """Take messages until there is output."""
        while received := self._connection.receive():
            request, body = received
            if not body:
                raise version.mismatch("the head", self._connection.stranger)
            self._heard_at = time.monotonic()
            try:
                answer = messages.bulk_from_head.decode(body)
            except msgspec.DecodeError as error:
                why = str(error).lower()
                raise Internal("the head's answer makes no sense", why, "install the same beo on both") from None
            if isinstance(answer, messages.StdinAck) and self._input and (answer.job, answer.attempt) == self._key:
                self._input.take_ack(answer)
            elif isinstance(answer, messages.Elsewhere):  # another head leads: find out which
                self._asked = False
                self._ask_at = self._heard_at + PAUSE_S
                self._learn()
                self._reopen()
            elif isinstance(answer, messages.Failed) and request in (0, self._request):
                self._take_failure(answer)
            elif isinstance(answer, messages.Fetched) and request == self._request and self._asked:
                self._asked = False
                self._ask_at = 0.0
                self.cursor = answer.cursor
                self.ended = answer.end or not (self._wait or answer.records)
                self._ask(self._heard_at)  # the next answer is on its way while this one is shown
                if answer.records:
                    return list(records.unpack(answer.records))
        return []

    def _take_failure(self, answer: messages.Failed) -> None:
        error = from_dict(answer.error)
        if not isinstance(error, Conflict):
            raise error
        self._asked = False
        self._ask_at = time.monotonic() + PAUSE_S

    def _send_input(self, source: _Input, now: float) -> None:
        for piece in source.due(now):
            if not self._connection.send(0, messages.encode(piece)):
                break
            source.sent_one(piece, now)
        if source.wants != self._input_polled:
            self._input_polled = source.wants
            if self._input_polled:
                self._poller.register(source.fd, wire.POLLIN)
            else:
                self._poller.unregister(source.fd)

    def _sleep(self, wait_s: float) -> bool:
        """Wait for any of it; return whether a descriptor of `wake_on` is readable."""
        woken = False
        for what, _ in self._poller.poll(max(0, int(wait_s * 1000) + 1)):
            woken = woken or what in self._wake_on
            if self._input and self._input_polled and what == self._input.fd:
                self._input.read()
        return woken


class _Input:
    """Bytes from a source on their way to rank 0. Pure go-back: what the warden has is all that counts.

    The size of the source's terminal, if it has one, goes with every piece, and alone when it changes: the last one
    wins, and is said again until the warden says it.
    """

    def __init__(self, job: int, attempt: int, source: Source) -> None:
        self.fd = source.fd
        self._source = source
        self._window_sent = NO_WINDOW
        self.closed = False
        self.next_at = float("inf")
        self._key = job, attempt
        self._base = 0  # offset of the first byte held, acknowledged up to there
        self._held = bytearray()
        self._sent = 0  # offset
        self._eof = self._eof_sent = False
        self._window_bytes = messages.STDIN_WINDOW_BYTES
        self._resend_s = RESEND_FIRST_S

    @property
    def wants(self) -> bool:
        """Whether there is room for more."""
        return not self._eof and not self.closed and len(self._held) < messages.STDIN_WINDOW_BYTES

    def read(self) -> None:
        """Read what is there; an error is the end, as it is for any reader of a terminal that has gone."""
        try:
            data = self._source.read()
        except BlockingIOError:
            return
        except OSError:
            data = None
        self._held += data or b""
        self._eof = data is None

    def due(self, now: float) -> Iterator[messages.Stdin]:
        """Yield what is to be sent now, each after the one before was `sent_one`."""
        if now >= self.next_at:  # no answer: again, and less of it, for nobody may be there
            self._sent, self._eof_sent, self._window_sent = self._base, False, NO_WINDOW
            self._window_bytes = PIECE_BYTES
            self._resend_s = min(2 * self._resend_s, RESEND_MAX_S)
            self.next_at = float("inf")
        while not self.closed:
            start = self._sent - self._base
            room = self._window_bytes - start
            data = bytes(self._held[start : start + min(PIECE_BYTES, max(0, room))])
            eof = self._eof and start + len(data) == len(self._held)
            window = self._source.window
            if not data and (not eof or self._eof_sent) and window == self._window_sent:
                return
            yield messages.Stdin(*self._key, self._sent, data, eof, window)

    def sent_one(self, piece: messages.Stdin, now: float) -> None:
        """A piece went out."""
        self._sent = piece.offset + len(piece.data)
        self._eof_sent = piece.eof
        self._window_sent = piece.window
        self.next_at = min(self.next_at, now + self._resend_s)

    def take_ack(self, ack: messages.StdinAck) -> None:
        """Drop what the warden has; go on."""
        taken = min(ack.have - self._base, len(self._held))
        if taken > 0:
            del self._held[:taken]
            self._base += taken
            self._sent = max(self._sent, self._base)
            self._window_bytes = min(2 * self._window_bytes, messages.STDIN_WINDOW_BYTES)
            self._resend_s = RESEND_FIRST_S
        if not (self._sent > self._base or self._eof_sent or ack.window != self._source.window):
            self.next_at = float("inf")
        elif taken > 0:
            self.next_at = time.monotonic() + self._resend_s
        if ack.closed:
            self.closed = True
            self._held.clear()
            self.next_at = float("inf")


def follow(
    open_bulk: Open,
    job: int,
    attempt: int,
    cursor: int = 0,
    wait: bool = True,
    stop: Callable[[], bool] = lambda: False,
    learn: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (cursor, rank, fd, data) of an attempt, for ever or until its end, or until `stop` says so.

    Who begins again at a cursor misses nothing; the cursor moves with the last record of each answer, so only then is
    nothing repeated either.
    """
    console = Console(open_bulk, job, attempt, cursor=cursor, wait=wait, learn=learn)
    try:
        while not (console.ended or stop()):
            before = console.cursor
            found = console.step(PAUSE_S)
            for number, (rank, fd, data) in enumerate(found, 1):
                yield (console.cursor if number == len(found) else before), rank, fd, data
    finally:
        console.close()
