"""What travels beside CRIU's images: folders of the program's own mounts, and what waits in its stdin.

    carried.py FOLDER ROOT PATH ...   pack, while the program is frozen; its first process is ROOT
    carried.py FOLDER                 unpack; this process's stdin is the pipe that the program will read

CRIU takes along what is mapped or open by a deleted name; a file that has a name must be found under it again. Both
ways nothing that is read here is lost where it fails: the program may have to run on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import tarfile
import termios

CARRIED, UNREAD, DUMPED = "carried.tar", "stdin.unread", "dumped"  # as in criu.py, which needs more than is here
SPARE_BYTES = 64 << 10
"""Kept for the seal, so that a disk that is full is found so while the program can still run on."""
_NONBLOCK = 2  # SPLICE_F_NONBLOCK


def main(words: list[str]) -> int:
    """Pack or unpack."""
    try:
        if len(words) == 1:
            unpack(words[0])
        elif len(words) > 1:
            pack(words[0], int(words[1]), words[2:])
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except (OSError, tarfile.TarError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return errno.ENOSPC  # the status alone: there is no room for words either
        print(f"Error (beo): {error}", file=sys.stderr)
        return 1
    return 0


def pack(folder: str, root: int, tops: list[str]) -> None:
    """Write what belongs to the program into the folder; then DUMPED, large enough for the seal to come."""
    unread = waiting(root)
    if unread:
        with open(os.path.join(folder, UNREAD), "wb") as file:
            file.write(unread)
    if any(os.path.isdir(top) and os.listdir(top) for top in tops):
        with tarfile.open(os.path.join(folder, CARRIED), "w") as tar:
            for top in tops:
                if os.path.isdir(top):
                    tar.add(top, filter=_travels)
    with open(os.path.join(folder, DUMPED), "wb") as file:
        file.write(b"." * SPARE_BYTES)


def unpack(folder: str) -> None:
    """Lay the files out where they were, and the unread input before whatever comes next."""
    path = os.path.join(folder, CARRIED)
    if os.path.exists(path):
        with tarfile.open(path) as tar:
            tar.extractall("/", numeric_owner=True)  # root packed it, and nobody else may write into the folder
    path = os.path.join(folder, UNREAD)
    if os.path.exists(path):
        with open(path, "rb") as file:
            data = file.read()
        pipe = os.open("/proc/self/fd/0", os.O_WRONLY)  # the other end of the pipe that this process reads
        try:
            if fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) < len(data):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, len(data))
            os.write(pipe, data)
        finally:
            os.close(pipe)


def waiting(root: int) -> bytes:
    """What the process's stdin holds, if it is a pipe; it stays there too."""
    try:
        pipe = os.open(f"/proc/{root}/fd/0", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        if not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            return b""
        (length,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, b"\0" * 4))
        if not length:
            return b""
        read, write = os.pipe()
        try:
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ))
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.tee(pipe, write, ctypes.c_size_t(length), _NONBLOCK) != length:
                raise OSError(ctypes.get_errno(), "the input that waits can't be read")
            with open(read, "rb", closefd=False) as file:
                return file.read(length)
        finally:
            os.close(read)
            os.close(write)
    finally:
        os.close(pipe)


def _travels(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.ischr() or entry.isblk() else entry


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
