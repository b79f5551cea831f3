"""What others wrote to test file systems, run on the tree: a cluster of two heads, mounted twice, as on two nodes.

Where it differs from a local file system, and why, is in docs/files.md.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real import debian
from tests.real.nodes import Nodes, can_mount, two_nodes

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not can_mount(), reason="it takes root and /dev/fuse to mount"),
]

HERE = Path(__file__).resolve().parent
INSTALL = "make test-real installs it"

# Suites of CPython that are about files, as far as the tree takes them seconds; then those that take it minutes.
PYTHON_FAST = (
    "posix mmap fcntl fileio largefile file filecmp fileinput stat sqlite3 gzip lzma dbm posixpath genericpath zipapp"
)
# Without tarfile, which was not through after six minutes: its verdict is not known.
PYTHON_SLOW = "os shutil tempfile pathlib glob io mailbox zipfile shelve dbm_dumb bz2"
# 200 readers go down 30 folders each: every name of every path is one question, 500,000 in all.
PYTHON_LEFT_OUT = "*many_open_files*"

# Stressors of stress-ng that are about files. Of these take long by their nature: 8,192 folders, links or names.
STRESS = (
    "access chattr chmod chown close dentry dir dirdeep dirmany dnotify dup fallocate fcntl file-ioctl flock fpunch "
    "fsize fstat getdent hdd handle inotify iomix lease locka lockf lockofd mknod open readahead rename seek sendfile "
    "splice sync-file tee touch utime"
)
STRESS_SLOW = "chdir filename link symlink"
STRESS_AT_A_TIME = 13
STRESS_BYTES = "hdd iomix fallocate readahead sync-file"

FIO = """
[global]
size=2m
verify=crc32c
verify_fatal=1
do_verify=1
ioengine=psync
[in order]
rw=write
bs=128k
[anywhere]
stonewall
rw=randrw
bs=1k-16k
bs_unaligned
[by a mapping]
stonewall
ioengine=mmap
rw=randwrite
bs=4k
size=512k
[eight at a time]
stonewall
ioengine=libaio
iodepth=8
direct=1
rw=randwrite
bs=4k
size=512k
[four writers]
stonewall
rw=randwrite
numjobs=4
bs=4k
size=512k
fsync=16
"""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """One cluster for all."""
    with two_nodes(tmp_path_factory.mktemp("tree")) as nodes:
        yield nodes


def program(name: str) -> str:
    """Its path; whoever hasn't got it is told how to get it."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"no {name} here: {INSTALL}")
    return found


# ---- POSIX, call by call


@pytest.fixture(scope="module")
def syscalls(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Path:
    """libfuse's test of system calls, compiled."""
    source, folder = debian.fetch(debian.LIBFUSE), tmp_path_factory.mktemp("libfuse")
    (folder / "fuse_config.h").write_text("#define HAVE_COPY_FILE_RANGE 1\n")
    nodes.do(program("gcc"), "-w", f"-I{folder}", "-o", folder / "syscalls", source / "test_syscalls.c", limit_s=60)
    return folder / "syscalls"


@pytest.mark.parametrize("words", ["", "-u"], ids=["seen_from_the_other_node", "without_a_name"])
def test_the_system_calls_of_libfuses_suite_do_what_they_should(nodes: Nodes, syscalls: Path, words: str) -> None:
    """What is done on one node is looked at on the other; -u: and in files that have lost their last name."""
    here, there = nodes.fresh(f"syscalls{words}")
    said = nodes.do(syscalls, here, words or f":{there}", limit_s=60)
    assert len(re.findall(r"^ *\d+ \[.*\] OK$", said, re.MULTILINE)) >= 58, said


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_through_two_nodes_leave_the_right_bytes(nodes: Nodes, seed: int) -> None:
    here, there = nodes.fresh(f"exerciser{seed}")
    said = nodes.do(sys.executable, HERE / "exerciser.py", here, there, seed, 500, limit_s=60)
    assert said == "500 steps\n"


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 105))
def test_more_random_changes_leave_the_right_bytes(nodes: Nodes, seed: int) -> None:
    here, there = nodes.fresh(f"exerciser{seed}")
    nodes.do(sys.executable, HERE / "exerciser.py", here, there, seed, 5000, limit_s=200)


# ---- Python's own tests


def pythons(nodes: Nodes, suites: str, limit_s: float) -> int:
    """Run suites of CPython in the tree; return how many tests these were."""
    if not importlib.util.find_spec("test.libregrtest"):
        pytest.skip(f"the tests of Python are not beside {sys.executable}")
    here, _ = nodes.fresh(f"python{time.monotonic_ns()}")
    words = [f"test_{name}" for name in suites.split()]
    said = nodes.do(
        sys.executable, "-m", "test", "-v", "-i", PYTHON_LEFT_OUT, "--tempdir", here, *words,
        limit_s=limit_s, env={"TMPDIR": str(here), "PYTHONPATH": ""},
    )  # fmt: skip
    return sum(map(int, re.findall(r"^Ran (\d+) tests", said, re.MULTILINE)))


def test_pythons_own_tests_of_files_pass(nodes: Nodes) -> None:
    assert pythons(nodes, PYTHON_FAST, 120) > 1000


@pytest.mark.long
@pytest.mark.parametrize("suite", PYTHON_SLOW.split())
def test_pythons_longer_tests_of_files_pass(nodes: Nodes, suite: str) -> None:
    assert pythons(nodes, suite, 300) >= 15


# ---- load


