"""Programs that know nothing of checkpoints, on their way off this node: dumped by a thread of its own.

A job that is *movable* runs below a holder (holder.py), and what CRIU makes of it lies beside the job's own folder in
the vault, where only root can write. When it is to halt, its holder is looked for and the program is dumped: it ends
with 85 as any other that halts, or it runs on, and another try comes later.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from beo import messages as ms
from beo.errors import BeoError
from beo.worker import criu

LOOK_S = 60.0  # between two looks for a criu, where none works: one may be installed meanwhile
REASON_MAX = 200  # characters of why programs can't be moved
AGAIN_S = 30.0  # after a dump that wasn't possible: what was in its way may have gone
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


def command(python: str, folder: str, person: tuple[int, int, tuple[int, ...]], env: str, argv: list[str]) -> list[str]:
    """Return how a program is started below a holder. env: the file that has its environment."""
    uid, gid, groups = person
    whose = ":".join(map(str, (uid, gid, *groups)))
    return [python, "-I", HOLDER, folder, "--as", whose, "--env", env, "--", *argv]


def hold(order: ms.Start, message: dict[str, Any], dump: str, path: str) -> None:
    """Have the program of a start message begun by a holder, as root, with the job's environment in a file at `path`.

    OSError where there is no room for that.
    """
    os.makedirs(dump, 0o700, exist_ok=True)
    env = {**message["env"], **message["env_of"]["0"], "PWD": message["cwd"]}
    with suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(b"".join(os.fsencode(f"{name}={value}") + b"\0" for name, value in env.items()))
    argv = without_file(order.spec.script, list(order.spec.argv)) if order.spec.script else message["argv"]
    message["argv"] = command(sys.executable, dump, (order.uid, order.gid, order.groups), path, argv)
    own = {name: value for name, value in env.items() if name.startswith("BEO_") and name != "BEO_JOB_NAME"}
    message["env"] = {**own, "PATH": criu.PATH}
    message["uid"] = message["gid"] = message["groups"] = None


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

    def dump(self, job: int, folder: str) -> None:
        """Have a job's program dumped, unless that is under way, or was tried just now."""
        if self.is_busy(folder) or time.monotonic() < self._again_s.get(folder, 0.0):
            return
        self._again_s[folder] = time.monotonic() + AGAIN_S
        self._threads = {place: one for place, one in self._threads.items() if one.is_alive()}
        self._threads[folder] = threading.Thread(target=_dump, args=(job, folder), name="beo-dump", daemon=True)
        self._threads[folder].start()


def _dump(job: int, folder: str) -> None:
    holder = holder_of(folder)
    if not holder:
        return  # it has ended, or hasn't begun
    try:
        criu.dump(holder, Path(folder))
    except BeoError as error:
        log.warning("job %d can't be moved: %s", job, error)
