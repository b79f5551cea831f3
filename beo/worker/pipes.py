"""The ranks' pipes: what they print goes into the spool, what was sent for rank 0 goes into its standard input."""

from __future__ import annotations

import os

from beo.worker.loop import BROKEN, WRITE, Loop
from beo.worker.spool import Spool, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 64 << 10
"""Read from a pipe at a time: all that a pipe holds."""
INPUT_BYTES_MAX = 1 << 20
"""Input held for rank 0 until it reads; the sender learns from `have` how much was taken."""
HOLD_S = 0.05
"""How long the beginning of a line waits for its end before it is written as it is."""
NOTICE_S = 0.02
"""Shortest time between two notices of new output."""
RETRY_S = 0.2
"""Between two tries to write what the disk refused."""


class Output:
    """Reads the ranks' stdout and stderr into the spool, and stops reading while the disk takes no more.

    holding: keep the lines of several ranks apart. notice: told the length of the spool whenever there is more, and the
    trouble ("" if none) when it can't be written.
    """

    def __init__(
        self,
        spool: Spool,
        loop: Loop,
        holding: bool,
        notice: Callable[[int, str], None],
        notice_s: float = NOTICE_S,
    ) -> None:
        self._spool = spool
        self._loop = loop
        self._holding = holding
        self._notice = notice
        self._notice_s = notice_s
        self._streams: list[Stream] = []
        self._blocked = False
        self._told_bytes = 0
        self._drained: Callable[[], None] | None = None

    def open(self, rank: int, kind: int) -> int:
        """Make the pipe for a rank's stdout (1) or stderr (2); its end for the rank, for the caller to close."""
        fd, write = os.pipe()
        self.adopt(rank, kind, fd)
        return write

    def adopt(self, rank: int, kind: int, fd: int) -> None:
        """Read from `fd`, and close it at its end."""
        os.set_blocking(fd, False)
        stream = Stream(rank, kind, fd, self._holding)
        self._streams.append(stream)
        self._watch(stream)

    def hold(self) -> None:
        """Keep lines apart from now on: there is more than one rank."""
        self._holding = True
        for stream in self._streams:
            stream.holding = True

    def say(self, rank: int, kind: int, data: bytes) -> None:
        """Write what no pipe brings, such as why a rank could not be started."""
        self._spool.add(rank, kind, data)

    def turn(self) -> None:
        """At the end of the loop's turn: write what was read, and tell that there is more."""
        if not self._blocked and not self._spool.write():
            self._block()
        if self._spool.whole_bytes != self._told_bytes and self._loop.due_s("notice") is None:
            self._tell()
            self._loop.after(self._notice_s, "notice", lambda: None)  # the turn that it causes comes back here

    def drain(self, drained: Callable[[], None]) -> None:
        """Read the pipes to their end, and call `drained` when all is in the spool.

        All writers are dead by then, so an empty pipe is at its end, whoever else may hold it open.
        """
        self._drained = drained
        for stream in list(self._streams):
            while self._read(stream) and self._spool.write():
                pass
            if not self._spool.write():
                self._block()
                return
            if stream in self._streams:
                self._close(stream)
        if self._spool.write():
            self._blocked = False
            self._loop.forget("spool")
            drained()
        else:
            self._block()

    def finish(self) -> None:
        """Tell the final length and close the spool; after `drain`."""
        self._loop.forget("notice")
        if self._spool.whole_bytes != self._told_bytes:
            self._tell()
        self._spool.close()

    def _tell(self) -> None:
        self._told_bytes = self._spool.whole_bytes
        self._notice(self._told_bytes, "")

    def _watch(self, stream: Stream) -> None:
        def read() -> None:
            self._read(stream)

        self._loop.watch(stream.fd, read)

    def _read(self, stream: Stream) -> bool:
        """Take one piece of a rank's output; whether there may be more now."""
        try:
            data = os.read(stream.fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:  # how a terminal says that nobody has it open any more
            data = b""
        if not data:
            self._close(stream)
            return False
        self._spool.add(stream.rank, stream.kind, stream.pieces(data))
        if not stream.kept:
            self._loop.forget(("hold", stream.fd))
        elif self._loop.due_s(("hold", stream.fd)) is None:
            self._loop.after(HOLD_S, ("hold", stream.fd), lambda: self._cut(stream))
        return True

    def _cut(self, stream: Stream) -> None:
        self._spool.add(stream.rank, stream.kind, stream.cut())

    def _close(self, stream: Stream) -> None:
        self._cut(stream)
        self._loop.forget(("hold", stream.fd))
        self._loop.unwatch(stream.fd)
        os.close(stream.fd)
        self._streams.remove(stream)

    def _block(self) -> None:
        self._blocked = True
        for stream in self._streams:
            self._loop.unwatch(stream.fd)
        self._loop.after(RETRY_S, "spool", self._retry)
        self._told_bytes = self._spool.whole_bytes
        self._notice(self._told_bytes, self._spool.trouble)

    def _retry(self) -> None:
        if not self._spool.write():
            self._loop.after(RETRY_S, "spool", self._retry)
            return
        self._blocked = False
        for stream in self._streams:
            self._watch(stream)
        if self._drained:
            self.drain(self._drained)


class Input:
    """Rank 0's standard input: takes each byte once, by its offset, and no more than it can hold.

    have: bytes taken so far. closed: no more will be taken, as it came to its end or nobody reads it (any more). told:
    called when either changes by itself.
    """

    def __init__(self, loop: Loop, told: Callable[[], None]) -> None:
        self.have = 0
        self._loop = loop
        self._told = told
        self._fd = -1
        self._waiting = bytearray()
        self._eof = False
        self._refused = False  # the sender waits to hear that there is room again

    @property
    def closed(self) -> bool:
        """Whether there is no pipe, or no longer."""
        return self._fd < 0

    def fileno(self) -> int:
        """The descriptor that is written to; -1 once it is closed."""
        return self._fd

    def open(self) -> int:
        """Make the pipe; its end for the rank, for the caller to close."""
        read, write = os.pipe()
        self.adopt(write)
        return read

    def adopt(self, fd: int) -> None:
        """Write to `fd`, and close it in the end."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._loop.watch(fd, self._ready, BROKEN)

    def feed(self, offset: int, data: bytes, eof: bool) -> None:
        """Take what is new in `data`, which begins at `offset`; what doesn't fit is left to be sent again."""
        end = offset + len(data)
        if not self.closed and offset <= self.have <= end:
            fresh = data[self.have - offset :][: INPUT_BYTES_MAX - len(self._waiting)]
            self._waiting += fresh
            self.have += len(fresh)
            self._eof = self._eof or (eof and self.have == end)
            self._refused = self.have < end
            self._pump()
        self._told()

    def close(self) -> None:
        """Close the pipe: the rank reads end-of-file, if there is a rank."""
        if self._fd >= 0:
            self._loop.unwatch(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._waiting.clear()

    def _ready(self) -> None:
        """The rank takes more, or, if there is nothing for it, has closed its end: that is an error at this one."""
        if self._waiting:
            self._pump()
        else:
            self.close()
            self._told()

    def _pump(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._fd, self._waiting[:READ_BYTES])]
        except BlockingIOError:
            self._loop.watch(self._fd, self._ready, WRITE)
            return
        except OSError:  # the rank reads no more
            self.close()
            self._told()
            return
        self._loop.watch(self._fd, self._ready, BROKEN)
        if self._eof:
            self.close()
        if self._eof or self._refused:
            self._refused = False
            self._told()
