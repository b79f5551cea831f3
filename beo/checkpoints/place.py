"""Where a program's checkpoints lie on this node, such that it finds its own when it is run again, and no other's.

    BASE/heat2d-3f0c91d2a7b4.1/     of this program with these arguments; .2 of its twin that runs at the same time
        lock                        held by the living: all ranks of the node
        a/ b/                       slots.py

BASE is what beo gives a job (BEO_CHECKPOINT_DIR), else a folder in this machine's memory which only its user can read:
what is there is unpickled, so nobody else may have put it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import struct
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from beo.checkpoints.slots import SLOTS
from beo.errors import BeoError, Conflict, Refused

TWINS_MAX = 64  # of one program, at the same time
DYING_S = 2.0  # ranks of a run that was killed may take so long to be gone
LOOK_S = 0.05

_flock = struct.Struct("hhqqi0q")  # struct flock: type, whence, start, len, pid


class Lock:
    """A lock on a folder that ends with this process, however it ends. It is of an open file: no fork splits it."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is made yet."""
        self.path = folder / "lock"
        self._fd = -1

    def take(self, shared: bool = False) -> bool:
        """Take it, for this process alone or (from then on) for all that share it; False where others have it.

        The folder and the file are made where they are missing. OSError where they can't be.
        """
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        if self._fd < 0:
            with suppress(FileNotFoundError):
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if self._fd < 0:
            return False  # another has just removed the folder
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _flock.pack(kind, os.SEEK_SET, 0, 0, 0))
            if os.stat(self.path).st_ino == os.fstat(self._fd).st_ino:
                return True
        except (BlockingIOError, PermissionError, FileNotFoundError):
            pass  # another has it, or has removed it
        self.free()
        return False

    def free(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Place:
    """This program's folder on this node, locked; the same on all nodes. nodes: how many; is_own: by its name."""

    def __init__(self, comm: Any, folder: str | os.PathLike[str] | None) -> None:
        """Find it. Collective. folder: another one that the user names. Raises BeoError where there is none."""
        self._comm = comm
        self._lock: Lock | None = None
        self._base: Path | None = None
        trouble: BeoError | None = None
        try:
            base = Path(folder).expanduser().absolute() if folder is not None else _base()
        except BeoError as error:
            base, trouble = Path(), error
        raise_first(comm, trouble)
        node = os.environ.get("BEO_NODE") or os.uname().nodename
        homes = comm.allgather((node, str(base)))
        self.nodes = len({name for name, _ in homes})
        self._leads = homes.index(homes[comm.rank]) == comm.rank
        self.is_own = folder is None
        if folder is not None:
            self.folder = base
            if not self._is_taken(base, patient=True):
                why = "another program that runs now uses it, or it lies on a disk that several nodes share"
                raise Conflict(f"the folder {base} is in use", why, "name another one with folder=")
        else:
            self._base = base
            self.folder = self._find(base, comm.bcast(_identity(comm)))
        self._share()

    def _find(self, base: Path, name: str) -> Path:
        """Take the first folder that is there and that nobody uses, as a run left it that was killed, or a new one."""
        known = {int(p.suffix[1:]) for p in base.glob(f"{name}.*") if p.suffix[1:].isdigit()} if self._leads else set()
        numbers = sorted(set().union(*self._comm.allgather(known)))
        for number in numbers[:TWINS_MAX]:
            folder = base / f"{name}.{number}"
            if self._is_taken(folder, patient=True):
                return folder
            if self._comm.rank == 0:
                print(f"beo: {name} runs already: this one has checkpoints of its own", file=sys.stderr)
        for number in range(1, TWINS_MAX + 1):
            folder = base / f"{name}.{number}"
            if number not in numbers and self._is_taken(folder, patient=False):
                return folder
        raise Conflict(f"{name} runs {TWINS_MAX} times already", "", "name a folder for it with folder=")

    def _is_taken(self, folder: Path, patient: bool) -> bool:
        """Lock a folder on all nodes, or on none. Collective."""
        until_s = time.monotonic() + DYING_S
        while True:
            trouble: BeoError | None = None
            lock, got = Lock(folder), True
            if self._leads:
                try:
                    got = lock.take()
                except OSError as error:
                    cure = "name another folder with folder="
                    trouble = BeoError(f"no checkpoints in {folder}", (error.strerror or str(error)).lower(), cure)
            try:
                raise_first(self._comm, trouble)
            except BeoError:
                lock.free()
                raise
            told = self._comm.allgather((got, time.monotonic() < until_s))
            if all(ok for ok, _ in told):
                self._lock = lock
                return True
            lock.free()
            if not patient or not told[0][1]:
                return False
            time.sleep(LOOK_S)

    def _share(self) -> None:
        """Let all ranks of the node hold the lock, so that it ends with the last of them."""
        assert self._lock is not None
        if self._leads:
            self._lock.take(shared=True)
        self._comm.barrier()
        if not self._leads:
            self._lock.take(shared=True)
        self._comm.barrier()  # else one might end, and remove it, before another has it

    def close(self) -> None:
        """Let go of it, and remove it where no checkpoint is in it."""
        if self._leads:
            for slot in SLOTS:
                with suppress(OSError):
                    (self.folder / slot).rmdir()
            with suppress(OSError):
                if [path.name for path in self.folder.iterdir()] == ["lock"]:
                    (self.folder / "lock").unlink()
                    self.folder.rmdir()
                if self._base is not None and "BEO_CHECKPOINT_DIR" not in os.environ:
                    self._base.rmdir()
        if self._lock is not None:
            self._lock.free()
            self._lock = None


def _base() -> Path:
    given = os.environ.get("BEO_CHECKPOINT_DIR")
    if given:
        return Path(given).absolute()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
    base = Path(memory, f"beo-{os.geteuid()}")
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        why = "it isn't yours alone, and what is in a checkpoint is run"
        raise Refused(f"no checkpoints in {base}", why, f"chmod 700 {base}, or name another with folder=")
    return base


def _identity(comm: Any) -> str:
    """Return the name of what runs here: the same when it is run again, whatever the number of its ranks."""
    words = sys.orig_argv[1:]
    if "BEO_CHECKPOINT_DIR" not in os.environ:  # a job has its own, and may be run in another folder next time
        words = [*words, os.getcwd()]
    if comm.size == 1 and os.environ.get("BEO_SIZE", "1") != "1":
        words = [*words, os.environ.get("BEO_RANK", "")]  # a serial program that was started many times
    if first := _first_rank(comm):
        words = [*words, f"from rank {first}"]  # one part of a world that was split
    stem = Path(sys.argv[0]).stem or "python"
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in stem)[:40]
    mark = hashlib.blake2b("\0".join(words).encode(errors="surrogateescape"), digest_size=6)
    return f"{name}-{mark.hexdigest()}"


def _first_rank(comm: Any) -> int:
    """Return which rank of the whole world this communicator's first one is."""
    if not hasattr(comm, "Get_group"):
        return 0
    from mpi4py import MPI

    ranks = MPI.Group.Translate_ranks(comm.Get_group(), [0], MPI.COMM_WORLD.Get_group())
    return max(0, int(ranks[0]))


def raise_first(comm: Any, trouble: BeoError | None) -> None:
    """Raise on all ranks what is trouble on any. Collective."""
    for other in comm.allgather(trouble):
        if other is not None:
            raise other
