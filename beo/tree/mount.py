"""The tree as a file system of this machine: /dev/fuse, mount(2), and the loop between the kernel and the server.

The thread that serves a mount never touches it: it would wait for itself. So nothing here looks at the folder once it
is mounted, and the one call that may (umount2) is made by a thread of its own, while the loop goes on serving.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import select
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from beo.errors import BeoError, reason
from beo.tree import kernel, words
from beo.tree.mounting import Mount
from beo.tree.replies import Ask, Effect, Notify, Reply
from beo.tree.session import boot_s

DEVICE = "/dev/fuse"
KIND = "fuse.beo"  # as mount(8) and /proc/mounts show it
SOURCE = "beo"
LOOK_S = 0.2  # between two looks whether to stop
BATCH = 64  # requests taken at a time, before answers are looked for
PROBE_S = 2.0  # for whoever serves a mount that is in the way to show that he lives
DETACH_S = 2.0  # for umount2, and for answers to what was asked before, while the loop goes on
MOUNTS_MAX = 16  # dead mounts one upon the other that are taken away

_MS_NOSUID, _MS_NODEV = 2, 4  # the set-id bits of one node's root shouldn't rule the others
_MNT_DETACH = 2
_GONE = (errno.ENODEV, errno.ECONNABORTED)
_libc = ctypes.CDLL(None, use_errno=True)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 32 << 20  # of memory that was freed: a few of the longest requests and answers


class Line(Protocol):
    """The way to the tree's server, which loses no question and answers each once."""

    @property
    def next_at(self) -> float:
        """When (time.monotonic) to call receive at the latest, be there something to read or not."""

    def filenos(self) -> list[int]:
        """What to wait for, to be readable."""

    def send(self, number: int, caller: words.Caller, question: words.Question) -> None:
        """Ask, without waiting."""

    @property
    def silent_s(self) -> float:
        """For how long a question has waited while nothing was heard, in seconds."""

    def receive(self) -> list[tuple[int, words.Told]]:
        """Return the answers that have come, with the numbers of their questions."""


def serve(
    core: Mount, line: Line, folder: Path, stopping: Callable[[], bool], patience_s: float = float("inf")
) -> None:
    """Mount the tree at a folder and serve it until somebody unmounts it or `stopping` (asked every `LOOK_S`) says so.

    patience_s: after so long without a head, what is remembered is used though others may have changed it.

    In either case the folder is itself again afterwards, and who still has a file open there gets errors.
    """
    _keep_freed_memory()
    device = mount(folder)
    ours = _mounted(folder)
    try:
        _Loop(core, line, device, patience_s).run(stopping)
        detacher = threading.Thread(target=_detach, args=(folder, ours), daemon=True)
        detacher.start()
        deadline = time.monotonic() + DETACH_S

        def is_over() -> bool:  # what is asked already is answered, if it doesn't take long
            return time.monotonic() > deadline or not (detacher.is_alive() or core.pending)

        _Loop(core, line, device).run(is_over)
    finally:
        os.close(device)  # from here on nothing on it waits for us
        _detach(folder, ours)


def mount(folder: Path) -> int:
    """Mount a tree at a folder and return the descriptor by which the kernel asks. A dead one there is taken away."""
    if os.geteuid() != 0:
        raise BeoError(
            f"can't mount the tree at {folder}",
            "only root may mount",
            "start what serves it as root",
        )
    _clear(folder)
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BeoError(
            f"can't mount the tree at {folder}",
            f"{DEVICE}: {reason(error)}",
            "load it with 'modprobe fuse', or give the container --device /dev/fuse",
        ) from error
    try:
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        options = (
            f"fd={device},rootmode={stat.S_IFDIR:o},user_id=0,group_id=0,default_permissions,allow_other,"
            f"max_read={words.DATA_MAX_BYTES}"
        )
        flags = _MS_NOSUID | _MS_NODEV
        if _libc.mount(SOURCE.encode(), os.fsencode(folder), KIND.encode(), ctypes.c_ulong(flags), options.encode()):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    except OSError as error:
        os.close(device)
        cure = "see that it is a folder, and that this machine may mount (CAP_SYS_ADMIN)"
        raise BeoError(f"can't mount the tree at {folder}", reason(error), cure) from error
    return device


def _keep_freed_memory() -> None:
    """Have malloc keep what is freed: to get the pages of each 1 MiB anew from the kernel was half a write's work."""
    if hasattr(_libc, "mallopt"):  # glibc has it, musl hasn't
        for what in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            _libc.mallopt(what, _KEPT_BYTES)


