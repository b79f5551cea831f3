"""Programs that know nothing of checkpoints, on their way off this node: dumped by a thread of its own.

A job that is *movable* runs below a holder (holder.py), and what CRIU makes of it lies beside the job's own folder in
the vault, where only root can write. When it is to halt, its holder is looked for and the program is dumped: it ends
with 85 as any other that halts, or it runs on, and another try comes later.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from beo import messages as ms
from beo.errors import BeoError
from beo.worker import apart, criu, mpienv

LOOK_S = 60.0  # between two looks for a criu, where none works: one may be installed meanwhile
REASON_MAX = 200  # characters of why programs can't be moved
AGAIN_S = 30.0  # after a dump that wasn't possible: what was in its way may have gone
RANKS_S, RANKS_AGAIN_S = 60.0, 1.0  # for ranks that can't be dumped, while their peers wait for them
QUIET_S = 1.0  # without a word of a rank's PMI: MPI_Init asks something every few milliseconds
PLACES = ".places"  # behind the name of the file with the environment: where its ranks are
HOLDER = str(Path(__file__).with_name("holder.py"))

log = logging.getLogger("beo.agent")


def holder_of(folder: str) -> int:
    """Return the number of the process that holds the program of a folder; 0: there is none."""
    mark = f"\0{HOLDER}\0{folder}\0".encode()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes()
        except OSError:
            continue
        if mark in b"\0" + words:
            return int(name)
    return 0


def command(
    python: str, folder: str, person: tuple[int, int, tuple[int, ...]], env: str, argv: list[str], more: list[str]
) -> list[str]:
    """Return how a program is started below a holder. env: the file that has its environment. more: of its options."""
    uid, gid, groups = person
    whose = ":".join(map(str, (uid, gid, *groups)))
    return [python, "-I", HOLDER, folder, "--as", whose, "--env", env, *more, "--", *argv]


def hold(order: ms.Start, message: dict[str, Any], dump: str, path: str) -> None:
    """Have the program of a start message begun by a holder, as root, with the job's environment in a file at `path`.

    OSError where there is no room for that.
    """
    os.makedirs(dump, 0o700, exist_ok=True)
    of_rank = mpienv.APART if order.spec.migratable else message["env_of"]["0"]  # there the holder knows the rank
    env = {**message["env"], **of_rank, "PWD": message["cwd"]}
    with suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items()))
    argv = without_file(order.spec.script, list(order.spec.argv)) if order.spec.script else message["argv"]
    more = _set_apart(order, dump, f"{path}{PLACES}") if order.spec.migratable else []
    message["argv"] = command(sys.executable, dump, (order.uid, order.gid, order.groups), path, argv, more)
    own = {name: value for name, value in env.items() if name.startswith("BEO_") and name != "BEO_JOB_NAME"}
    message["env"] = {**own, "PATH": criu.PATH}
    message["uid"] = message["gid"] = message["groups"] = None


def _set_apart(order: ms.Start, dump: str, path: str) -> list[str]:
    """Say where each rank is, for ranks that are machines of their own. What is left of earlier ones is removed."""
    shutil.rmtree(dump, ignore_errors=True)
    os.makedirs(dump, 0o700, exist_ok=True)
    hosts = [mpienv.host_of(part.address) for part in order.parts for _ in range(part.ranks)]
    if any(not host or ":" in host for host in hosts):
        raise ValueError("ranks that are moved need nodes that are known by addresses of IPv4")
    number = int.from_bytes(blake2b(order.nonce.encode(), digest_size=3).digest())
    places = apart.Places(number, apart.FIRST_PORT, tuple(hosts), bool(order.copies))
    with suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w") as file:
        file.write(places.text())
    return ["--apart", path]


def without_file(script: str, argv: list[str]) -> list[str]:
    """Return how a script is run by its text alone: a shell would have its file open, which isn't on the other node."""
    shell = script.split("\n", 1)[0].removeprefix("#!").split()
    return [*shell, "-c", script, *argv]


class Ability:
    """Whether programs can be moved from and to this node; by a thread, since a criu may take long to check itself."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.fact = ""
        """ms.CRIU_WORKS, why not, or "" until it is known."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beo-criu", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()

    def _run(self) -> None:
        while self.fact != ms.CRIU_WORKS:
            try:
                criu.find()
                self.fact = ms.CRIU_WORKS
            except BeoError as error:
                self.fact = f"{error.what}: {error.why}"[:REASON_MAX]
            if self._stop.wait(LOOK_S):
                return


