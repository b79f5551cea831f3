"""Disks that are really full: who is hit says so, nobody dies of it, and what was acknowledged stands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from beo.errors import EXIT_CONFLICT
from beo.headnode.server import DISK_FREE_MIN_BYTES
from tests.cluster import Cluster, wait_for

pytestmark = pytest.mark.root


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """A file system of its own on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "beo-test", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave not one byte free."""
    filler = folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        for size_bytes in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size_bytes))
    return filler


@contextmanager
def up(cluster: Cluster) -> Iterator[None]:
    try:
        cluster.up()
        yield
    finally:
        cluster.down()


def test_a_node_with_a_full_disk_starts_nothing_and_lives_on(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "beo", workers=1)
    with small_disk(cluster.home.nodes / "node01", 4 << 20), up(cluster):
        agent = cluster.pid("node01")
        filler = fill(cluster.home.nodes / "node01")
        job = cluster.submit(["true"], requeue="auto")
        wait_for(lambda: "can't be started" in cluster.beo("show", str(job)).stdout, "the job to say why")
        assert cluster.pid("node01") == agent
        filler.unlink()
        cluster.wait(job)
        assert cluster.job(job).state == "done"
    assert cluster.leftovers() == []


def test_output_waits_for_room_on_a_full_head_and_none_of_it_is_lost(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "beo", workers=1)
    with small_disk(cluster.home.head / "output", 1 << 20), up(cluster):
        job = cluster.submit(["seq", "300000"])  # about 2 MB
        wait_for(lambda: "output waits" in (cluster.home.logs / "head.log").read_text(), "the head to say so")
        subprocess.run(["mount", "-o", "remount,size=64m", str(cluster.home.head / "output")], check=True)
        cluster.wait(job)
        assert cluster.output(job).split() == [str(number) for number in range(1, 300_001)]
    assert cluster.leftovers() == []


def test_a_head_takes_no_job_that_its_disk_has_no_room_for_and_the_others_end(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "beo", workers=1)
    with small_disk(cluster.home.head, DISK_FREE_MIN_BYTES + (32 << 20)), up(cluster):
        job = cluster.submit(["sleep", "1"])
        filler = cluster.home.head / "filler"
        filler.write_bytes(bytes(64 << 20))

        def refused() -> bool:
            done = cluster.beo("submit", "true")
            return done.returncode == EXIT_CONFLICT and "is full" in done.stderr and "free some space" in done.stderr

        wait_for(refused, "a submission to be refused")
        cluster.wait(job)
        filler.unlink()
        wait_for(lambda: not refused(), "submissions to be taken again")
    assert cluster.leftovers() == []