class _Loop:
    """The kernel's requests in, the server's answers in, effects out."""

    def __init__(self, core: Mount, line: Line, device: int, patience_s: float = float("inf")) -> None:
        self._core = core
        self._patience_s = patience_s
        self._line = line
        self._device = device
        # One read takes one whole request, and the kernel wants room for the longest.
        self._buffer = bytearray(words.DATA_MAX_BYTES + kernel.NOTE_BYTES)
        self._view = memoryview(self._buffer)
        self._poller = select.poll()
        self._poller.register(device, select.POLLIN)
        self._filenos: list[int] = []
        self._teller: _Teller | None = None

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve until `stopping`, or until the kernel has no more to ask, ever."""
        try:
            while not stopping() and self._take_requests():
                self._take_answers()
                self._wait()
        finally:
            if self._teller:
                self._teller.stop()

    def _wait(self) -> None:
        wait_s = min(LOOK_S, self._line.next_at - time.monotonic())
        filenos = [*self._line.filenos(), *([self._teller.bell] if self._teller else [])]
        if filenos != self._filenos:  # the line's come and go
            self._filenos, self._poller = filenos, select.poll()
            for fileno in (self._device, *filenos):
                self._poller.register(fileno, select.POLLIN)
        self._poller.poll(max(0, int(wait_s * 1000 + 0.999)))

    def _take_requests(self) -> bool:
        """Take what the kernel asks; False: it is the end."""
        for _ in range(BATCH):
            try:
                size = os.readv(self._device, [self._buffer])
            except OSError as error:
                if error.errno == errno.ENOENT:  # whoever asked didn't wait for us to read it
                    continue
                if error.errno == errno.EAGAIN:
                    return True
                if error.errno in _GONE:
                    return False
                raise
            self._do(self._core.from_kernel(self._view[:size], boot_s()))
        return True

    def _take_answers(self) -> None:
        if self._teller:
            for ask in self._teller.told():
                self._line.send(ask.number, ask.caller, ask.question)
        if self._line.silent_s > self._patience_s:
            self._do(self._core.drift(boot_s()))
        for number, answer in self._line.receive():
            self._do(self._core.from_tree(number, answer, boot_s()))

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Ask):
                self._line.send(effect.number, effect.caller, effect.question)
            elif isinstance(effect, Reply):
                self._reply(effect)
            else:
                self._tell(effect)

    def _reply(self, reply: Reply) -> None:
        try:
            os.writev(self._device, [reply.data, reply.body] if reply.body else [reply.data])
        except OSError as error:
            if error.errno in (errno.ENOENT, *_GONE):  # nobody waits for it any more
                return
            # The kernel doesn't take it as it is: a fault of ours. Whoever waits would wait for ever.
            try:
                os.write(self._device, kernel.error(kernel.whose(reply.data), errno.EIO))
            except OSError:
                pass

    def _tell(self, notice: Notify) -> None:
        self._teller = self._teller or _Teller(self._device)
        self._teller.put(notice)


class _Teller:
    """Tells the kernel what it is to forget, from a thread of its own; see `Notify`."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._notices: queue.SimpleQueue[Notify | None] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="teller", daemon=True)
        self._thread.start()

    def put(self, notice: Notify) -> None:
        self._notices.put(notice)

    def told(self) -> list[Ask]:
        """Return what is to be asked now that the kernel has forgotten what it was told to."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)
        return [self._told.get() for _ in range(self._told.qsize())]

    def stop(self) -> None:
        """Say no more; a notice that the kernel is slow with ends when the mount does."""
        self._notices.put(None)

    def _run(self) -> None:
        while notice := self._notices.get():
            for one in notice.notices:
                with suppress(OSError):  # the kernel knows nothing of that inode, or is gone: nothing to forget
                    os.write(self._device, one)
            self._told.put(notice.then)
            os.eventfd_write(self.bell, 1)
        os.close(self.bell)


# ---- what is mounted already


def mounted(folder: Path) -> str:
    """Return of which kind the file system is that is mounted at a folder (`KIND` for a tree), "" for none."""
    return _mounted(folder)[0]


def _clear(folder: Path) -> None:
    """Take dead mounts of trees away from a folder; one that lives is somebody else's."""
    for _ in range(MOUNTS_MAX):
        there = _mounted(folder)
        if there[0] != KIND:
            return
        if _probe(folder) != errno.ENOTCONN:
            raise BeoError(
                f"can't mount the tree at {folder}",
                "a tree is mounted there, and served by another process",
                f"stop that one first, or take its mount away with 'umount -l {folder}'",
            )
        _detach(folder, there)


def _mounted(folder: Path) -> tuple[str, str]:
    """Of which kind the file system is that is mounted at a folder, "" for none, and its number: from the kernel's
    list, without touching it."""
    at = os.path.join(os.path.realpath(folder.parent), folder.name)
    try:
        with open("/proc/self/mountinfo", "rb") as lines:
            mounts = [line.split() for line in lines]
    except OSError:
        return "", ""
    found = "", ""
    for fields in mounts:
        if os.fsdecode(_unescaped(fields[4])) == at:
            found = fields[fields.index(b"-") + 1].decode(errors="replace"), fields[2].decode()
    return found


def _unescaped(path: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(code, char)
    return path


def _probe(folder: Path) -> int:
    """The errno of looking at a folder, 0 for none; who lets us wait may be stopped, and isn't dead."""
    found: list[int] = []

    def look() -> None:
        try:
            os.stat(folder)
            found.append(0)
        except OSError as error:
            found.append(error.errno or 0)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    looker.join(PROBE_S)
    return found[0] if found else 0


def _detach(folder: Path, which: tuple[str, str]) -> None:
    """Take a mount away from a folder at once, whoever uses it, unless it is gone: our successor's stays."""
    if which[0] == KIND and _mounted(folder) == which:
        _libc.umount2(os.fsencode(folder), _MNT_DETACH)