class Ranks(NamedTuple):
    """The ranks of an attempt that are here; its others are dumped elsewhere. lose: called where these can't be."""

    attempt: int
    here: range
    lose: Callable[[str], None]


class Moving:
    """The dumps of one agent."""

    def __init__(self) -> None:
        """Nothing is being dumped."""
        self._threads: dict[str, threading.Thread] = {}
        self._again_s: dict[str, float] = {}

    def is_busy(self, folder: str) -> bool:
        """Whether a program is being dumped there: it has ended before all of the dump is sealed."""
        thread = self._threads.get(folder)
        return bool(thread and thread.is_alive())

    def dump(self, job: int, folder: str, ranks: Ranks | None = None) -> None:
        """Have a job's program dumped, unless that is under way, or was tried just now.

        ranks: those here of a program that has more of them.
        """
        if self.is_busy(folder) or time.monotonic() < self._again_s.get(folder, 0.0):
            return
        if not ranks:  # whose thread tries again itself
            self._again_s[folder] = time.monotonic() + AGAIN_S
        self._threads = {place: one for place, one in self._threads.items() if one.is_alive()}
        self._threads[folder] = threading.Thread(target=_dump, args=(job, folder, ranks), name="beo-dump", daemon=True)
        self._threads[folder].start()


def _dump_ranks(job: int, folder: str, ranks: Ranks) -> None:
    """Dump all ranks of a program that this node has; its others may have been, so it is all of them or the job."""
    for name in os.listdir(folder):
        if name not in map(str, ranks.here):  # of others, that came with what is here
            shutil.rmtree(os.path.join(folder, name))
    until_s = time.monotonic() + RANKS_S
    while True:
        left, why = ranks_of(folder, ranks.attempt), ""
        for rank, holder in sorted(left.items()):
            try:
                _await_quiet(Path(folder, str(rank)))
                criu.dump(holder, Path(folder, str(rank)), tcp=True)
            except BeoError as error:
                why = f"rank {rank}: {error}"
                log.warning("job %d: %s", job, why)
        if not why:
            return
        if time.monotonic() > until_s:
            ranks.lose(f"it was to go on elsewhere, and {why}")
            return
        time.sleep(RANKS_AGAIN_S)


def _await_quiet(folder: Path) -> None:
    """Wait until a rank says nothing on its PMI socket for a while: then MPI_Init is over, or not yet at its end."""
    said = folder / criu.TALK
    try:
        is_quiet = said.read_bytes() == criu.ANSWERED and time.time() - said.stat().st_mtime > QUIET_S
    except FileNotFoundError:
        is_quiet = False
    if not is_quiet:
        raise criu.CannotDump("it can't be moved now", "it is in MPI_Init, or before it", "it is tried again")


def ranks_of(folder: str, attempt: int) -> dict[int, int]:
    """Return which process holds which rank of a folder: of the two of each holder, that on the rank's side.

    Of one attempt: where that was lost while its ranks were dumped, the next may have begun here.
    """
    mark, which = f"\0{HOLDER}\0{folder}\0".encode(), f"BEO_ATTEMPT={attempt}".encode()
    found: dict[int, tuple[int, int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark not in b"\0" + Path("/proc", name, "cmdline").read_bytes():
                continue
            environ = Path("/proc", name, "environ").read_bytes().split(b"\0")
            rank = next(int(word[9:]) for word in environ if word.startswith(b"BEO_RANK="))
            if which not in environ:
                continue
            depth = len(criu.numbers_of(int(name)))
        except (OSError, StopIteration):
            continue  # it has just ended
        found[rank] = max(found.get(rank, (0, 0)), (depth, int(name)))
    return {rank: pid for rank, (_, pid) in found.items()}


def _dump(job: int, folder: str, ranks: Ranks | None) -> None:
    if ranks:
        _dump_ranks(job, folder, ranks)
        return
    holder = holder_of(folder)
    if not holder:
        return  # it has ended, or hasn't begun
    try:
        criu.dump(holder, Path(folder))
    except BeoError as error:
        log.warning("job %d can't be moved: %s", job, error)
