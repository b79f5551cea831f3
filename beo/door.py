"""The door of a machine: a unix socket at which any local user says his public key, and the kernel says who he is.

One line each way, JSON: the visitor says {"key": ...}, and hears {"user": ...} or {"error": ...} as soon as the head
has that on record. The door has a thread of its own, so that a visitor who dawdles holds up nobody: he has PATIENCE_S,
and few bytes. What comes of a knock is decided elsewhere (headnode/admit.py).
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from beo.errors import BeoError, Conflict, Internal, NoHead, Refused, from_dict

NAME = "door"
VISITORS_MAX = 64  # at one time: each is answered in some milliseconds
VISITORS_PER_USER_MAX = 8  # so that one who keeps them busy shuts nobody else out
WORDS_BYTES_MAX = 256  # of a visitor: a key is 40 characters
ANSWER_BYTES_MAX = 64 * 1024
PATIENCE_S = 10.0  # for a visitor's words, and for the answer: a head that restarts is back by then
BACKLOG = 64
LOOK_S = 1.0
FOLDER_MODE = 0o711  # others may pass through the cluster's folder, not look around in it

_SO_PEERGROUPS = 59
_GROUPS_BYTES = 1024  # the most that Python asks for: 256 groups; of one who has more, none are taken

Knocked = Callable[[int, int, int, tuple[int, ...], str], object]  # visitor, uid, gid, groups, key


class _Visitor:
    """One connection. The kernel's word on who it is is of the moment when it was made."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        _, self.uid, self.gid = struct.unpack("iII", credentials)
        try:
            data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
            self.groups: tuple[int, ...] = struct.unpack(f"{len(data) // 4}I", data)
        except OSError:
            self.groups = ()
        self.words = b""
        self.asked = False
        self.until_s = time.monotonic() + PATIENCE_S


class Door:
    """The listening end, for a daemon that runs as root. `answer` and `close` are for any thread."""

    def __init__(self, folder: str, on_knock: Knocked) -> None:
        """Open the door in the cluster's folder, which others may pass through from now on. Raises OSError.

        on_knock is called by the door's thread; its visitor is to be given to `answer`.
        """
        self._on_knock = on_knock
        self._path = os.path.join(folder, NAME)
        os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) | FOLDER_MODE)
        self._listener = _listen(folder)
        self._visitors: dict[int, _Visitor] = {}
        self._serial = 0
        self._answers: queue.SimpleQueue[tuple[int, dict[str, object]]] = queue.SimpleQueue()
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, 0)
        self._selector.register(self._waker, selectors.EVENT_READ, 0)
        self._thread = threading.Thread(target=self._run, name="beo-door", daemon=True)
        self._thread.start()

    def answer(self, visitor: int, user: str, error: dict[str, str] | None) -> None:
        """Tell a visitor as whom he is let in, or why not; nothing where he has gone."""
        self._answers.put((visitor, {"error": error} if error else {"user": user}))
        os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Shut the door."""
        self._stopping = True
        os.eventfd_write(self._waker, 1)
        self._thread.join()
        with suppress(OSError):
            os.unlink(self._path)
        os.close(self._waker)

    # ---- its thread

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(LOOK_S):
                if key.data:
                    self._read(key.data)
                elif key.fd == self._waker:
                    with suppress(BlockingIOError):
                        os.eventfd_read(self._waker)
                else:
                    self._accept()
            while not self._answers.empty():
                self._tell(*self._answers.get_nowait())
            now_s = time.monotonic()
            for number in [number for number, visitor in self._visitors.items() if visitor.until_s <= now_s]:
                self._leave(number)
        for number in list(self._visitors):
            self._leave(number)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # he has gone again; or no descriptor is left, and the next look tries anew
            return
        connection.setblocking(False)
        visitor = _Visitor(connection)
        own = sum(other.uid == visitor.uid for other in self._visitors.values())
        self._serial += 1
        self._visitors[self._serial] = visitor
        self._selector.register(connection, selectors.EVENT_READ, self._serial)
        if own >= VISITORS_PER_USER_MAX or len(self._visitors) > VISITORS_MAX:
            busy = Conflict("too many stand at the door", f"{VISITORS_PER_USER_MAX} of a user at most", "try again")
            self._tell(self._serial, {"error": busy.to_dict()})

    def _read(self, number: int) -> None:
        visitor = self._visitors.get(number)
        if visitor is None:
            return
        try:
            data = visitor.connection.recv(WORDS_BYTES_MAX + 1 - len(visitor.words))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        visitor.words += data
        if not data or len(visitor.words) > WORDS_BYTES_MAX or visitor.asked:
            self._leave(number)
        elif visitor.words.endswith(b"\n"):
            try:
                key = str(json.loads(visitor.words)["key"])
            except (ValueError, KeyError, TypeError, RecursionError):
                self._leave(number)
                return
            visitor.asked = True
            visitor.until_s = time.monotonic() + PATIENCE_S
            self._on_knock(number, visitor.uid, visitor.gid, visitor.groups, key)

    def _tell(self, number: int, answer: dict[str, object]) -> None:
        visitor = self._visitors.get(number)
        if visitor:
            with suppress(OSError):  # he doesn't listen any more; an answer always fits into an empty socket
                visitor.connection.send(json.dumps(answer).encode() + b"\n", socket.MSG_NOSIGNAL)
            self._leave(number)

    def _leave(self, number: int) -> None:
        visitor = self._visitors.pop(number)
        self._selector.unregister(visitor.connection)
        visitor.connection.close()


def _listen(folder: str) -> socket.socket:
    folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            os.unlink(NAME, dir_fd=folder_fd)
        listener.bind(f"/proc/self/fd/{folder_fd}/{NAME}")  # a socket's address has 107 bytes at most; a path may not
        os.chmod(NAME, 0o666, dir_fd=folder_fd)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder_fd)
    return listener


# ---- the visitor's end


def find(folder: str) -> None:
    """Raise Refused where a cluster's folder has no door."""
    if not os.path.exists(os.path.join(folder, NAME)):
        raise Refused(f"the cluster in {folder} has no door for you", "", _whose(folder))


