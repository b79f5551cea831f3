"""What a person at a terminal waits for: verbs, the launch of an MPI program, messages inside it, output."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.bench import stage
from tests.bench.stage import BIN, PYTHON, ROOT
from tests.bench.table import Row
from tests.cluster import Cluster

VERBS = 20
LAUNCHES = 10
PINGPONGS = 5
OUTPUT_BYTES = 64 << 20
OUTPUTS = 3
READ_BYTES = 1 << 20

# What keeps MPICH, and UCX below it, from noticing that both ranks are on one machine: beo's walls do that.
OVER_TCP = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self"}

BEO = BIN / "beo"
BARE_PYTHON = "`python -I -S -c pass`"
MPIEXEC = BIN / "mpiexec"
HELLO = ROOT / "jobs" / "hello.py"
PINGPONG = Path(__file__).with_name("pingpong.py")


def verbs(folder: Path) -> Iterator[Row]:
    """A verb from a cold shell, with a resident process and without, beside the least that Python takes."""
    with stage.cluster(folder / "cluster") as cluster, stage.resident(folder, cluster) as resident:
        rows: list[tuple[tuple[str, ...], dict[str, str], Row, Row | None]] = []
        verbs_measured: tuple[tuple[str, ...], ...] = (("queue",), ("submit", "/bin/true"), ("run", "hostname"))
        for words in verbs_measured:
            what = f"`beo {' '.join(words)}`"
            alone = Row(f"{what} without the resident process", "ms", BARE_PYTHON, "60")
            rows.append((words, resident, Row(f"{what} from a cold shell", "ms", BARE_PYTHON, "25"), None))
            rows.append((words, cluster.env, alone, Row(f"{alone.what}, CPU", "ms", BARE_PYTHON)))
        true = Row("the floor: `/bin/true`", "ms", "no Python")
        for _ in range(VERBS):
            for words, env, wall, cpu in rows:
                _add(wall.beo, cpu.beo if cpu else None, stage.timed([BEO, *words], env))
                least = stage.timed([PYTHON, "-I", "-S", "-c", "pass"], cluster.env)
                _add(wall.bare, cpu.bare if cpu else None, least)
                if words[0] == "submit":
                    cluster.beo("wait", "last")
            true.bare.append(1e3 * stage.timed(["/bin/true"])[0])
    for _, _, wall, cpu in rows:
        yield from filter(None, (wall, cpu))
    yield true


def _add(wall_ms: list[float], cpu_ms: list[float] | None, took_s: tuple[float, float]) -> None:
    wall_ms.append(1e3 * took_s[0])
    if cpu_ms is not None:
        cpu_ms.append(1e3 * took_s[1])


def launch(folder: Path) -> Iterator[Row]:
    """Two ranks that say hello: from prompt to prompt, and from submission to end as the journal has it."""
    whole = Row("2-rank mpi4py hello: `beo run`, prompt to prompt", "ms", "`mpiexec -n 2`")
    inside = Row("the same, submission to end in the journal", "ms", "`mpiexec -n 2`")
    with stage.cluster(folder / "cluster") as cluster:
        for _ in range(LAUNCHES):
            whole.beo.append(1e3 * stage.timed([BEO, "run", "-n", "2", PYTHON, HELLO], cluster.env)[0])
            with cluster.client() as own:
                view = own.jobs(["last"]).jobs[0]
            inside.beo.append(1e3 * (view.ended_s - view.submitted_s))
            whole.bare.append(1e3 * stage.timed([MPIEXEC, "-n", "2", PYTHON, HELLO], cluster.env)[0])
        inside.bare = whole.bare
    yield whole
    yield inside


def messages(folder: Path) -> Iterator[Row]:
    """Ping-pong inside one node, and between two over TCP; bare: mpiexec with the settings that the job had."""
    with stage.cluster(folder / "cluster") as cluster:
        for place, words, bare_is, extra in (
            ("in one node", (), "mpiexec", {}),
            ("over two nodes", ("-N", "2"), "mpiexec over TCP", OVER_TCP),
        ):
            rows = {
                "8": Row(f"8 B there and back, {place}", "µs"),
                "1048576": Row(f"1 MiB there and back, {place}", "µs"),
            }
            for _ in range(PINGPONGS):
                told = _pingpong([str(BEO), "run", "-n", "2", *words], cluster)
                env = {**cluster.env, **told.network, **extra}
                bare = _pingpong([str(MPIEXEC), "-n", "2"], cluster, env)
                for size, row in rows.items():
                    row.bare_is = bare_is
                    row.beo.append(told.round_us[size])
                    row.bare.append(bare.round_us[size])
            yield from rows.values()


class _Told(msgspec.Struct):
    """What pingpong.py says."""

    round_us: dict[str, float]
    network: dict[str, str]


def _pingpong(words: list[str], cluster: Cluster, env: dict[str, str] | None = None) -> _Told:
    argv = [*words, PYTHON, str(PINGPONG)]
    done = subprocess.run(argv, env=env or cluster.env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace')}")
    return msgspec.json.decode(done.stdout, type=_Told)


def output(folder: Path) -> Iterator[Row]:
    """A job's output at a terminal: while it is written (durable at the head before it is shown), and afterwards."""
    file = folder / "lines"
    line = b"x" * 99 + b"\n"
    file.write_bytes(line * (OUTPUT_BYTES // len(line)))
    live = Row(f"{OUTPUT_BYTES >> 20} MiB of output, `beo logs -f` while the job writes", "MB/s", "`cat` to a pipe")
    later = Row("the same, `beo logs` afterwards", "MB/s", "`cat` to a pipe")
    with stage.cluster(folder / "cluster") as cluster:
        for _ in range(OUTPUTS):
            began_s = time.perf_counter()
            job = cluster.submit(["/bin/cat", str(file)])
            size = _read([str(BEO), "logs", "-f", str(job)], cluster.env)
            live.beo.append(size / 1e6 / (time.perf_counter() - began_s))
            assert size == file.stat().st_size
            later.beo.append(_speed([str(BEO), "logs", str(job)], cluster.env))
            live.bare.append(_speed(["/bin/cat", str(file)], None))
        later.bare = live.bare
    yield live
    yield later


def _speed(argv: list[str], env: dict[str, str] | None) -> float:
    began_s = time.perf_counter()
    return _read(argv, env) / 1e6 / (time.perf_counter() - began_s)


def _read(argv: list[str], env: dict[str, str] | None) -> int:
    """Read what a program writes to a pipe; how many bytes there were."""
    size = 0
    with subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        while data := os.read(process.stdout.fileno(), READ_BYTES):
            size += len(data)
    return size
