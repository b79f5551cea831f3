"""A program that others wrote: the test suite and pi demo of mpi4py, unmodified, on two ranks of `beo run`.

The release (0.5 MB) is fetched by pip on first use and kept in build/real.
"""

import hashlib
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.conftest import Launch

pytestmark = [pytest.mark.real, pytest.mark.timeout(400)]

RELEASE = "mpi4py-4.1.2"
SHA256 = "56860286dc45f20e8821e93cb06669e30462348bf866f685553fa4b712d58d02"
BUILD = Path(__file__).resolve().parents[2] / "build" / "real"

RANKS = 2
TIMEOUT_S = 300  # six times what the whole suite takes on two free cores

# Everything that sends: point-to-point, collectives, one-sided, files, worlds that meet, pools. 1,541 tests per rank.
COMMUNICATION = ["cco", "p2p", "comm", "msg", "rma", "win", "io", "file", "dynproc", "threads", "util_p", "util_sync"]
SENDING = [word for name in COMMUNICATION for word in ("-i", f"test_{name}")]
# All but what the mpich wheel says of Fortran's types, which fails even on one rank without a launcher, and
# MPI_Comm_spawn, which wants free slots beside those of the ranks.
WHOLE = ["-e", "test_mpiabi", "-e", "test_spawn"]


def fetch() -> Path:
    """The release's unpacked source; raises RuntimeError where neither build/real nor pip has it."""
    archive, source = BUILD / f"{RELEASE}.tar.gz", BUILD / RELEASE
    BUILD.mkdir(parents=True, exist_ok=True)
    # Each step ends in a rename, so that test processes that come here together, or end half-way, do no harm.
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        if not archive.exists():
            pinned = f"{RELEASE.replace('-', '==')} --hash=sha256:{SHA256}"  # pip looks before it runs anything
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=mpi4py", "-d", scratch]
            done = subprocess.run([*pip, "-r", "/dev/stdin"], input=pinned, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"pip can't download {RELEASE}: put its source release at {archive}\n{done.stderr}")
            Path(scratch, archive.name).replace(archive)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise RuntimeError(f"{archive} is not the release with sha256 {SHA256}: delete it")
        if not source.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
            try:
                Path(scratch, RELEASE).rename(source)
            except OSError:
                if not source.exists():  # else another test process was first, with the same files
                    raise
    return source


@pytest.fixture(scope="module")
def source() -> Path:
    """The release's unpacked source."""
    return fetch()


def passed(launch: Launch, source: Path, flags: list[str]) -> list[int]:
    """How many tests of its suite each rank ran, once all have passed."""
    done = launch(RANKS, ["test/main.py", *flags], directory=source, timeout_s=TIMEOUT_S)
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
def test_its_whole_suite_passes_on_every_rank(launch: Launch, source: Path) -> None:
    assert min(passed(launch, source, WHOLE)) > 2000


def test_its_demo_reads_the_intervals_from_stdin_and_finds_pi(launch: Launch, source: Path) -> None:
    done = launch(RANKS, ["demo/compute-pi/cpi-cco.py"], "1000000\n", directory=source)
    assert done.returncode == 0, done.stderr
    found = re.search(r"pi is approximately (\S+), error is (\S+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) == pytest.approx(3.141592653589793, abs=1e-9)
    assert float(found[2]) < 1e-9
