"""The store of checkpoints with real ranks: killed in the middle, with a full disk, started again elsewhere."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.checkpoints import plan
from tests.cluster import ROOT
from tests.doses import dose

RANKS = 4
MPIEXEC = (str(Path(sys.executable).parent / "mpiexec"), "-n")
LIMIT_S = 60.0


@pytest.fixture
def top() -> Iterator[Path]:
    """A folder in memory."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="beo-checkpoints-", dir=where) as path:
        yield Path(path)


def ranks(count: int, *words: str) -> subprocess.Popen[str]:
    argv = [*MPIEXEC, str(count), sys.executable, "-m", "tests.checkpoint_ranks", *words]
    return subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def told(count: int, *words: str) -> str:
    """Return what real ranks say together at their end."""
    process = ranks(count, *words)
    try:
        out, err = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, err
    return next(line for line in out.splitlines() if line.startswith("told"))


@pytest.mark.parametrize("level", plan.LEVELS)
def test_real_ranks_read_what_real_ranks_saved(top: Path, level: str) -> None:
    assert told(RANKS, "save", str(top), level, "1", "2", "3") == "told ['done']"
    if level != "raid0":
        shutil.rmtree(top / "n1")
    assert told(RANKS, "load", str(top), level) == "told ['3']"
    if level == "rs":
        shutil.rmtree(top / "n0")
        shutil.rmtree(top / "n3")
        assert told(3, "load", str(top), level) == "told ['3']"


@pytest.mark.root
def test_a_full_disk_of_one_rank_fails_on_all_and_leaves_the_one_before(top: Path) -> None:
    (top / "n2").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(top / "n2")], check=True)
    try:
        assert told(RANKS, "save", str(top), "raid5", "7") == "told ['done']"  # n2 takes 1.4 MB and its parity
        assert "CheckpointFailed" in told(RANKS, "save", str(top), "raid5", "5")  # and now 2.9 MB more
        assert "rank 2: no space left on device" in told(RANKS, "save", str(top), "raid5", "5")
        assert told(RANKS, "load", str(top), "raid5") == "told ['7']"
    finally:
        subprocess.run(["umount", str(top / "n2")], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("level", ["raid1", "raid5", "rs"])
def test_ranks_killed_while_they_save_leave_the_newest_or_the_one_before(top: Path, level: str) -> None:
    chance = random.Random(level)
    saved = 0
    for _ in range(dose(8)):
        process = ranks(RANKS, "save", str(top), level, *map(str, range(saved + 1, saved + 400)))
        assert process.stdout
        try:
            for line in process.stdout:
                if line.startswith("ready"):
                    break
            time.sleep(chance.uniform(0.01, 0.6))
        finally:
            _kill(process)
        process.stdout.close()
        if (top / "saved").exists():
            saved = int((top / "saved").read_text().split()[-1])
        lost = chance.randrange(RANKS)
        shutil.rmtree(top / f"n{lost}")
        found = told(RANKS, "load", str(top), level)
        assert found in (f"told ['{saved}']", f"told ['{saved + 1}']", *(["told ['none']"] if not saved else []))
        saved = 0 if "none" in found else int(found.split("'")[1])
        (top / "saved").write_text(f"{saved}\n")


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill mpiexec, its proxies and all ranks at once, as when a node's power is cut: by the tree of processes."""
    doomed = [process.pid]
    shared: set[Path] = set()  # what MPICH removes at an orderly end
    for pid in doomed:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            doomed += [int(child) for child in children.read_text().split()]
        maps = Path(f"/proc/{pid}/maps").read_text()
        shared |= {Path(name) for name in re.findall(r"/dev/shm/mpich_shm_\S+", maps)}
    for pid in reversed(doomed):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()
    for path in shared:
        path.unlink(missing_ok=True)
    if process.stderr:
        process.stderr.close()
