"""The resident: a process per user and installation that has everything loaded, so that a verb begins at once.

It forks *children* ahead of need, each with everything loaded and, where a cluster was used before, with a connection
to its head. A child takes one front's request (`front.py` has the conversation), becomes what that front is (directory,
environment, descriptors, umask, ignored signals), does the verb and ends; another takes its place. The resident itself
never speaks to a front but to tell how its child ended, loads no more than is forked in a moment, and has one thread.

It ends when nobody has used it for a while, when a file that it has loaded was changed, when its socket was taken away
or on SIGTERM; verbs that are under way are finished first, and new ones find the next resident.
"""

from __future__ import annotations

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from importlib import import_module
from io import BufferedReader, BufferedWriter, FileIO, TextIOWrapper
from pathlib import Path
from typing import NoReturn

from beo import direct, front, lockfile
from beo.errors import EXIT_FAILED, EXIT_OK, BeoError

Stamp = list[tuple[str, int, int]]

READY = 3  # children ahead of need: a pipeline's or a small loop's worth
BUSY_MAX = 200  # verbs at a time, each with some 5 MB of its own; further ones are done by their fronts
REFILL_PAUSE_S = 0.03  # so long a verb has the processors for itself, as long as another child is ready
IDLE_S = 600.0  # without a verb for so long, the resident ends
LOOK_S = 5.0  # between two looks at what could have changed
REQUEST_S = 5.0  # a front writes its request in one go
GO_S = 5.0  # and answers at once
AHEAD = 1  # connections kept ready in each child
WARM_S = 60.0  # a connection kept ready is closed after this long without a verb
BACKLOG = 512  # fronts that wait at a time

STALE = 3  # exit code of a child that found its code changed
CHUNK_BYTES = 256 * 1024  # read at a time
DESCRIPTORS_MAX = 4
WORD_SIZE_MAX_BYTES = 4096  # from a child to the resident: a path
_F_SETSIG = 10  # fcntl(2); the module doesn't name it


class Child:
    """A forked process: `leash` is our end of a socket that it holds, `front` its front's connection, if any."""

    def __init__(self, pid: int, leash: socket.socket) -> None:
        """Take both."""
        self.pid = pid
        self.leash = leash
        self.front: socket.socket | None = None