def test_fio_finds_what_it_wrote(nodes: Nodes) -> None:
    here, there = nodes.fresh("fio")
    (nodes.folder / "fio.job").write_text(FIO)
    nodes.do(program("fio"), f"--directory={here}", nodes.folder / "fio.job", limit_s=120)
    sums = [nodes.do("sh", "-c", "sha256sum *", cwd=place, limit_s=60) for place in (here, there)]
    assert sums[0] == sums[1] and len(sums[0].splitlines()) == 8


def stress(nodes: Nodes, stressors: list[str], place: Path, limit_s: float) -> None:
    """All of them at the same time, for three seconds each or what it takes them."""
    words = [word for name in stressors for word in (f"--{name}", "1")]
    sizes = [word for name in STRESS_BYTES.split() for word in (f"--{name}-bytes", "1m")]
    base = [program("stress-ng"), "--temp-path", str(place), "--verify", "--timeout", "3", "--dentries", "50"]
    nodes.do(*base, "--seek-size", "1m", *sizes, *words, limit_s=limit_s)


def test_stress_ngs_stressors_of_files_find_no_fault(nodes: Nodes) -> None:
    here, there = nodes.fresh("stress")
    names = STRESS.split()
    for number, first in enumerate(range(0, len(names), STRESS_AT_A_TIME)):
        stress(nodes, names[first : first + STRESS_AT_A_TIME], (here, there)[number % 2], 90)
    assert nodes.do("ls", there, limit_s=20) == ""


@pytest.mark.long
@pytest.mark.parametrize("stressor", STRESS_SLOW.split())
def test_stress_ngs_longer_stressors_find_no_fault(nodes: Nodes, stressor: str) -> None:
    here, _ = nodes.fresh(f"stress-{stressor}")
    stress(nodes, [stressor], here, 300)


def test_dbench_on_both_nodes_at_once_makes_no_mistake(nodes: Nodes) -> None:
    """The load of a file server, as recorded: it stops at the first answer that is not the recorded one."""
    dbench = program("dbench")
    here, there = nodes.fresh("dbench-a")[0], nodes.fresh("dbench-b")[1]  # in one folder they take each other's files
    runs = [nodes.start("timeout", "90", dbench, "-t", "5", "-D", place, "1") for place in (here, there)]
    for run in runs:
        said, _ = run.communicate(timeout=100)
        assert run.returncode == 0 and re.search(r"Throughput \d", said) and "ERROR" not in said, said[-2000:]


# ---- locks between nodes


def test_no_increment_in_a_sqlite_database_is_lost_between_two_nodes_whoever_is_killed(nodes: Nodes) -> None:
    """Processes on both nodes count in one database, each saying what it has committed, and some are killed."""
    here, there = nodes.fresh("sqlite")
    counter = str(HERE / "counter.py")
    nodes.do(sys.executable, counter, here / "db", "make", limit_s=20)
    for _ in range(2):
        runs = [nodes.start(sys.executable, counter, place / "db", "count", 40) for place in (here, there) * 2]
        time.sleep(1.0)
        runs[0].send_signal(signal.SIGKILL)
        runs[1].send_signal(signal.SIGKILL)
        for run in runs:
            run.wait(120)
        said = [run.communicate()[0].splitlines() for run in runs]
        assert [run.returncode for run in runs[2:]] == [0, 0]
        assert [len(lines) for lines in said[2:]] == [40, 40]
        committed = sum(map(len, said))
        # A killed one may have committed its last increment before it could say so.
        found = nodes.do(sys.executable, counter, there / "db", "look", limit_s=60).split()
        assert found[1:] == ["ok"] and committed <= int(found[0]) <= committed + 2, (found, committed)
        nodes.do(sys.executable, counter, here / "db", "zero", limit_s=20)


@pytest.mark.parametrize("kind", ["fcntl", "flock", "lockf"])
def test_who_holds_a_lock_on_one_node_keeps_the_other_out(nodes: Nodes, kind: str) -> None:
    """Two processes on each node read a number, and write it plus one, under a lock that each has to wait for."""
    here, there = nodes.fresh(kind)
    taker = str(HERE / "counter.py")
    nodes.do("sh", "-c", f"printf %08d 0 > {here}/n", limit_s=20)
    runs = [nodes.start(sys.executable, taker, place / "n", kind, 50) for place in (here, there) * 2]
    assert [run.wait(60) for run in runs] == [0] * 4
    for run in runs:
        run.communicate()
    assert nodes.do("cat", there / "n", limit_s=20) == "00000200"


# ---- a user's things


@pytest.mark.long
def test_a_venv_on_the_tree_serves_both_nodes_and_h5pys_own_tests_pass_in_it(nodes: Nodes) -> None:
    here, there = nodes.fresh("venv")
    nodes.do(sys.executable, "-m", "venv", "--without-pip", here / "v", limit_s=60)
    pip = [sys.executable, "-m", "pip", "--python", str(here / "v" / "bin" / "python"), "--disable-pip-version-check"]
    nodes.do(*pip, "install", "-q", "--no-compile", "numpy", "h5py", "pytest", limit_s=400, env={"PYTHONPATH": ""})
    python = there / "v" / "bin" / "python"
    said = nodes.do(python, "-c", "import numpy; print(numpy.__file__)", limit_s=120, env={"PYTHONPATH": ""})
    assert said.strip().startswith(str(there)), said
    # Root may write what nobody may. The other one gives a process that imports h5py seconds only: from here it takes
    # more. The last ones want mpi4py and an HDF5 built with it, which the wheel isn't.
    left_out = "not test_append_permissions and not test_multiprocess and not TestMPI"
    words = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "h5py", "-k", left_out]
    said = nodes.do(*words, limit_s=400, env={"PYTHONPATH": "", "TMPDIR": str(there)}, cwd=there)
    found = re.search(r"(\d+) passed", said)
    assert found and int(found[1]) > 500, said[-3000:]
