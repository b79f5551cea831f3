"""The two heads are upgraded one after the other, while jobs are taken: the standby first, then a switchover."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import local, supervisor
from beo.config import Home
from beo.supervisor import environment
from tests.cluster import HEADS, OTHER, PATIENCE_S, ROOT, Cluster, running, wait_for
from tests.history import History
from tests.test_takeover import ask


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """Where the next beo stands, one that writes another form of entries."""
    root = tmp_path / "newer"
    shutil.copytree(ROOT / "beo", root / "beo", ignore=shutil.ignore_patterns("__pycache__"))
    for name, pattern, new in (
        ("__init__.py", r'__version__ = "[^"]*"', '__version__ = "9.9.9"'),
        ("version.py", r"ENTRY_FORMAT = (\d+)", "ENTRY_FORMAT = 77"),
        ("version.py", r"STATE_FORMAT = (\d+)", "STATE_FORMAT = 77"),
    ):
        file = root / "beo" / name
        text, count = re.subn(pattern, new, file.read_text())
        assert count == 1, f"{name} has no {pattern}"
        file.write_text(text)
    return root


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Cluster]:
    """Two heads without a supervisor, which would start the old beo again."""
    with running(tmp_path / "beo", workers=3, heads=2) as cluster:
        cluster.await_step()
        cluster.kill("supervisor")
        yield cluster


def upgrade(cluster: Cluster, name: str, root: Path) -> None:
    """End a head and start the same one from another beo."""
    pid = cluster.pid(HEADS[name])
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), f"the end of head {name}")
    home = cluster.home if name == "A" else cluster.home.second
    env = environment(Home(home.path)) | {"PYTHONPATH": str(root)}
    supervisor.spawn((sys.executable, *local.HEAD_ARGV), env, home.logs / "head.log")


def version_of(cluster: Cluster, name: str) -> str:
    """Which beo a head is."""
    return next((view.version for view in cluster.views().values() if view.name == name), "")


@pytest.mark.slow
def test_the_standby_first_then_a_switchover_then_the_other(pair: Cluster, newer: Path, tmp_path: Path) -> None:
    history = History(tmp_path / "notes")
    history.acknowledged("runs", pair.submit(history.argv("runs")))
    wait_for(lambda: history.lives("runs"), "the job lives")
    first = pair.await_step()
    standby = OTHER[first.name]

    upgrade(pair, standby, newer)
    wait_for(lambda: version_of(pair, standby) == "9.9.9", "the standby to be of the next beo")
    assert pair.await_step().name == first.name, "a newer standby gets in step with an older primary"
    history.acknowledged("between", pair.submit(history.argv("between", 0.0)))

    ask(pair, first.name, "switchover")
    pair.await_acting(standby)
    history.acknowledged("after", pair.submit(history.argv("after", 0.0)))

    def told() -> bool:
        old = next((view for view in pair.views().values() if view.name == first.name), None)
        return bool(old and any("install beo 9.9.9 here" in finding for finding in old.findings))

    wait_for(told, "the older head to say that it can't follow", 2 * PATIENCE_S)
    alone = lambda: any(view.role == "primary" and not view.in_step for view in pair.views().values())  # noqa: E731
    wait_for(alone, "the newer head to go on alone")

    upgrade(pair, first.name, newer)
    wait_for(lambda: pair.await_step().other_version == "9.9.9", "the other head to be of the next beo, in step")
    assert pair.await_step().name == standby
    pair.check(history, adopted=["runs"])