class Resident:
    """The process that forks. `path` is where it listens."""

    def __init__(self, path: str, lock: int) -> None:
        """Listen at `path`, in the place of whoever did before; `lock` is the descriptor of the lock that allows it."""
        self._path = path
        self._lock = lock
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = f"{path}.new"
        Path(fresh).unlink(missing_ok=True)
        self._listener.bind(fresh)
        self._listener.listen(BACKLOG)
        self._listener.setblocking(False)
        os.rename(fresh, path)
        self._socket = os.stat(path).st_ino
        self._stamp = stamp()
        self._facts = front.facts()
        self._children: dict[int, Child] = {}  # by the descriptor of the leash
        self._poll = select.poll()
        self._cluster = ""  # the folder of the cluster that was used last
        self._used_s = self._looked_s = time.monotonic()
        self._retiring = False
        self._full = False  # and the listener is looked at, to turn fronts away
        self._asked_to_end = False
        wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._woken = wake
        self._poll.register(wake, select.POLLIN)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.set_wakeup_fd(woken)

    def run(self) -> None:
        """Serve until there is a reason to end, and all that was begun is finished."""
        while not self._retiring or self._children:
            if self._asked_to_end:
                self.retire()
            for fd, _ in self._poll.poll(1000 * self._refill()):
                if fd in self._children:
                    self._hear(self._children[fd])
                elif fd == self._woken:
                    os.read(fd, 16)
                else:
                    self._turn_away()
            if not self._retiring and time.monotonic() - self._looked_s >= LOOK_S:
                self._look()

    def retire(self) -> None:
        """Take no further verb; the next resident may start. Children that wait for a verb end."""
        if self._retiring:
            return
        self._retiring = True
        self._set_full(False)
        if _inode(self._path) == self._socket:
            os.unlink(self._path)
        os.close(self._lock)
        self._listener.close()
        for child in self._children.values():
            if child.front is None:
                child.leash.shutdown(socket.SHUT_WR)

    def _on_sigterm(self, *_: object) -> None:
        self._asked_to_end = True

    def _look(self) -> None:
        self._looked_s = time.monotonic()
        idle = self._looked_s - self._used_s > IDLE_S
        if idle or _inode(self._path) != self._socket or stamp() != self._stamp:
            self.retire()

    def _refill(self) -> float:
        """Fork a child if one is missing; return for how long there is nothing more to do (seconds)."""
        if self._retiring:
            return LOOK_S
        self._set_full(len(self._children) >= BUSY_MAX)
        ready = sum(child.front is None for child in self._children.values())
        if self._full or ready >= READY:
            return LOOK_S
        wait_s = self._used_s + REFILL_PAUSE_S - time.monotonic() if ready else 0.0
        if wait_s > 0:
            return wait_s
        self._fork()
        return 0.0

    def _set_full(self, full: bool) -> None:
        if full and not self._full:
            self._poll.register(self._listener, select.POLLIN)
        elif self._full and not full:
            self._poll.unregister(self._listener)
        self._full = full

    def _turn_away(self) -> None:
        """Let a front do its verb itself."""
        try:
            self._listener.accept()[0].close()
        except BlockingIOError:
            pass

    def _fork(self) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if not pid:
            ours.close()
            os.close(self._lock)
            for child in self._children.values():
                child.leash.close()
                if child.front:
                    child.front.close()
            _be_child(self._listener, theirs, self._facts, self._stamp, self._cluster)
        theirs.close()
        self._children[ours.fileno()] = Child(pid, ours)
        self._poll.register(ours, select.POLLIN)

    def _hear(self, child: Child) -> None:
        """Hear that a child has got a front, or that it ended."""
        try:
            data, descriptors, _, _ = socket.recv_fds(child.leash, WORD_SIZE_MAX_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            data, descriptors = b"", []
        if data:
            self._used_s = time.monotonic()
            child.front = socket.socket(fileno=descriptors[0])
            self._cluster = os.fsdecode(data)
            return
        self._poll.unregister(child.leash)
        del self._children[child.leash.fileno()]
        child.leash.close()
        _, status = os.waitpid(child.pid, 0)
        if child.front:
            if os.WIFSIGNALED(status):
                with suppress(OSError):  # the front may have ended before it, and killed it by that
                    child.front.send(front.SIGNALLED + bytes([os.WTERMSIG(status)]), socket.MSG_DONTWAIT)
            child.front.close()
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == STALE:
            self.retire()


def _be_child(listener: socket.socket, leash: socket.socket, facts: bytes, loaded: Stamp, cluster: str) -> NoReturn:
    """Wait for a front, do its verb, and end."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if cluster:
            _open_ahead(cluster)
        connection = _accept(listener, leash)
        listener.close()
        _serve(connection, leash, facts, loaded)
    except BaseException:  # nobody is there to be told, and the front does the verb itself
        os._exit(EXIT_FAILED)


def _open_ahead(cluster: str) -> None:
    """Open a connection to the cluster that was used last: the next verb is likely to want it again."""
    from beo import config, contact

    with suppress(BeoError):
        contact.open_ahead(config.Home(cluster), AHEAD)


def _accept(listener: socket.socket, leash: socket.socket) -> socket.socket:
    """Return the connection of the next front; doesn't return where the resident ends first."""
    from beo import contact

    with select.epoll() as watch:
        watch.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)  # of all children, one is woken
        watch.register(leash, select.EPOLLIN)
        patience_s = WARM_S
        while True:
            events = watch.poll(patience_s)
            if any(fd == leash.fileno() for fd, _ in events):
                os._exit(EXIT_OK)
            if not events:
                contact.close_ahead()
                patience_s = -1
            with suppress(BlockingIOError):
                return listener.accept()[0]


def _serve(connection: socket.socket, leash: socket.socket, facts: bytes, loaded: Stamp) -> NoReturn:
    connection.settimeout(REQUEST_S)
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
        os._exit(EXIT_FAILED)
    words, descriptors = _receive(connection)
    if stamp() != loaded:
        os._exit(STALE)
    if words[:2] != [front.PROTOCOL, facts]:
        connection.send(front.REFUSED)
        os._exit(EXIT_OK)
    wish = Wish(words[2:], descriptors)
    socket.send_fds(connection, [front.TAKEN], [os.pidfd_open(os.getpid())])
    wish.take_over()
    with suppress(OSError):  # a resident that has gone leaves us to our work
        socket.send_fds(leash, [os.fsencode(_cluster())[:WORD_SIZE_MAX_BYTES]], [connection.fileno()])
    connection.settimeout(GO_S)
    if connection.recv(1) != front.GO:
        os._exit(EXIT_OK)  # the front has lost its patience, and does it itself
    _die_with_the_front(connection)
    code = _do(wish.argv)
    connection.send(front.EXITED + bytes([code & 0xFF]))
    os._exit(code & 0xFF)


def _cluster() -> str:
    from beo import config

    return str(config.home().path)


