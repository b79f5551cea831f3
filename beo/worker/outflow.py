"""What the ranks of a step print, on its way to whoever started the step, here or at another node.

Only so much is under way at a time. Beyond that the ranks' pipes are not read, so the ranks wait in their writes: that
is how a slow reader slows a fast writer down, over any number of nodes.
"""

from __future__ import annotations

import os

from beo.worker.loop import Loop
from beo.worker.pipes import HOLD_S, READ_BYTES
from beo.worker.spool import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_BYTES = 256 << 10
"""Output of one step at one node that may be under way: four full pipes."""
PIECE_BYTES = 128
"""What a piece of output counts for beyond its data: a message holds it. So pieces of one byte are limited too."""


def cost_bytes(data: bytes) -> int:
    """What a piece of output counts for in the window."""
    return len(data) + PIECE_BYTES


class Outflow:
    """Reads the pipes of a step's ranks here.

    send: takes (rank's number, 1 or 2, data) on its way; `taken` says when it has arrived. clear: whether anything may
    be sent now. holding: keep the lines of several ranks apart.
    """

    def __init__(
        self, loop: Loop, holding: bool, send: Callable[[int, int, bytes], None], clear: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._holding = holding
        self._send = send
        self._clear = clear
        self._streams: list[Stream] = []
        self._under_way_bytes = 0
        self.stalled = False
        self._done: Callable[[], None] | None = None

    def open(self, number: int, kind: int) -> int:
        """Make the pipe for a rank's stdout (1) or stderr (2); its end for the rank, for the caller to close."""
        fd, write = os.pipe()
        os.set_blocking(fd, False)
        stream = Stream(number, kind, fd, self._holding)
        self._streams.append(stream)
        if not self.stalled:
            self._watch(stream)
        return write

    def say(self, number: int, kind: int, data: bytes) -> None:
        """Send what no pipe brings, such as why a rank could not be started."""
        if data:
            self._under_way_bytes += cost_bytes(data)
            self._send(number, kind, data)

    def taken(self, size_bytes: int) -> None:
        """So much of what was sent (by `cost_bytes`) has been read."""
        self._under_way_bytes = max(0, self._under_way_bytes - size_bytes)
        self.resume()

    def resume(self) -> None:
        """Go on reading, if that is possible again."""
        if self.stalled and self._may_read():
            self.stalled = False
            for stream in self._streams:
                self._watch(stream)
            if self._done:
                self._drain()

    def finish(self, done: Callable[[], None]) -> None:
        """All writers are dead, so an empty pipe is at its end: read them all, and call `done`."""
        self._done = done
        if not self.stalled:
            self._drain()

    def close(self) -> None:
        """Let go of the pipes, whatever is in them."""
        self._done = None
        for stream in list(self._streams):
            stream.cut()
            self._close(stream)

    def _may_read(self) -> bool:
        return self._under_way_bytes < WINDOW_BYTES and self._clear()

    def _drain(self) -> None:
        for stream in list(self._streams):
            while self._read(stream):
                pass
            if self.stalled:
                return
            if stream in self._streams:
                self._close(stream)
        done, self._done = self._done, None
        if done:
            done()

    def _watch(self, stream: Stream) -> None:
        def read() -> None:
            self._read(stream)

        self._loop.watch(stream.fd, read)

    def _read(self, stream: Stream) -> bool:
        """Take one piece of a rank's output; whether there may be more now."""
        if not self._may_read():
            self.stalled = True
            for other in self._streams:
                self._loop.unwatch(other.fd)
            return False
        try:
            data = os.read(stream.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close(stream)
            return False
        self.say(stream.rank, stream.kind, stream.pieces(data))
        if not stream.kept:
            self._loop.forget(("hold", stream.fd))
        elif self._loop.due_s(("hold", stream.fd)) is None:
            self._loop.after(HOLD_S, ("hold", stream.fd), lambda: self._cut(stream))
        return True

    def _cut(self, stream: Stream) -> None:
        self.say(stream.rank, stream.kind, stream.cut())

    def _close(self, stream: Stream) -> None:
        self._cut(stream)
        self._loop.forget(("hold", stream.fd))
        self._loop.unwatch(stream.fd)
        os.close(stream.fd)
        self._streams.remove(stream)
