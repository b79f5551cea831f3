"""A machine whose root is an empty tmpfs, for one command: ``python bareroot.py FOLDER PATH... -- COMMAND...``

Of the old root there is nothing left but the kernel's own mounts (/proc, /sys, /dev) and, read-only and at its place,
each PATH: a folder or a file. Run it in a mount namespace of one's own whose mounts are private.
"""

from __future__ import annotations

import ctypes
import os
import sys

OF_THE_KERNEL = ("/proc", "/sys", "/dev")
EMPTY = ("/tmp", "/etc", "/var")

_RDONLY, _REMOUNT, _BIND, _REC = 1, 32, 1 << 12, 1 << 14
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}  # numbers of a system call that libc has no word for
_libc = ctypes.CDLL(None, use_errno=True)


def _done(code: int, what: str) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _done(_libc.mount(*words, ctypes.c_ulong(flags), None), target)


def _place(path: str, target: str) -> None:
    """Make what a path can be bound on."""
    if os.path.isdir(path):
        os.makedirs(target, exist_ok=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "a"):
        pass


def enter(folder: str, paths: list[str]) -> None:
    """Leave the old root for ever."""
    os.makedirs(folder, exist_ok=True)
    _mount("tmpfs", folder, "tmpfs", 0)
    for path in OF_THE_KERNEL:
        _place(path, folder + path)
        _mount(path, folder + path, "", _BIND | _REC)
    for path in EMPTY:
        os.mkdir(folder + path)
    for path in paths:
        _place(path, folder + path)
        _mount(path, folder + path, "", _BIND)
        _mount("", folder + path, "", _BIND | _REMOUNT | _RDONLY)
    os.chdir(folder)
    _done(_libc.syscall(ctypes.c_long(_PIVOT_ROOT[os.uname().machine]), b".", b"."), "pivot_root")
    _done(_libc.umount2(b".", _DETACH), "the old root")
    os.chdir("/")


if __name__ == "__main__":
    dash = sys.argv.index("--")
    enter(sys.argv[1], sys.argv[2:dash])
    os.execv(sys.argv[dash + 1], sys.argv[dash + 1 :])
