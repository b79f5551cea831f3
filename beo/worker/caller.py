"""Who asks for a step: the other end of the warden's socket that BEO_STEPS names, in a process of the job.

Of the standard library alone, since `beo-rsh` is started once for every node of every `mpirun`.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
from base64 import b64decode, b64encode

from beo.worker.frames import FrameError, Frames, frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

STEPS = "BEO_STEPS"
"""The variable that names the socket."""
INTERFACE = "BEO_INTERFACE"
"""The variable that names the interface of the cluster's network at this node."""
OF_A_NODE = (
    "FI_TCP_IFACE",
    "HYDRA_IFACE",
    "OMPI_MCA_btl_tcp_if_include",
    "PRTE_MCA_prte_if_include",
    "UCX_NET_DEVICES",
)
"""Variables that each node sets for itself: a step takes those of its own nodes, unless the job has said otherwise."""
OF_A_RANK = ("BEO_", "PMI_", "PMIX_")
"""Beginnings of variables that each rank has of its own."""

PIECE_BYTES = 64 << 10
"""Of standard input in one message: what a pipe holds."""
RECEIVE_BYTES = 64 << 10
HELD_BYTES_MAX = 1 << 20
"""Output that is held for a reader who takes his time; beyond it the step's ranks wait in their writes."""
NOTHING = -2
AGAIN_S = 1.0
"""Input that wasn't taken is offered again after this time, should the word that there is room have gone astray."""


class StepError(Exception):
    """There is no step, or it came to no end: `what` happened, `why`, and the `cure`."""

    def __init__(self, what: str, why: str = "", cure: str = "") -> None:
        super().__init__(what, why, cure)
        self.what = what
        self.why = why
        self.cure = cure

    def __str__(self) -> str:
        return self.what + (f" ({self.why})" if self.why else "") + (f": {self.cure}" if self.cure else "")


def knock(path: str) -> socket.socket | None:
    """Connect to the warden at the place that STEPS names; None where that is no place in a job that runs."""
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:  # another machine's, or of a job that has ended
        connection.close()
        return None
    return connection


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a step takes over of its caller's environment: all but what every node or rank has of its own."""
    own = {name for name in environ if name.startswith(OF_A_RANK) or not _is_text(name + environ[name])}
    if environ.get("TMPDIR") == os.path.dirname(environ.get(STEPS, "")):
        own.add("TMPDIR")
    own |= {name for name in OF_A_NODE if environ.get(name) == environ.get(INTERFACE)}
    return {name: value for name, value in environ.items() if name not in own}


def exit_code(ended: Mapping[str, Any]) -> int:
    """The exit code of a step: of the rank that ended it, else of the lowest one that failed."""
    if ended.get("status"):
        return int(ended["status"])
    ranks = sorted(ended.get("ranks", ()), key=lambda result: int(result["rank"]))
    return next((int(result["status"]) for result in ranks if result["status"]), 0)


def has_input() -> bool:
    """Say whether standard input is there and is not /dev/null."""
    try:
        found, null = os.fstat(0), os.stat(os.devnull)
    except OSError:
        return False
    return not (stat.S_ISCHR(found.st_mode) and found.st_rdev == null.st_rdev)


