"""What runs inside a job: steps and `mpirun`, timed by the job's own script beside the same words without a cluster."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.bench import stage
from tests.bench.stage import BIN, PYTHON, ROOT
from tests.bench.table import Row
from tests.cluster import Cluster

LAUNCHES = 5
WIDE = 8
WIDES = 3
WIDE_S_MAX = 30.0  # eight ranks that spin on few cores: a run that takes longer is given up, and so is the measurement
OPENMPI = ROOT / "build" / "openmpi" / "bin"
HELLO = ROOT / "jobs" / "hello.py"

# Each line is the time that one command took, in nanoseconds; the first one warms the caches and is thrown away.
SCRIPT = """#!/bin/bash
#BEO -n 2
for run in $(seq 0 {launches}); do
  began=$(date +%s%N)
  {command} > /dev/null || exit 1
  echo $(( $(date +%s%N) - began ))
done
"""


def wide(folder: Path) -> Iterator[Row]:
    """Eight ranks that say hello, far more than the cores: a launch of the native kind and one of Hydra."""
    hello: list[str | Path] = [PYTHON, HELLO]
    rows = {
        nodes: Row(f"{WIDE}-rank mpi4py hello, `beo run`, {words}", "ms", f"`mpiexec -n {WIDE}`")
        for nodes, words in ((1, "in one node"), (2, "over two nodes"))
    }
    with stage.cluster(folder / "cluster", slots=WIDE) as cluster:
        for _ in range(WIDES):
            for nodes, row in rows.items():
                row.beo.append(_limited([BIN / "beo", "run", "-n", str(WIDE), "-N", str(nodes), *hello], cluster))
                row.bare.append(_limited([BIN / "mpiexec", "-n", str(WIDE), *hello], cluster))
    yield from rows.values()


def _limited(argv: list[str | Path], cluster: Cluster) -> float:
    """Milliseconds of a program, which must end with 0 and in time."""
    return 1e3 * stage.timed(["/usr/bin/timeout", f"{WIDE_S_MAX:g}", *argv], cluster.env)[0]


def steps(folder: Path) -> Iterator[Row]:
    """Within a job of two ranks' room on one node: a step, and `mpirun` as it is, of each MPI that is installed."""
    with stage.cluster(folder / "cluster") as cluster:
        hello = f"{PYTHON} {HELLO}"
        step = Row("a step in a job: `beo run -n 2` hello", "ms", "`mpiexec -n 2`")
        hydra = Row("`mpirun -n 2` hello in a batch script, MPICH", "ms", "the same without a job")
        bare = f"{BIN / 'mpiexec'} -n 2 {hello}"
        step.beo = _in_job(folder / "step.sh", f"{BIN / 'beo'} run -n 2 {hello}", cluster)
        step.bare = _alone(bare, cluster)
        hydra.beo = _in_job(folder / "mpirun.sh", f"{BIN / 'mpirun'} -n 2 {hello}", cluster)
        hydra.bare = _alone(bare, cluster)
        yield step
        yield hydra
        if (OPENMPI / "mpirun").exists():
            words = f"{OPENMPI / 'mpirun'} -n 2 {OPENMPI / 'python'} {HELLO}"
            other = Row("`mpirun -n 2` hello in a batch script, Open MPI", "ms", "the same without a job")
            other.beo = _in_job(folder / "openmpi.sh", words, cluster)
            other.bare = _alone(words, cluster)
            yield other


def _in_job(script: Path, command: str, cluster: Cluster) -> list[float]:
    script.write_text(SCRIPT.format(launches=LAUNCHES, command=command))
    done = cluster.beo("run", str(script))
    if done.returncode:
        raise RuntimeError(f"{command} in a job: {done.stderr}")
    return _times(done.stdout)


def _alone(command: str, cluster: Cluster) -> list[float]:
    script = SCRIPT.format(launches=LAUNCHES, command=command)
    env = {**cluster.env, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(["/bin/bash", "-c", script], env=env, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {os.fsdecode(done.stderr)}")
    return _times(done.stdout.decode())


def _times(text: str) -> list[float]:
    return [int(line) / 1e6 for line in text.split()[1:]]
