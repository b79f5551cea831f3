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

import glob
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from beo import word
from beo.checkpoints.manifest import Spoilt, decode
from beo.messages import VAULTS_MAX, Kept, VaultsAre
from beo.worker import contain

FILES_MAX = 1 << 18  # in all vaults of a node: each takes a kilobyte of memory that its size doesn't count
OVER = "over."  # what is being removed is called so
LOOK_S = 1.0  # between two looks at what is kept
TELL_S = 5.0  # between two reports of the same: the head forgets them with each of its lives
MANIFEST_MAX_BYTES = 16 << 20  # of one that is read here: that of a terabyte has 8
_MANIFEST = re.compile(r"\d{5,7}\.(manifest|new)")

Stamp = tuple[int, int, int]  # which file, and of when: (mtime_ns, inode, size)


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
        self._told: tuple[Kept, ...] | None = None
        self._told_s = 0.0
        self._kept: dict[int, Kept] = {}  # as was last seen
        self._read: dict[int, tuple[Stamp, float]] = {}  # of each job, its newest manifest and what that says
        self._has_looked = False
        self._lock = threading.Lock()  # while one job's folder is looked at
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
        return frozenset(self._kept)

    def is_left(self, job: int) -> bool:
        """Whether a job was asked to go on where none of its nodes is."""
        return word.says_all(f"{self.path}/{job}/word")

    def say(self, job: int, do: str, why: str, leaving: tuple[str, ...], is_all: bool) -> None:
        """Tell a job's ranks what to do; said again, nothing changes."""
        with suppress(FileNotFoundError):  # it has gone
            word.write(f"{self.path}/{job}/word", word.encoded(do, why, leaving, is_all))

    def put_aside(self, jobs: Iterable[int]) -> list[str]:
        """Keep nothing of these jobs any more. Returns what is to be removed, which may take a while: by a thread.

        The job's next attempt may begin here meanwhile.
        """
        aside = []
        for job in jobs:
            path = f"{self.path}/{OVER}{job}.{secrets.token_hex(4)}"
            with suppress(FileNotFoundError):
                os.rename(f"{self.path}/{job}", path)
                aside.append(path)
        return aside

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
        with self._lock:
            kept = tuple(one for _, one in sorted(self._kept.items()))
        now_s = time.monotonic()
        if not self._has_looked or (kept == self._told and now_s < self._told_s + TELL_S):
            return None
        self._told, self._told_s = kept, now_s
        return VaultsAre(node, incarnation, kept)

    def again(self) -> None:
        """Tell it anew: there is another head, or this node has another name for itself."""
        self._told = None

    def look(self, job: int) -> None:
        """Look now at what is kept of a job: it has ended here, and where it goes on is decided by that."""
        with self._lock:
            one = self._look(job)
            if one:
                self._kept[job] = one
            else:
                self._kept.pop(job, None)
                self._read.pop(job, None)

    def _run(self) -> None:
        for path in glob.glob(f"{glob.escape(self.path)}/{OVER}*"):  # an agent before this one was killed at that
            shutil.rmtree(path, ignore_errors=True)
        while True:
            with suppress(OSError):
                here = sorted(map(int, filter(str.isdigit, os.listdir(self.path))))[:VAULTS_MAX]
                for job in {*here, *self.jobs()}:
                    self.look(job)
                self._has_looked = True
            if self._stop.wait(LOOK_S):
                return

    def _look(self, job: int) -> Kept | None:
        size_bytes, files, newest = _look_into(self.folder(job))
        if not files:
            return None
        if newest:
            stamp, path = newest
            if self._read.get(job, (None, 0.0))[0] != stamp:
                self._read[job] = stamp, _taken_s(path)
        return Kept(job, size_bytes, self._read[job][1] if newest else 0.0)


def _look_into(folder: str) -> tuple[int, int, tuple[Stamp, str] | None]:
    """How much memory the files below a folder take, how many files and folders they are, and the last manifest."""
    size_bytes = files = 0
    newest: tuple[Stamp, str] | None = None
    ahead = [folder]
    while ahead and files < FILES_MAX:
        with suppress(OSError), os.scandir(ahead.pop()) as entries:
            for entry in entries:
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    ahead.append(entry.path)
                    continue
                with suppress(OSError):
                    found = entry.stat(follow_symlinks=False)
                    size_bytes += found.st_blocks * 512
                    stamp = found.st_mtime_ns, found.st_ino, found.st_size
                    if _MANIFEST.fullmatch(entry.name) and (newest is None or stamp > newest[0]):
                        newest = stamp, entry.path
    return size_bytes, files, newest


def _taken_s(path: str) -> float:
    """When the checkpoint was taken that a manifest belongs to, as it says itself; 0.0: it can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return 0.0
            data = file.read(MANIFEST_MAX_BYTES + 1)
        return decode(data).whole.time_s if len(data) <= MANIFEST_MAX_BYTES else 0.0
    except (OSError, Spoilt):
        return 0.0
