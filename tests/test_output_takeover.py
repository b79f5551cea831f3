"""Output of real jobs on two real heads: whichever is killed or stopped, no line is lost, doubled or moved."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import HEADS, OTHER, Cluster, running, send, wait_for
from tests.test_streams_kills import LINES, TALKER, check_numbered, grown

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("mirror") / "beo", workers=2, slots=2, heads=2) as cluster:
        yield cluster


KILLED_S = 1.5  # by then a head acts again


def stores(cluster: Cluster) -> list[dict[str, bytes]]:
    """The files of output of both heads."""
    folders = [cluster.home.head / "output", cluster.home.second.head / "output"]
    return [{path.name: path.read_bytes() for path in folder.glob("*.log")} for folder in folders]


def test_logs_f_and_a_jobs_file_go_on_over_every_take_over_and_both_heads_end_with_the_same_bytes(
    pair: Cluster, tmp_path: Path
) -> None:
    enough, kept, logs = tmp_path / "enough", tmp_path / "kept", tmp_path / "logs"
    job = pair.submit([sys.executable, "-c", TALKER, str(enough)], ranks=2, nodes=2, output=str(kept))
    follower = pair.start("logs", "-f", str(job), stdout=logs.open("wb"))
    for hurt in ("kill", "stop", "standby", "kill", "switchover"):
        view = pair.await_step()
        grown(logs, 20 * LINES * LINES)
        if hurt == "kill":
            while pair.await_step().name == view.name:  # it is there again at once, and may be the first to act
                pair.kill(HEADS[view.name])
                time.sleep(KILLED_S)
        elif hurt == "stop":  # it wakes with copies under way, of an epoch that is over
            pid = pair.pid(HEADS[view.name])
            send([pid], signal.SIGSTOP)
            pair.await_acting(OTHER[view.name])
            send([pid], signal.SIGCONT)
        elif hurt == "standby":
            pair.kill(HEADS[OTHER[view.name]])
        else:
            assert pair.beo("ha", "switchover").returncode == 0
            pair.await_acting(OTHER[view.name])
        grown(logs, 20 * LINES * LINES)
    pair.await_step()
    enough.touch()
    _, err = follower.communicate(timeout=60)
    assert follower.returncode == 0, err
    check_numbered(logs.read_text(), ranks=2, lines_min=100 * LINES)
    done = pair.beo("logs", str(job))
    assert done.stdout == logs.read_text(), "whoever reads later, at whichever head, reads the same"
    wait_for(lambda: kept.stat().st_size == len(done.stdout) + len(done.stderr), "the -o file is complete")
    said = [line for line in kept.read_text().splitlines() if len(line) == LINES - 1]
    check_numbered("\n".join(said), ranks=2, lines_min=100 * LINES)
    wait_for(lambda: stores(pair)[0] == stores(pair)[1] != {}, "both heads have the same files")
    folders = [pair.home.head / "output", pair.home.second.head / "output"]
    wait_for(lambda: not [mark for folder in folders for mark in folder.glob("*.export-*")], "no file is unfinished")
