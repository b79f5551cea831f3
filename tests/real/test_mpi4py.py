"""Programs that others wrote: the test suite and demos of mpi4py, unmodified, on two ranks of `beo run`."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import BEO, running
from tests.real.release import check_latencies, check_pi, fetch, spawning

Launch = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

RANKS = 2
TIMEOUT_S = 300  # six times what the whole suite takes on two free cores

# Everything that sends: point-to-point, collectives, one-sided, files, worlds that meet, pools. 1,541 tests per rank.
COMMUNICATION = ["cco", "p2p", "comm", "msg", "rma", "win", "io", "file", "dynproc", "threads", "util_p", "util_sync"]
SENDING = [word for name in COMMUNICATION for word in ("-i", f"test_{name}")]
# All but what the mpich wheel says of Fortran's types, which fails even on one rank without a launcher.
WHOLE = ["-e", "test_mpiabi"]
SLOTS = 12  # room for MPI_Comm_spawn: more than there are cores, but what is spawned says little


@pytest.fixture(scope="module")
def source() -> Path:
    """The release's unpacked source."""
    return fetch()


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """`beo run` of two ranks with room to spawn more, over two nodes: launch(argv of Python, folder, stdin)."""
    with running(tmp_path_factory.mktemp("real") / "beo", slots=SLOTS // 2) as cluster:

        def run(argv: list[str], folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
            """Run a script to its end; what hangs is ended by timeout(1): exit 124."""
            words = ["timeout", "--kill-after=5", str(TIMEOUT_S), *BEO, "run", "-n", str(RANKS), "--slots", str(SLOTS)]
            return subprocess.run(
                [*words, sys.executable, *argv],
                cwd=folder,
                env=cluster.env,
                input=stdin,
                capture_output=True,
                text=True,
            )

        yield run


def passed(launch: Launch, source: Path, flags: list[str]) -> list[int]:
    """How many tests of its suite each rank ran, once all have passed."""
    done = launch(["test/main.py", *flags], source)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    # The ranks' words may stand next to each other: unittest writes a line and its end separately.
    assert said.count("OK") == RANKS, said[-4000:]
    counts = [int(count) for count in re.findall(r"Ran (\d+) tests", said)]
    assert len(counts) == RANKS, said[-4000:]
    return counts


def test_its_tests_of_communication_pass_on_every_rank(launch: Launch, source: Path) -> None:
    assert min(passed(launch, source, SENDING)) > 1500


@pytest.mark.slow
def test_its_whole_suite_passes_on_every_rank_spawns_and_all(launch: Launch, source: Path) -> None:
    assert min(passed(launch, source, WHOLE)) > 2000


def test_its_demo_reads_the_intervals_from_stdin_and_finds_pi(launch: Launch, source: Path) -> None:
    done = launch(["demo/compute-pi/cpi-cco.py"], source, "1000000\n")
    assert done.returncode == 0, done.stderr
    found = re.search(r"pi is approximately (\S+), error is (\S+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(3.141592653589793, abs=1e-9)
    assert float(found[2]) < 1e-9


def test_its_benchmark_measures_every_size_of_message(launch: Launch, source: Path) -> None:
    done = launch(["demo/osu_latency.py"], source)
    assert done.returncode == 0, done.stderr
    check_latencies(done.stdout)


def test_its_pool_of_processes_computes_the_mandelbrot_set(launch: Launch, source: Path) -> None:
    done = launch(["-m", "mpi4py.futures", "run_mandelbrot.py"], source / "demo" / "futures")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Mandelbrot Set 750x500 in \d+\.\d\d seconds\.\n", done.stdout), done.stdout


def test_its_demo_spawns_five_workers_that_find_pi(launch: Launch, source: Path, tmp_path: Path) -> None:
    done = launch(spawning(source, tmp_path), source)
    assert done.returncode == 0, done.stderr
    check_pi(done.stdout, masters=RANKS)
