"""The vault of a node: a folder in its memory for what jobs keep there across attempts, their checkpoints above all.

It is one tmpfs of the agent's own, so it outlives ranks, wardens and agents, and goes with the machine. Each job has a
folder in it:

    JOB/word    what the agent has to say to the ranks: a fixed size, so that they can map it once and look at a byte
    JOB/own     the job's, BEO_CHECKPOINT_DIR
    JOB/dump    of a movable job: what CRIU makes of its program

Only `own` belongs to the job's user. Where the daemon isn't root it can't mount anything; the vault is then a
folder of /tmp, which is as big and as fast as that is.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from beo import word
from beo.messages import VAULTS_MAX, VaultsAre
from beo.worker import contain

FILES_MAX = 1 << 18  # in all vaults of a node: each takes a kilobyte of memory that its size doesn't count
LOOK_S = 1.0  # between two looks at what is kept
TELL_S = 5.0  # between two reports of the same: the head forgets them with each of its lives


class Vaults:
    """The vault of one node. path: where it is. The folder's name is secret enough that nobody was there before us."""

    def __init__(self, path: str, size_max_bytes: int) -> None:
        """Find or make it. OSError where it can't be made."""
        self.path = path
        os.makedirs(path, 0o711, exist_ok=True)
        if os.geteuid() == 0 and not os.path.ismount(path):
            options = f"mode=0711,size={size_max_bytes},nr_inodes={FILES_MAX}"
            try:
                contain.mount_tmpfs(path, f"{options},huge=within_size")  # new pages come several times as fast
            except OSError:
                contain.mount_tmpfs(path, options)  # a kernel without huge pages
        self._told: tuple[tuple[int, int], ...] | None = None
        self._told_s = 0.0
        self._kept: tuple[tuple[int, int], ...] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beo-vaults", daemon=True)

    def start(self) -> None:
        """Start the thread that looks at what is kept."""
        self._thread.start()

    def stop(self) -> None:
        """Let it end."""
        self._stop.set()

    def open(self, job: int, uid: int, gid: int) -> tuple[str, str]:
        """Return a job's folder and the path of its word, made where they are missing; nothing is said yet."""
        folder = f"{self.path}/{job}"
        own, said = f"{folder}/own", f"{folder}/word"
        with suppress(FileExistsError):
            os.mkdir(folder, 0o755)
        with suppress(FileExistsError):
            os.mkdir(own, 0o700)
            if os.geteuid() == 0:
                os.chown(own, uid, gid)
        word.write(said, word.NOTHING)
        return own, said

    def folder(self, job: int) -> str:
        """Where a job's own things are."""
        return f"{self.path}/{job}/own"

    def dump(self, job: int) -> str:
        """Where CRIU puts a job's program: root's alone, since who can write there can be root."""
        return f"{self.path}/{job}/dump"

    def jobs(self) -> frozenset[int]:
        """The jobs of which something is kept, as was last seen."""
        return frozenset(job for job, _ in self._kept or ())

    def is_left(self, job: int) -> bool:
        """Whether a job was asked to go on where none of its nodes is."""
        return word.says_all(f"{self.path}/{job}/word")

    def say(self, job: int, do: str, why: str, leaving: tuple[str, ...], is_all: bool) -> None:
        """Tell a job's ranks what to do; said again, nothing changes."""
        with suppress(FileNotFoundError):  # it has gone
            word.write(f"{self.path}/{job}/word", word.encoded(do, why, leaving, is_all))

    def empty(self, jobs: Iterable[int]) -> None:
        """Remove what is kept of these jobs. It may take a while: for a thread."""
        for job in jobs:
            shutil.rmtree(f"{self.path}/{job}", ignore_errors=True)

    def empty_if_unused(self, job: int) -> None:
        """Remove a job's folder if the job has put nothing there, as most don't."""
        folder = f"{self.path}/{job}"
        try:
            os.rmdir(f"{folder}/own")
        except OSError:
            return
        with suppress(OSError):
            if os.path.isdir(f"{folder}/dump"):
                shutil.rmtree(f"{folder}/dump")
            os.unlink(f"{folder}/word")
            os.rmdir(folder)

    def report(self, node: str, incarnation: str) -> VaultsAre | None:
        """Return what is to be told to the head now, if there is anything to tell."""
        kept, now_s = self._kept, time.monotonic()
        if kept is None or (kept == self._told and now_s < self._told_s + TELL_S):
            return None
        self._told, self._told_s = kept, now_s
        return VaultsAre(node, incarnation, kept)

    def again(self) -> None:
        """Tell it anew: there is another head, or this node has another name for itself."""
        self._told = None

    def _run(self) -> None:
        while True:
            with suppress(OSError):
                self._kept = self._look()
            if self._stop.wait(LOOK_S):
                return

    def _look(self) -> tuple[tuple[int, int], ...]:
        found = []
        for name in sorted(filter(str.isdigit, os.listdir(self.path)), key=int)[:VAULTS_MAX]:
            size_bytes, files = _size(f"{self.path}/{name}/own")
            if files:
                found.append((int(name), size_bytes))
        return tuple(found)


def _size(folder: str) -> tuple[int, int]:
    """How many bytes of memory the files below a folder take, and how many files and folders they are."""
    size_bytes = files = 0
    ahead = [folder]
    while ahead and files < FILES_MAX:
        with suppress(OSError), os.scandir(ahead.pop()) as entries:
            for entry in entries:
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(entry.path)
                else:
                    with suppress(OSError):
                        size_bytes += entry.stat(follow_symlinks=False).st_blocks * 512
    return size_bytes, files