def _receive(connection: socket.socket) -> tuple[list[bytes], list[int]]:
    """Return a request's words and its descriptors."""
    data, descriptors, _, _ = socket.recv_fds(connection, CHUNK_BYTES, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC)
    size = int.from_bytes(data[:8], sys.byteorder)
    if not 0 < size <= front.REQUEST_SIZE_MAX_BYTES:
        raise ValueError(f"a request of {size} bytes")
    chunks = [data[8:]]
    missing = size - len(chunks[0])
    while missing > 0:
        chunks.append(connection.recv(min(CHUNK_BYTES, missing)))
        if not chunks[-1]:
            raise ConnectionResetError
        missing -= len(chunks[-1])
    return b"".join(chunks).split(b"\0"), descriptors


class Wish:
    """What a front inherited, as `front.request` wrote it; raises ValueError for anything else."""

    def __init__(self, words: list[bytes], descriptors: list[int]) -> None:
        """Read the words behind the facts; `descriptors` came with them."""
        umask, ignored, in_errors, out_errors, standing, count, *rest = words
        self.umask = int(umask)
        self.ignored = [int(number) for number in ignored.split()]
        self.errors = (in_errors.decode(), out_errors.decode(), "backslashreplace")  # for stdin, stdout, stderr
        self.folder, *got = descriptors
        self.streams = dict(zip(map(int, standing.decode()), got, strict=True))  # 0, 1 or 2 -> what it is to be
        self.argv = [os.fsdecode(word) for word in rest[: int(count)]]
        self.environ = [word.partition(b"=")[::2] for word in rest[int(count) :]]

    def take_over(self) -> None:
        """Become what the front is."""
        os.umask(self.umask)
        for number in self.ignored:
            signal.signal(number, signal.SIG_IGN)
        os.fchdir(self.folder)
        os.close(self.folder)
        for fd, got in self.streams.items():
            os.dup2(got, fd)
            os.close(got)
        for fd, name in enumerate(("stdin", "stdout", "stderr")):
            if fd not in self.streams:
                os.close(fd)
            stream = _stream(fd, self.errors[fd]) if fd in self.streams else None
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        direct.open_what_is_closed()
        sys.argv = ["beo", *self.argv]
        os.environ.clear()
        os.environb.update(self.environ)
        time.tzset()


def _stream(fd: int, errors: str) -> TextIOWrapper:
    """Open a standard stream as the interpreter does at its start."""
    raw = FileIO(fd, "w" if fd else "r", closefd=False)
    buffer: BufferedWriter | BufferedReader = BufferedWriter(raw) if fd else BufferedReader(raw)
    newline = "\n" if fd else None
    return TextIOWrapper(buffer, "utf-8", errors, newline, line_buffering=fd == 2 or raw.isatty())


def _die_with_the_front(connection: socket.socket) -> None:
    """Have the kernel kill this process when the front's end of the connection is closed, however the front ends."""
    connection.setblocking(False)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(BlockingIOError):
        connection.recv(1)
        os._exit(EXIT_OK)  # it was closed before


def _do(argv: list[str]) -> int:
    """Do the verb; return the exit code that the interpreter would end with."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return direct.run(argv)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return EXIT_FAILED


def stamp() -> Stamp:
    """Return what tells whether a file of beo, or a package that it stands on, has changed since it was loaded."""
    found = []
    for name, module in list(sys.modules.items()):
        path = module.__dict__.get("__file__")
        if path and (name.startswith("beo") or ("-packages/" in path and "." not in name)):
            try:
                entry = os.stat(path)
                found.append((path, entry.st_ino, entry.st_mtime_ns))
            except OSError:
                found.append((path, 0, 0))
    return found


def load() -> None:
    """Load all that a verb of `front.THROUGH` may need, so that a child has it from the moment of its birth on.

    What is imported from beo elsewhere in this file is imported there, since `direct.prepare` has to come first.
    """
    direct.prepare()
    from beo.cli.group import VERBS

    for verb in sorted(front.THROUGH & VERBS.keys()):
        import_module(f"beo.cli.{VERBS[verb][0]}")


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def main() -> NoReturn:
    """Be the resident whose socket is the first argument."""
    path = sys.argv[1]
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    with suppress(PermissionError):  # who leads its process group already was started by itself
        os.setsid()
    os.chdir("/")
    if not front.is_ours(os.path.dirname(path)) or sys.getfilesystemencoding() != "utf-8":
        os._exit(EXIT_FAILED)
    try:
        lock = lockfile.hold(Path(f"{path}.lock"))
    except BeoError:  # there is one
        os._exit(EXIT_OK)
    load()
    resident = Resident(path, lock)
    gc.collect()
    gc.freeze()  # what is here stays, and looking at it would copy it into every child
    resident.run()
    os._exit(EXIT_OK)


if __name__ == "__main__":
    main()
