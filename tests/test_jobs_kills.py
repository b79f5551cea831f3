"""Jobs that are halted, killed -9 and robbed of a node's memory give the same answer, bit for bit.

Real ranks under a real mpiexec, on nodes that are pretended: each has a name and a folder of its own.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest

from tests.cluster import ROOT, wait_for
from tests.doses import dose

MPIEXEC = str(Path(sys.executable).parent / "mpiexec")
END_S = 60
HALTED = 85
REPORT = r"^(?:step|round) (\d+) "

# Each for a second or two of two ranks, with few messages, which cores that others use make slow; and what of its last
# line is its answer.
PROGRAMS = {
    "heat2d.py": (["--n", "500", "--steps", "6000", "--report-every", "50"], r"steps 6000 checksum \w+ error \S+"),
    "nbody.py": (["--n", "60", "--steps", "2500", "--report-every", "25"], r"steps 2500 checksum \w+ energy .*"),
    "montecarlo.py": (["--tasks", "24000", "--points", "2000", "--report-every", "5"], r"inside \d+ volume .*"),
}


class Run:
    """A job on pretended nodes, one rank each, that is started again and again."""

    def __init__(self, place: Path, name: str) -> None:
        self.place, self.name = place, name
        self.words, self.answer = PROGRAMS[name]
        self.out = place / "out"
        self.process: subprocess.Popen[bytes] | None = None

    def folder(self, node: int) -> Path:
        """The memory of a node."""
        return self.place / f"node{node}"

    def start(self, nodes: list[int]) -> None:
        """Start it, with a rank on each of these nodes."""
        argv = [MPIEXEC]
        for node in nodes:
            argv += [":"] * (argv[-1] != MPIEXEC)
            argv += ["-n", "1", "-env", "BEO_NODE", f"node{node}", "-env", "BEO_CHECKPOINT_DIR", str(self.folder(node))]
            argv += [sys.executable, str(ROOT / "jobs" / self.name), *self.words]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("BEO_", "PMI"))}
        env["UCX_TLS"] = "self,tcp"  # no segments of System V, after which other tests look
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)

    def told(self) -> str:
        """What it has written since it was started."""
        return self.out.read_text()

    def is_under_way(self) -> None:
        """Wait until it has reported something."""
        wait_for(lambda: re.search(REPORT, self.told(), re.MULTILINE), f"{self.name} is under way")

    def is_under_way_again(self) -> bool:
        """The same, of one that may have had nothing left to do: False where it has ended."""
        process = self.process
        assert process
        wait_for(lambda: process.poll() is not None or re.search(REPORT, self.told(), re.MULTILINE), "it is under way")
        return process.poll() is None

    def ranks(self) -> list[int]:
        """The pids of its ranks."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                mark = f"BEO_CHECKPOINT_DIR={self.place}/".encode()
                if len(words) > 1 and words[1].endswith(self.name.encode()) and mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
            except OSError:
                continue
        return sorted(found)

    def checkpoints(self, nodes: list[int]) -> set[tuple[str, int]]:
        """All manifests of these nodes, and when they were written."""
        paths = [path for node in nodes for path in self.folder(node).rglob("*.manifest")]
        return {(str(path), path.stat().st_mtime_ns) for path in paths if path.exists()}

    def take_one(self, nodes: list[int]) -> None:
        """Ask one rank for a checkpoint by a signal, and wait until all have it, or the job has ended."""
        before, process = self.checkpoints(nodes), self.process
        assert process
        with suppress(ProcessLookupError, IndexError):
            os.kill(random.choice(self.ranks()), signal.SIGUSR1)
        wait_for(
            lambda: process.poll() is not None or len(self.checkpoints(nodes) - before) >= len(nodes),
            f"a checkpoint of {self.name}",
        )

    def send(self, number: int) -> int:
        """Send one rank a signal; what mpiexec ended with."""
        ranks = self.ranks()
        shared = {name for pid in ranks for name in re.findall(r"/dev/shm/mpich\S+", maps(pid))}
        with suppress(ProcessLookupError, IndexError):  # it has just ended
            os.kill(random.choice(ranks), number)
        code = self.wait()
        for name in shared:  # a rank that is killed can't remove it, and here is no warden that does
            Path(name).unlink(missing_ok=True)
        return code

    def wait(self) -> int:
        """Wait for its end."""
        assert self.process
        code = self.process.wait(END_S)
        wait_for(lambda: not self.ranks(), "all ranks are gone")
        return code

    def result(self) -> str:
        """Wait for its end, which is good. Returns its answer."""
        assert self.wait() == 0, self.told()
        found = re.search(self.answer, self.told())
        assert found, self.told()
        return found[0]


def maps(pid: int) -> str:
    """What a process has in its memory."""
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """What a job says if it is left in peace."""

    @cache
    def found(name: str) -> str:
        run = Run(tmp_path_factory.mktemp(name), name)
        run.start([1, 2])
        return run.result()

    return found


QUICK = ["nbody.py"]


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in PROGRAMS])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(tmp_path, request.param)


def first_step(told: str) -> int:
    """The first that it reports."""
    found = re.search(REPORT, told, re.MULTILINE)
    return int(found[1]) if found else 1 << 30


def test_a_job_that_was_halted_then_killed_and_has_lost_a_node_gives_the_same_answer(
    run: Run, answer: Callable[[str], str]
) -> None:
    run.start([1, 2])
    run.is_under_way()
    began = first_step(run.told())
    assert run.send(signal.SIGTERM) == HALTED, run.told()
    run.start([1, 2])
    run.is_under_way()
    assert first_step(run.told()) > began, "it went on"
    run.take_one([1, 2])
    assert run.send(signal.SIGKILL) != 0
    shutil.rmtree(run.folder(2))
    run.start([1, 3])
    assert run.result() == answer(run.name)
    assert first_step(run.told()) > began, "it went on with what node 1 kept"
    assert not list(run.folder(1).iterdir()) and not list(run.folder(3).iterdir()), "what has ended leaves nothing"


@pytest.mark.parametrize("run", QUICK, indirect=True)
def test_a_job_goes_on_with_other_numbers_of_ranks(run: Run, answer: Callable[[str], str]) -> None:
    run.start([1, 2])
    run.is_under_way()
    began = first_step(run.told())
    assert run.send(signal.SIGTERM) == HALTED, run.told()
    shutil.rmtree(run.folder(2))
    run.start([1])
    assert run.result() == answer(run.name)
    assert first_step(run.told()) > began


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_at_any_moment_with_nodes_lost_and_ranks_added_change_no_bit(
    run: Run, answer: Callable[[str], str]
) -> None:
    chance = random.Random(7)
    nodes, kills = [1, 2, 3], 0
    while kills < dose(20):
        run.start(nodes)
        if not run.is_under_way_again():
            assert run.result() == answer(run.name)
            continue  # from the beginning
        if chance.random() < 0.7:
            run.take_one(nodes)
        time.sleep(chance.uniform(0, 0.1))
        with suppress(ProcessLookupError, IndexError):
            os.kill(run.ranks()[0], signal.SIGUSR1)  # one may be in the middle of being written
        if not run.ranks() or run.send(signal.SIGKILL) == 0:
            assert run.result() == answer(run.name)
            continue
        kills += 1
        # One node at a time is lost, or isn't there; one that comes back has old things.
        match chance.randrange(3):
            case 0:
                shutil.rmtree(run.folder(chance.choice(nodes)))
            case 1:
                nodes = [1, 2] if len(nodes) == 3 else [1, 2, 3]
    run.start(nodes)
    assert run.result() == answer(run.name)
