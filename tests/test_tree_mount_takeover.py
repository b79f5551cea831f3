"""The mounted tree through the kills of heads: programs that know nothing of beo write on, and meet no error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beo.tree import mount
from tests.cluster import OTHER, PATIENCE_S, ROOT, Cluster, kill, running, wait_for
from tests.scribes import Hand
from tests.test_tree_takeover import take_over
from tests.volumes import await_another_tree, await_equal, tree_of, tree_pid

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.skipif(not os.path.exists(mount.DEVICE), reason=f"{mount.DEVICE} is missing"),
]

# Until a file appears: files that are written, synced and closed; one that is held open, written and read; and records
# behind what others have appended. Says in the end how many of each there are, and how long the longest took.
WRITER = """
import os, sys, time
folder, name, stop = sys.argv[1:]
held = os.open(f"{folder}/held-{name}", os.O_RDWR | os.O_CREAT)
shared = os.open(f"{folder}/shared", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
count, longest, expected = 0, 0.0, b""
print("begins", flush=True)
while not os.path.exists(stop):
    began = time.monotonic()
    fd = os.open(f"{folder}/{name}-{count}.part", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"%d " % count * 3000)
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{folder}/{name}-{count}.part", f"{folder}/{name}-{count}")
    piece = b"%d\\n" % count
    assert os.pwrite(held, piece, len(expected)) == len(piece)
    expected += piece
    assert os.pread(held, len(expected) + 10, 0) == expected, "it reads something else than it wrote"
    record = b"%s %d\\n" % (name.encode(), count)
    assert os.write(shared, record) == len(record)
    os.fsync(shared)
    count += 1
    longest = max(longest, time.monotonic() - began)
os.close(held)
os.close(shared)
print(count, longest, flush=True)
"""

ROUNDS = 10  # at least, of each writer


@contextmanager
def mounted(cluster: Cluster, folder: Path) -> Iterator[Path]:
    """The tree of a cluster at a folder, served by a process of its own."""
    folder.mkdir()
    words = [sys.executable, "-m", "beo.tree.attach", str(folder)]
    process = subprocess.Popen(words, env=cluster.env, cwd=ROOT, stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: os.path.ismount(folder), "the mount")
        yield folder
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    assert not os.path.ismount(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("tree") / "beo", workers=1, heads=2) as cluster:
        yield cluster


@pytest.mark.slow
def test_programs_on_two_mounts_write_through_kills_without_an_error(pair: Cluster, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    names = ("one", "two")
    with mounted(pair, tmp_path / "one") as one, mounted(pair, tmp_path / "two") as two:
        (one / "work").mkdir()
        words = [sys.executable, "-c", WRITER]
        writers = [
            subprocess.Popen([*words, f"{at}/work", name, str(stop)], stdout=subprocess.PIPE, text=True)
            for at, name in ((one, "one"), (two, "two"))
        ]
        for writer in writers:
            assert writer.stdout and writer.stdout.readline() == "begins\n"
        take_over(pair)
        first = pair.await_step().name
        for head in (first, OTHER[first]):
            old = tree_pid(pair, head)
            assert old
            kill([old])
            await_another_tree(pair, head, old)
        take_over(pair)
        rounds = [at / "work" / f"{name}-{ROUNDS}" for at, name in ((one, "one"), (two, "two"))]
        wait_for(lambda: all(path.exists() for path in rounds), f"{ROUNDS} rounds of both")
        stop.touch()
        counts = []
        for name, writer in zip(names, writers, strict=True):
            out, _ = writer.communicate(timeout=PATIENCE_S)
            assert writer.returncode == 0
            counts.append(int(out.split()[0]))
            print(f"{name}: {counts[-1]} rounds, the longest took {float(out.split()[1]):.2f} s")
        assert min(counts) > ROUNDS
    hand = Hand(pair.home)
    there = {name for name, _ in hand.entries("/work")}
    expected = {f"{name}-{k}" for name, count in zip(names, counts, strict=True) for k in range(count)}
    assert there == expected | {"held-one", "held-two", "shared"}
    for name, count in zip(names, counts, strict=True):
        for k in range(count):
            assert hand.bytes_of(f"/work/{name}-{k}") == b"%d " % k * 3000
        assert hand.bytes_of(f"/work/held-{name}") == b"".join(b"%d\n" % k for k in range(count))
    lines = hand.bytes_of("/work/shared").decode().splitlines()
    for name, count in zip(names, counts, strict=True):
        assert [line for line in lines if line.startswith(name)] == [f"{name} {k}" for k in range(count)]
    assert len(lines) == sum(counts)
    hand.close()
    pair.await_step()
    await_equal(tree_of(pair, "A"), tree_of(pair, "B"))