class Caller:
    """One connection, which is one step.

    write: takes (rank, 1 or 2, data) of output and returns the bytes to be written there, or all of it by default.
    waits: told why the step can't start yet, and "" when it has. take_over: signals that go to the step from now on.
    """

    def __init__(
        self,
        connection: socket.socket,
        write: Callable[[int, int, bytes], bytes] = lambda rank, fd, data: data,
        waits: Callable[[str], None] = lambda why: None,
    ) -> None:
        self.started = False
        self.interrupted: Callable[[int], bool] = lambda number: False
        """Asked about each signal that has come; True: hang up at once, which kills the step."""
        self._connection = connection
        self._connection.setblocking(False)
        self._write = write
        self._waits = waits
        self._frames = Frames()
        self._unsent = bytearray()
        self._input: _Input | None = None
        self._output = {1: bytearray(), 2: bytearray()}
        self._regular = {fd: _is_regular(fd) for fd in (1, 2)}
        self._signals: list[int] = []
        self._woken = -1  # readable when a signal has come
        self._over = False  # the warden has said all that it will
        self._ended: dict[str, Any] = {}
        self._trouble: StepError | None = None
        self._cut = False

    def take_over(self, numbers: Iterable[int]) -> None:
        """Let these signals go to the step."""
        self._woken, wake = os.pipe()
        for fd in (self._woken, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda number, _: self._signals.append(number))

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have the step run to its end; return the warden's word about it, once all of its output is written.

        `request` is that of op "run" without its op; where its `stdin` is true, standard input is read for rank 0.
        Raises StepError, BrokenPipeError where nobody reads our output any more, and KeyboardInterrupt where
        `interrupted` says so; the step is dead soon after.
        """
        if request.get("stdin"):
            self._input = _Input(0)
        try:
            self._send({"op": "run", **request})
            while not self._over or any(self._output.values()):
                self._turn()
                if self._cut:
                    raise KeyboardInterrupt
            if self._trouble:
                raise self._trouble
            return self._ended
        finally:
            self._connection.close()

    # ---- one turn

    def _turn(self) -> None:
        poll = select.poll()
        held_bytes = sum(map(len, self._output.values()))
        if not self._over:
            listening = held_bytes < HELD_BYTES_MAX
            poll.register(self._connection, select.POLLIN * listening | select.POLLOUT * bool(self._unsent))
        for fd, data in self._output.items():
            if data:
                poll.register(fd, select.POLLOUT)
        if self._input and self._input.wanted and self.started and not self._over:
            poll.register(self._input.fd, select.POLLIN)
        if self._woken >= 0:
            poll.register(self._woken, select.POLLIN)
        stalled = self._input is not None and self._input.stalled
        for fd, events in poll.poll(AGAIN_S * 1000 if stalled else None) or [(NOTHING, 0)]:
            if fd == self._connection.fileno():
                self._talk(events)
            elif fd in self._output:
                self._put(fd)
            elif self._input and fd == self._input.fd:
                self._input.read()
            elif fd == self._woken:
                os.read(fd, RECEIVE_BYTES)
            elif self._input:  # nothing has come for a while
                self._input.stalled = False
        self._forward()
        self._feed()

    def _talk(self, events: int) -> None:
        self._flush()
        if not events & ~select.POLLOUT:
            return
        try:
            data = self._connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(StepError("the step's warden has gone", "the job has ended, or this node is being cut off"))
        try:
            for message in self._frames.feed(data):
                self._hear(message)
        except (FrameError, KeyError, TypeError, ValueError) as error:
            self._end(StepError("the warden's words make no sense", str(error), "install the same beo everywhere"))

    def _end(self, trouble: StepError | None = None) -> None:
        if not self._over:
            self._over, self._trouble = True, trouble

    def _hear(self, message: dict[str, Any]) -> None:
        op = message["op"]
        if op == "output":
            rank, fd = message["rank"], 2 if message["fd"] == 2 else 1
            self._output[fd] += self._write(rank, fd, b64decode(message["data"]))
        elif op == "stdin" and self._input:
            self._input.taken(message["have"], bool(message["closed"]))
        elif op == "waiting":
            self._waits(str(message["why"]))
        elif op == "started":
            self.started = True
            self._waits("")
        elif op == "ended":
            self._ended = message
            self._end()
        elif op == "refused":
            self._waits("")
            self._end(StepError(str(message["what"]), str(message.get("why", "")), str(message.get("cure", ""))))

    def _put(self, fd: int) -> None:
        """Write as much as the kernel takes without making us wait: of a pipe that is ready, so much at least."""
        data = self._output[fd]
        piece = data if self._regular[fd] else data[: select.PIPE_BUF]
        try:
            del data[: os.write(fd, piece)]
        except BlockingIOError:  # somebody else was quicker at filling it
            pass

    def _forward(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if self.interrupted(number):
                self._cut = True
            elif not self._over:
                self._send({"op": "signal", "signal": number})

    def _feed(self) -> None:
        if self._input and not self._over and (piece := self._input.due()):
            offset, data, eof = piece
            self._send({"op": "stdin", "offset": offset, "data": b64encode(data).decode(), "eof": eof})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._unsent += frame(message)
        except FrameError as error:
            raise StepError("the step's command and environment are too long", str(error), "pass a file") from None
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._connection.send(self._unsent, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            pass
        except OSError:  # what the warden said last is still there to be heard
            self._unsent.clear()


class _Input:
    """Bytes from a descriptor on their way to rank 0, one piece at a time: what the warden has is all that counts."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.stalled = False  # the last piece was not taken whole; the warden says when there is room
        self._base = 0  # offset of the first byte held
        self._held = b""
        self._eof = False
        self._asked = False  # a piece is under way
        self._closed = False

    @property
    def wanted(self) -> bool:
        """Whether to read more."""
        return not self._held and not self._eof and not self._closed

    def read(self) -> None:
        """Read what is there; an error is the end, as it is for any reader of a terminal that has gone."""
        try:
            self._held = os.read(self.fd, PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._held = b""
        self._eof = not self._held

    def due(self) -> tuple[int, bytes, bool] | None:
        """The piece to be sent now, if there is one: offset, bytes, whether they are the last."""
        if self._asked or self.stalled or self._closed or not (self._held or self._eof):
            return None
        self._asked = True
        return self._base, self._held, self._eof

    def taken(self, have: int, closed: bool) -> None:
        """The warden has everything up to `have`."""
        self._closed = self._closed or closed
        taken = max(0, min(have - self._base, len(self._held)))
        self._held = self._held[taken:]
        self._base += taken
        self.stalled = self._asked and bool(self._held)
        self._asked = self._asked and self._eof and not self._held  # the end was told, and need not be again


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _is_text(word: str) -> bool:
    return word.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in word)
