"""What measurements stand on: heads, bare loops and clients as processes, started in a folder and always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from beo import birth, client, local
from beo import messages as m
from beo.config import Home
from tests.bench.load import READY, Batch, Batched, Rate, Rated
from tests.cluster import Cluster, running, wait_for

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable
BIN = Path(PYTHON).parent
JOIN_S = 0.1  # between an order and its start, so that all clients have read theirs
ANSWER_MAX_S = 30.0
HEAD_PROCESS = (PYTHON, *local.HEAD_ARGV)

Result = TypeVar("Result")


class Served:
    """A process that serves a cluster's folder, a head or a bare loop, to be killed and started again."""

    def __init__(self, home: Home, argv: Sequence[str]) -> None:
        """Take the folder and what serves it."""
        self.home = home
        self._argv = argv
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Start it, and return when it answers."""
        with (self.home.logs / "served.log").open("ab") as log:
            env = dict(os.environ, BEO_DIR=str(self.home.path), PYTHONPATH=str(ROOT))
            self._process = subprocess.Popen(self._argv, env=env, cwd=ROOT, stdout=log, stderr=log)
        await_answer(self.home)

    def kill(self) -> None:
        """End it, as `kill -9` does."""
        if self._process:
            self._process.kill()
            self._process.wait()


@contextmanager
def serving(path: Path, argv: Sequence[str]) -> Iterator[Served]:
    """A served folder of its own, at work."""
    home = Home(path)
    birth.make_folder(home)
    home.toml.write_text("[head]\nqueued_max = 1_000_000\n")  # what is submitted here is never run
    birth.make_cluster(home)
    served = Served(home, [word.replace("HOME", str(path)) for word in argv])
    try:
        served.start()
        yield served
    finally:
        served.kill()


def head(path: Path) -> AbstractContextManager[Served]:
    """A real head, without a worker."""
    return serving(path, HEAD_PROCESS)


def bare(path: Path, slots: int = 0) -> AbstractContextManager[Served]:
    """A bare loop; with `slots`, it runs what is submitted."""
    return serving(path, (PYTHON, "-m", "tests.bench.bare", "HOME", str(slots)))


def await_answer(home: Home, patience_s: float = ANSWER_MAX_S) -> None:
    """Return as soon as anything answers there."""
    with client.Cluster(home) as own:
        own.request(m.Info(), patience_s)


class Load:
    """Client processes of one served folder (see load.py), which obey one order at a time."""

    def __init__(self, home: Home, clients: int) -> None:
        """Start them."""
        argv = (PYTHON, "-m", "tests.bench.load", str(home.path))
        self._clients = [
            subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(clients)
        ]

    def await_ready(self) -> None:
        """Return when all are connected."""
        for process in self._clients:
            assert process.stdout
            if process.stdout.readline().decode().strip() != READY:
                raise RuntimeError("a client doesn't start: what it says stands above")

    def _obey(self, clients: int, order: Rate | Batch, kind: type[Result]) -> list[Result]:
        chosen = self._clients[:clients]
        for process in chosen:
            assert process.stdin
            process.stdin.write(msgspec.json.encode(order) + b"\n")
            process.stdin.flush()
        lines = [process.stdout.readline() for process in chosen if process.stdout]
        return [msgspec.json.decode(line, type=kind) for line in lines]

    def rate(self, clients: int, seconds: float, window: int, environment: str) -> list[Rated]:
        """Let some of the clients submit at the same time for so long."""
        return self._obey(clients, Rate(time.monotonic() + JOIN_S, seconds, window, environment), Rated)

    def batch(self, jobs: int, window: int, environment: str, owners: int = 1) -> Batched:
        """Let one client submit jobs and wait for the end of all."""
        return self._obey(1, Batch(jobs, window, environment, owners), Batched)[0]

    def end(self) -> None:
        """End them all."""
        for process in self._clients:
            process.kill()
            process.wait()


@contextmanager
def loading(home: Home, clients: int = 1) -> Iterator[Load]:
    """Clients that are connected, and ended at the end."""
    load = Load(home, clients)
    try:
        load.await_ready()
        yield load
    finally:
        load.end()


@contextmanager
def cluster(path: Path, slots: int = 2) -> Iterator[Cluster]:
    """A whole cluster of two workers, without the short lease of tests."""
    with running(path, workers=2, slots=slots) as own:
        yield own


@contextmanager
def resident(folder: Path, cluster: Cluster) -> Iterator[dict[str, str]]:
    """A resident process of its own; yields the environment of verbs that use it. The folder's path must be short."""
    env = {**cluster.env, "BEO_RESIDENT": "1", "XDG_RUNTIME_DIR": str(folder)}
    subprocess.run([BIN / "beo", "queue"], env=env, check=True, stdout=subprocess.DEVNULL)  # starts it for later ones
    try:
        wait_for(lambda: any(path.is_socket() for path in folder.glob("beo/*")), "a resident process")
        subprocess.run([BIN / "beo", "queue"], env=env, check=True, stdout=subprocess.DEVNULL)
        yield env
    finally:
        subprocess.run([BIN / "beo", "resident", "--stop"], env=env, check=True, stdout=subprocess.DEVNULL)


def timed(argv: Sequence[str | Path], env: dict[str, str] | None = None) -> tuple[float, float]:
    """Run a program to its end, its output thrown away: seconds on the wall, and of CPU, its children's included.

    Raises RuntimeError where it doesn't exit with 0.
    """
    words = [str(word) for word in argv]
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    began_s = time.perf_counter()
    pid = os.posix_spawn(words[0], words, dict(os.environ) if env is None else env, file_actions=null)
    _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - began_s
    if status:
        raise RuntimeError(f"{' '.join(words)} ends with {os.waitstatus_to_exitcode(status)}")
    return wall_s, usage.ru_utime + usage.ru_stime


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process has used so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def ended_cpu_s(pid: int) -> float:
    """Seconds of CPU that the children of a process had used that have ended."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[13]) + int(words[14])) / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int:
    """The process that a process is a child of."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def pss_bytes(pid: int) -> int:
    """A process's memory, shared pages divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise LookupError(f"process {pid} has no Pss")


def interrupt_on_sigterm() -> None:
    """Let a SIGTERM unwind the stack as ^C does, so that all that was started is ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
