"""`beo ckpt`: what is kept of whose job, whether the copy at the head is sound, and bringing it out."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import beo
from beo.checkpoints.slots import places
from tests.cluster import ROOT, Cluster, running, wait_for

PROGRAM = str(ROOT / "tests" / "checkpointed.py")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = "checkpoint_copy_s = 0.5\ncheckpoint_copy_bytes_s = 0\n"
    with running(tmp_path_factory.mktemp("ckpt") / "beo", workers=2, slots=1, settings=settings) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def job(cluster: Cluster) -> Iterator[int]:
    """A job that runs, has checkpoints, and a copy of one at the head."""
    number = cluster.submit([sys.executable, PROGRAM, "100000", "0.01", "10", str(cluster.home.path / "told")])

    def is_copied() -> bool:
        rows = listed(cluster, number)
        return bool(rows and rows[0]["copied"] and rows[0]["memory"])

    wait_for(is_copied, "its checkpoint is in memory and copied")
    yield number
    cluster.beo("cancel", str(number))
    cluster.wait(number)


def listed(cluster: Cluster, job: int) -> list[dict[str, object]]:
    rows = json.loads(cluster.beo("ckpt", "list", "--json").stdout or "[]")
    return [row for row in rows if row["job"] == job]


def test_list_tells_who_keeps_what_and_what_is_copied(cluster: Cluster, job: int) -> None:
    (row,) = listed(cluster, job)
    assert row["nodes"] == cluster.job(job).nodes
    assert isinstance(row["memory"], int)
    assert row["memory"] >= 1_600_000
    assert "checkpointed.py" in cluster.beo("ckpt", "list").stdout


def test_verify_and_show_read_every_block_of_the_copy(cluster: Cluster, job: int) -> None:
    said = cluster.beo("ckpt", "verify", str(job))
    assert said.returncode == 0, said.stderr
    assert "whole: 0 of" in said.stdout
    parts = json.loads(cluster.beo("ckpt", "show", str(job), "--json").stdout)
    assert {(part["rank"], part["kind"], part["level"]) for part in parts} == {(0, "image", "raid0")}
    assert all(part["blocks"] == 2 for part in parts)


def test_what_is_exported_goes_on_by_hand(cluster: Cluster, job: int, tmp_path: Path) -> None:
    done = cluster.beo("ckpt", "export", str(job), str(tmp_path / "saved"))
    assert done.returncode == 0, done.stderr
    (place,) = done.stdout.split()
    again = cluster.beo("ckpt", "export", str(job), str(tmp_path / "saved"))
    assert (again.returncode, "isn't empty" in again.stderr) == (75, True)
    (folder,) = places(Path(place))
    with beo.checkpoint(total=np.zeros(200_000), folder=folder) as ck:
        assert ck.restored
        assert ck.total[0] > 0


def test_take_has_a_running_job_take_one_now(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    other = cluster.submit([sys.executable, PROGRAM, "100000", "0.01", "90000", str(log)])
    wait_for(lambda: log.exists(), "it runs")
    assert str(other) in cluster.beo("ckpt", "take", str(other)).stdout
    wait_for(lambda: (rows := listed(cluster, other)) and int(str(rows[0]["memory"])) > 1_000_000, "it has taken one")
    cluster.beo("cancel", str(other))
    cluster.wait(other)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["verify", "9999"], 2, "no job 9999"),
        (["export", "9999", "x"], 2, "no job 9999"),
        (["take", "9999"], 2, "no job 9999"),
        (["lst"], 2, "lst"),
        (["verify", "all"], 2, "one"),
    ],
)
def test_mistakes_are_told(cluster: Cluster, words: list[str], code: int, error: str) -> None:
    said = cluster.beo("ckpt", *words)
    assert (said.returncode, error in said.stderr) == (code, True), said.stderr


def test_a_job_without_a_copy_says_so(cluster: Cluster) -> None:
    plain = cluster.submit(["true"])
    cluster.wait(plain)
    said = cluster.beo("ckpt", "verify", str(plain))
    assert (said.returncode, "no copy of job" in said.stderr) == (2, True), said.stderr
