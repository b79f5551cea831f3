"""The agent's side of the wardens: start one, find one again, talk to it without ever waiting."""

from __future__ import annotations

import os
import socket
from typing import Any

from beo.worker.contain import started_ticks
from beo.worker.frames import LISTENER, PIDS, FrameError, Frames, frame

_WARDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "warden.py")

RECEIVE_BYTES = 64 << 10
"""Received at a time: a larger buffer would be mapped and unmapped by the allocator for every message."""
UNSENT_BYTES_MAX = 64 << 20
"""Unsent messages after which a warden that doesn't read counts as gone."""
BACKLOG = 4
"""Agents that may wait to be accepted: one, and the one that replaces it."""


class Link:
    """A connection to one warden, for a loop that polls `fileno()`.

    pid: of the keeper, if this process started it, else None. closed: the warden has gone or talks nonsense (`trouble`
    says which); what it said before that has been received.
    """

    def __init__(self, folder: str, connection: socket.socket, pid: int | None = None) -> None:
        self.folder = folder
        self.pid = pid
        self.closed = False
        self.trouble = ""
        self._connection = connection
        self._connection.setblocking(False)
        self._frames = Frames()
        self._unsent = bytearray()

    def fileno(self) -> int:
        """The descriptor to poll; -1 once closed by `close`."""
        return self._connection.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether to poll for writing too, and to call `flush` then."""
        return bool(self._unsent) and not self.closed

    def send(self, message: dict[str, Any]) -> None:
        """Send `message` as far as the warden reads now; the rest goes with `flush`. FrameError if it is too long."""
        if self.closed:
            return
        self._unsent += frame(message)
        self.flush()
        if len(self._unsent) > UNSENT_BYTES_MAX:
            self._fail(f"it doesn't read ({len(self._unsent)} bytes wait)")

    def flush(self) -> None:
        """Send what waits, as far as possible now."""
        try:
            while self._unsent and not self.closed:
                del self._unsent[: self._connection.send(self._unsent, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()  # what the warden said last may still be there to receive, so not closed yet

    def receive(self) -> list[dict[str, Any]]:
        """The messages that are there now; sets `closed` when there will be no more."""
        messages: list[dict[str, Any]] = []
        try:
            while not self.closed:
                data = self._connection.recv(RECEIVE_BYTES)
                if not data:
                    self._fail("it has gone")
                messages += self._frames.feed(data)
                if len(data) < RECEIVE_BYTES:
                    break
        except BlockingIOError:
            pass
        except (OSError, FrameError) as error:
            self._fail(str(error))
        return messages

    def reaped(self) -> bool:
        """Whether the warden's process has ended and left nothing; False for good where another agent started it."""
        if self.pid is not None:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                    return False
            except ChildProcessError:
                pass
            self.pid = None
            return True
        return False

    def close(self) -> None:
        """Hang up; the warden goes on."""
        self.closed = True
        self._connection.close()

    def _fail(self, trouble: str) -> None:
        self.closed = True
        self.trouble = self.trouble or trouble
        self._unsent.clear()


def spawn_warden(folder: str, python: str, contain: str, crowd: str = "") -> Link:
    """Start a warden that keeps its socket, log and spools in `folder` (made if missing), and connect to it.

    python: the interpreter to run it with. contain: pidns, userns or subreaper, see `probe.contain_kind`. crowd: what
    limits its processes, see `contain.limit_processes`. Returns at
    once, long before the warden is ready: what is sent meanwhile waits for it. OSError where that is not possible.
    """
    os.makedirs(folder, 0o700, exist_ok=True)
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    log_fd = -1
    try:
        log_fd = os.open("warden.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=folder_fd)
        try:
            os.unlink("sock", dir_fd=folder_fd)
        except FileNotFoundError:
            pass
        listener.bind(_address(folder_fd))
        listener.listen(BACKLOG)
        moves = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log_fd, 1),
            (os.POSIX_SPAWN_DUP2, log_fd, 2),
            (os.POSIX_SPAWN_DUP2, listener.fileno(), LISTENER),
        ]
        arguments = [python, "-I", "-S", _WARDEN, folder, contain, *([crowd] if crowd else [])]
        # An empty environment: nothing of the agent's shall be readable in a warden's, and a job's is given with it.
        pid = os.posix_spawn(python, arguments, {}, file_actions=moves, setsid=True, setsigmask=())
        return Link(folder, _connect(folder_fd), pid)
    finally:
        listener.close()
        os.close(folder_fd)
        if log_fd >= 0:
            os.close(log_fd)


def is_dead(folder: str) -> bool:
    """Whether the warden of `folder` has ended, and with it all that it held behind its walls.

    A connection that was closed or refused proves nothing: a warden hangs up on what it can't read, and one that ends
    closes its sockets a moment before the kernel kills the rest. Its processes' end does: the walls fall with PID 1.
    """
    try:
        with open(os.path.join(folder, PIDS), "rb") as file:
            pids = [(int(pid), int(ticks)) for pid, ticks in map(bytes.split, file)]
    except (FileNotFoundError, ValueError):
        # It has not come so far as to listen to anyone, so it runs nothing. It never will if nobody holds its socket.
        # Of one whose file is damaged the socket is all there is to go by: PID 1 holds it for as long as it lives.
        return not _is_held(folder)
    return all(started_ticks(pid) != ticks for pid, ticks in pids)


def _is_held(folder: str) -> bool:
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return False
    try:
        _connect(folder_fd).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except OSError:
        pass  # a full backlog, say: somebody has the socket
    finally:
        os.close(folder_fd)
    return True


def attach(folder: str) -> Link | None:
    """Connect to the warden that lives in `folder`; None if none answers now, which isn't to say that it is dead."""
    try:
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        return Link(folder, _connect(folder_fd))
    except OSError:
        return None
    finally:
        os.close(folder_fd)


def _connect(folder_fd: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)  # a full backlog is an error, not a wait
        connection.connect(_address(folder_fd))
    except BaseException:
        connection.close()
        raise
    return connection


def _address(folder_fd: int) -> str:
    """The socket's path by way of the folder's descriptor: a socket's address must not be longer than 107 bytes."""
    return f"/proc/self/fd/{folder_fd}/sock"
