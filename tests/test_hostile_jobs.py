"""Jobs that mean harm, or do it by mistake: each is ended or bounded, and its owner is told why in one sentence.

An innocent job beside it ends unharmed, the head goes on answering, and nothing is left of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import client
from beo.worker import contain
from beo.worker.bounds import OOM_SCORE
from tests.cluster import Cluster, running, wait_for
from tests.test_full_disk import small_disk
from tests.wardens import Agent

pytestmark = pytest.mark.root

PROCESSES_MAX = 120
OUTPUT_MAX_BYTES = 72 << 20
SHM_MAX_BYTES = 32 << 20
SETTINGS = f"""processes_max = {PROCESSES_MAX}
output_max_bytes = {OUTPUT_MAX_BYTES}
shm_max_bytes = {SHM_MAX_BYTES}
grace_s = 0.5
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("hostile") / "beo", workers=1, slots=4, settings=SETTINGS) as made:
        yield made


@pytest.fixture
def innocent(cluster: Cluster, tmp_path: Path) -> Iterator[int]:
    """A job beside the hostile one: it counts until it is told to stop, and is checked for what it counted."""
    enough = tmp_path / "enough"
    job = cluster.submit(["sh", "-c", f"n=0; while [ ! -e {enough} ]; do n=$((n+1)); sleep 0.05; done; echo counted"])
    cluster.wait_for_state(job, "running")
    daemons = {name: cluster.pid(name) for name in ("head", "node01")}
    yield job
    with cluster.client() as own:
        own.info()  # the head answers
    enough.touch()
    [view] = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 1), view.reason
    assert cluster.output(job) == "counted\n"
    assert daemons == {name: cluster.pid(name) for name in daemons}
    wait_for(lambda: not cluster.ranks(job), "nothing of it is left")


def hostile(cluster: Cluster, program: str) -> int:
    """Submit a Python program."""
    return cluster.submit([sys.executable, "-I", "-S", "-c", program])


def told(cluster: Cluster, job: int) -> str:
    """Why the job ended: the same sentence in `beo queue` and in `beo show`; nothing of it lives."""
    [view] = cluster.wait(job)
    assert view.state == "failed"
    assert view.reason in cluster.beo("show", str(job)).stdout
    assert not cluster.ranks(job)
    return view.reason


BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.1)
"""
FOREVER = "yes " + "x" * 4000 + " & "
ENDED: list[tuple[str, str, str]] = [
    ("fork bomb", BOMB, "it wanted more processes than it may have on node01 ([worker] processes_max)"),
    (
        "threads without end",
        "import _thread, time\nwhile True:\n    try:\n        _thread.start_new_thread(time.sleep, (60,))\n"
        "    except RuntimeError:\n        time.sleep(0.1)",
        "it wanted more processes than it may have on node01 ([worker] processes_max)",
    ),
    (
        "output without end",
        "import os\nwhile True: os.write(1, b'x' * 65536)",
        "it printed more than 72MiB on node01 ([worker] output_max_bytes)",
    ),
]


@pytest.mark.parametrize(("program", "reason"), [row[1:] for row in ENDED], ids=[row[0] for row in ENDED])
def test_a_job_that_takes_too_much_is_ended_and_its_owner_told(
    cluster: Cluster, innocent: int, program: str, reason: str
) -> None:
    assert reason in told(cluster, hostile(cluster, program))


BORNE: list[tuple[str, str, str]] = [
    (
        "fills its /dev/shm",
        "import os\nfd = os.open('/dev/shm/x', os.O_WRONLY | os.O_CREAT)\nn = 0\ntry:\n    while True:\n"
        "        n += os.write(fd, bytes(1 << 20))\nexcept OSError as error:\n    print(error.strerror, n)",
        f"No space left on device {SHM_MAX_BYTES}\n",
    ),
    (
        "opens as many files as it can",
        "import os\nn = 0\ntry:\n    while n < 100000:\n        os.open('/dev/null', os.O_RDONLY); n += 1\n"
        "except OSError as error:\n    print(error.strerror)\nprint(n > 200)",
        "True\n",
    ),
    ("kills all that it may", "import os\ntry: os.kill(-1, 9)\nexcept ProcessLookupError: print('alive')", "alive\n"),
    (
        "stops all that it may",
        "import os\nos.kill(1, 19)\nos.kill(1, 9)\ntry: os.kill(-1, 19)\nexcept ProcessLookupError: print('alive')",
        "alive\n",
    ),
    (
        "prints 64 MiB in one line",
        "import os\nfor _ in range(1024):\n    left = bytes(65536).replace(b'\\0', b'x')\n"
        "    while left: left = left[os.write(1, left):]",
        "x" * (64 << 20),
    ),
    ("closes its output and goes on", "import os, time\nos.close(1); os.close(2); time.sleep(0.3)", ""),
    (
        "leaves strays that have forsaken it",
        "import os, time\nfor _ in range(20):\n    if not os.fork():\n        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        "        time.sleep(600)\ntime.sleep(0.2)\nprint('gone')",
        "gone\n",
    ),
]


@pytest.mark.parametrize(("program", "output"), [row[1:] for row in BORNE], ids=[row[0] for row in BORNE])
def test_what_a_job_does_stays_behind_its_walls(cluster: Cluster, innocent: int, program: str, output: str) -> None:
    job = hostile(cluster, program)
    [view] = cluster.wait(job)
    assert (view.state, view.exit_code) == ("done", 0), view.reason
    assert cluster.output(job).endswith(output)
    wait_for(lambda: not cluster.ranks(job), "its strays are gone")


def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(cluster: Cluster, innocent: int) -> None:
    job = hostile(
        cluster,
        "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError: pass\nprint('deaf', flush=True)\ntime.sleep(600)",
    )
    wait_for(lambda: cluster.output(job) == "deaf\n", "it is deaf")
    with cluster.client() as own:
        own.cancel([str(job)])
    [view] = cluster.wait(job)
    assert view.state == "cancelled" and not cluster.ranks(job)


def test_beo_nodes_says_how_processes_are_limited(cluster: Cluster) -> None:
    assert cluster.node("node01").facts["processes"] in ("cgroup1", "cgroup2", "none")


def test_the_kernel_takes_a_rank_before_any_daemon(cluster: Cluster, innocent: int) -> None:
    [rank] = wait_for(lambda: cluster.ranks(innocent), "it has begun").values()
    assert int(Path(f"/proc/{rank}/oom_score_adj").read_text()) == OOM_SCORE
    ours = contain.offer(None)

    def others() -> set[int]:
        """Of the daemons; a rank that is about to begin looks like its warden for a moment."""
        pids = (cluster.pid("head"), cluster.pid("node01"), *cluster.wardens("node01"))
        return {int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids}

    wait_for(lambda: others() == {ours}, "no daemon is offered to the kernel")


def test_a_job_that_fills_the_disk_of_its_tmpdir_is_ended_and_another_on_it_is_not(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 << 20):
        (tmp_path / "disk").chmod(0o755)
        limits = {"free_bytes": 8 << 20}
        wardens = [Agent(tmp_path / name) for name in ("filler", "innocent")]
        try:
            filler, other = wardens
            other.start(["sleep", "600"], tmp=str(tmp_path / "disk" / "b"), limits=limits)
            program = (
                "import os\nfd = os.open(os.environ['T'] + '/x', os.O_WRONLY | os.O_CREAT)\nwhile True:\n"
                "    try: os.write(fd, bytes(1 << 16))\n    except OSError: pass"
            )
            tmp = str(tmp_path / "disk" / "a")
            env = {"PATH": os.environ["PATH"], "T": tmp}
            result = filler.run([sys.executable, "-c", program], tmp=tmp, limits=limits, env=env)
            assert "it filled the disk of its TMPDIR on node01 with 1 files of " in result["reason"]
            assert not Path(tmp).exists() and other.pids()
        finally:
            for warden in wardens:
                warden.close()


def test_output_leaves_the_nodes_disk_the_room_that_is_kept_free(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16 << 20):
        warden = Agent(tmp_path / "disk" / "w")
        try:
            warden.start(["sh", "-c", "yes"], limits={"free_bytes": 8 << 20})
            room = os.statvfs(tmp_path / "disk")
            least = room.f_blocks // 20

            def is_full() -> bool:
                found = os.statvfs(tmp_path / "disk")
                return found.f_bavail < least * 1.2

            wait_for(is_full, "the disk is full but for what is kept")
            assert os.statvfs(tmp_path / "disk").f_bavail > 0
            warden.say("end", reason="enough", grace_s=0)
            assert warden.wait("ended")["result"]["reason"] == "enough"
        finally:
            warden.close()


@pytest.mark.slow
def test_a_gigabyte_in_one_line_is_taken(tmp_path: Path) -> None:
    with running(tmp_path / "beo", workers=1) as cluster:
        job = hostile(
            cluster,
            "import os\nfor _ in range(16384):\n    left = b'x' * 65536\n"
            "    while left: left = left[os.write(1, left):]",
        )
        cluster.wait(job)
        found = subprocess.run(
            [sys.executable, "-m", "beo.front", "logs", str(job)], env=cluster.env, stdout=subprocess.PIPE, check=True
        )
        assert len(found.stdout) == 1 << 30


def test_nothing_of_a_job_is_left_where_agent_and_wardens_were_killed(tmp_path: Path) -> None:
    with running(tmp_path / "beo", workers=1) as cluster:
        job = cluster.submit(["sh", "-c", "touch $TMPDIR/x; sleep 600"], mem="64M")
        cluster.wait_for_state(job, "running")
        cluster.kill("supervisor")
        cluster.kill_worker("node01")
    assert client  # `running` has proven that no folder and no cgroup is left
