"""One process of a kind: a lock file that the kernel releases when its holder ends, however it ends.

Each daemon holds its lock by itself for its whole life, so whoever comes later (a new supervisor, `beo down`) finds
what runs without having started it. The locks are *open file description* locks (fcntl(2)): they can be looked at
without being taken for a moment, which would make the rightful holder fail.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

from beo.errors import BeoError, Conflict

IDENTITY_LENGTH_MAX = 64
IDENTIFY_S = 1.0  # a holder names itself just after it got the lock; longer than this, it isn't one of ours

_flock = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, len, pid


def hold(path: Path) -> int:
    """Take the lock and return its descriptor, to be kept open for as long as the lock is meant to be held.

    The file is made where it is missing, and its folder. Raises Conflict that names the holder.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()} {started(os.getpid())}\n".encode(), 0)
    except (BlockingIOError, PermissionError):
        os.close(fd)
        pid = holder(path)
        raise Conflict(f"{path} is locked", f"by process {pid}" if pid else "", "wait for it, or end it") from None
    except OSError:
        os.close(fd)
        raise
    return fd


def holder(path: Path) -> int | None:
    """Return the pid of the process that holds the lock; None where nobody does.

    Raises Conflict where the lock is held by a process that can't be named: one of another PID namespace, say.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        deadline = time.monotonic() + IDENTIFY_S
        while _is_locked(fd):
            # A pid alone may be left from an earlier holder and be anyone's by now; with its start time it is not.
            words = os.pread(fd, IDENTITY_LENGTH_MAX, 0).split()
            if len(words) == 2 and words[0].isdigit() and started(int(words[0])) == words[1].decode():
                return int(words[0])
            if time.monotonic() > deadline:
                raise Conflict(f"{path} is locked", "its holder is not to be seen from here", f"see fuser {path}")
            time.sleep(0.005)
        return None
    finally:
        os.close(fd)


def holding(lock: Path) -> Process | None:
    """Return the process that holds a lock; None where nobody does."""
    pid = holder(lock)
    if pid is None:
        return None
    try:
        process = Process(pid)
    except ProcessLookupError:
        return None
    if holder(lock) != pid:  # it ended in between, and the pid may be another's
        process.close()
        return None
    return process


class Process:
    """A process by its pidfd: who is signalled or waited for is who was meant, never a later owner of its pid."""

    def __init__(self, pid: int) -> None:
        """Raises ProcessLookupError where there is none."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when the process ends."""
        return self._fd

    def send(self, number: int) -> None:
        """Send a signal; nothing happens where the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end, at most so long; say whether it came."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def _is_locked(fd: int) -> bool:
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _flock.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        raise BeoError("this file system knows no locks", str(error).lower(), "set BEO_DIR to a local folder") from None
    return bool(_flock.unpack(answer)[0] != fcntl.F_UNLCK)


def started(pid: int) -> str:
    """Return when a process started, in clock ticks since boot; "" where there is none: with its pid, its identity."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    return stat[stat.rindex(b")") + 2 :].split()[19].decode()