def knock(folder: str, key: str) -> str:
    """Say a public key at the door of this folder; return the name by which the cluster knows us now.

    Raises Refused where there is no door or nobody is let in, NoHead where nobody comes to it, or the head's error.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S + LOOK_S)
    try:
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # it can't be read, only passed through
        try:
            connection.connect(f"/proc/self/fd/{folder_fd}/{NAME}")
        finally:
            os.close(folder_fd)
        connection.sendall(json.dumps({"key": key}).encode() + b"\n")
        words = b""
        while not words.endswith(b"\n") and len(words) <= ANSWER_BYTES_MAX:
            data = connection.recv(ANSWER_BYTES_MAX)
            if not data:
                raise NoHead("nobody comes to the cluster's door", f"{folder}/{NAME}", "try again, or ask its operator")
            words += data
        answer = json.loads(words)
    except FileNotFoundError:
        raise Refused(f"the cluster in {folder} has no door for you", "", _whose(folder)) from None
    except PermissionError:
        raise Refused(f"the door of {folder} is shut for you", "", _whose(folder)) from None
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError, TimeoutError) as error:
        why = str(error).lower()
        raise NoHead(f"nobody is at the door of {folder}", why, "its operator starts the cluster by 'beo up'") from None
    except ValueError:
        raise Internal(f"the door of {folder} talks nonsense", "", "install the same beo as the cluster has") from None
    finally:
        connection.close()
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise from_dict(answer["error"])
    return str(answer.get("user", "")) if isinstance(answer, dict) else ""


def _whose(folder: str) -> str:
    """Who could help."""
    import pwd

    owner = ""
    with suppress(OSError, KeyError):
        owner = " " + pwd.getpwuid(os.stat(folder).st_uid).pw_name
    return f"ask its owner{owner}, or 'beo up' your own with another BEO_DIR"


def describe_shut(folder: str) -> BeoError:
    """The refusal for somebody who may not even pass through the folder: its cluster has one user."""
    why = "its daemons don't run as root, or its door is shut" if os.path.isdir(folder) else ""
    return Refused(f"the cluster in {folder} is its owner's alone", why, _whose(folder))
