"""The verbs mount and umount: the tree as a folder of this machine."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from pathlib import Path

import click

from beo import config, supervisor
from beo.cli.group import Verb, option
from beo.errors import BeoError, Conflict, NotFound, Refused, UsageError
from beo.lockfile import Process
from beo.tree.attach import attach
from beo.tree.mount import KIND, mounted

START_S = 10.0  # for the mount to be there; it takes half a second
LOOK_S = 0.02
_MNT_DETACH = 2


@click.command(
    cls=Verb,
    examples=[
        ("beo mount /beo", "from now on the tree is there, until 'beo umount /beo'"),
        ("beo mount --foreground /beo", "until it is interrupted"),
    ],
)
@click.argument("folder")
@click.argument("path", default="/")
@option("--foreground", is_flag=True, help="Serve the mount in this process.")
def mount(folder: str, path: str, foreground: bool) -> None:
    """Show the tree, or what of it is at PATH, as FOLDER: an empty folder of this machine, for every program to use.

    What a program has written is on the disks of all heads that are in step when its fsync or close returns, and other
    nodes see it at once. Workers do this by themselves for the folders that [files] mounts in beo.toml names. Only root
    can mount; everybody who has an account may use what is mounted, with his own rights. Without root the tree is
    there all the same, by 'beo put', 'beo get' and 'beo ls'.
    """
    where, at = config.home(), Path(folder).absolute()
    if not at.is_dir():
        raise NotFound(str(at), "there is no such folder", f"make it with 'mkdir -p {folder}'")
    if os.listdir(at) and mounted(at) != KIND:
        raise UsageError(f"{at} is not empty", "what is in it would be hidden", "take an empty folder")
    where.cluster()
    if os.geteuid():
        raise Refused(f"can't mount the tree at {at}", "only root can mount", "use 'beo put', 'beo get' and 'beo ls'")
    if foreground:
        attach(where, at, path)
        return
    argv = (sys.executable, "-P", "-m", "beo.tree.attach", str(at), path)
    log = where.logs / "mount.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    start = log.stat().st_size if log.exists() else 0
    process = Process(supervisor.spawn(argv, supervisor.environment(where), log))
    deadline = time.monotonic() + START_S
    while mounted(at) != KIND:
        if process.wait(LOOK_S) or time.monotonic() > deadline:
            told = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
            raise BeoError(f"can't mount the tree at {at}", told[-1] if told else "it takes too long", f"see {log}")


@click.command(cls=Verb, examples=[("beo umount /beo", "who still has files open there keeps it busy")])
@click.argument("folder")
@option("--lazy", is_flag=True, help="Also while somebody uses it: who does gets errors.")
def umount(folder: str, lazy: bool) -> None:
    """Take the tree away from FOLDER again. Nothing of what was written is lost."""
    path = Path(folder).absolute()
    if mounted(path) != KIND:
        raise NotFound(str(path), "no tree is mounted there", "see 'mount -t fuse.beo'")
    if os.geteuid():
        raise Refused(f"can't unmount {path}", "only root can", "")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH if lazy else 0):
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            raise Conflict(f"{path} is in use", f"'fuser -m {folder}' tells by whom", "end that, or say --lazy")
        raise BeoError(f"can't unmount {path}", os.strerror(number).lower())
