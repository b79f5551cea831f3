"""What a program does on one node is seen on another by whatever looks there next, though both kernels remember much.

Two mounts of one tree on this machine are two nodes to the tree: two sessions, two kernel's memories.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.tree import leases, mount
from beo.tree.attach import DRIFT_AFTER_S
from beo.tree.leases import LEASE_S
from tests.cluster import PATIENCE_S, Cluster, kill, running
from tests.test_tree_mount_takeover import mounted
from tests.volumes import await_another_tree, tree_pid

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount"),
    pytest.mark.skipif(not os.path.exists(mount.DEVICE), reason=f"{mount.DEVICE} is missing"),
]

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("tree") / "beo", workers=1) as cluster:
        yield cluster


def change(folder: Path, rng: random.Random) -> None:
    """Do something to one of a few names, by one node."""
    path = folder / rng.choice(NAMES)
    other = folder / rng.choice(NAMES)
    match rng.randrange(9):
        case 0 | 1:
            if not path.is_dir():
                path.write_bytes(rng.randbytes(rng.randrange(10_000)))
        case 2:
            if path.is_file() and not path.is_symlink():
                with open(path, "r+b") as file:
                    file.seek(rng.randrange(5_000))
                    file.write(b"in the middle")
        case 3:
            if path.is_file():
                os.truncate(path, rng.randrange(5_000))
        case 4:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif os.path.lexists(path):
                path.unlink()
        case 5:
            if not os.path.lexists(path):
                path.mkdir()
                (path / "inner").write_bytes(b"within")
        case 6:
            if path.is_file() and not other.is_dir():
                path.rename(other)
        case 7:
            if os.path.lexists(path):
                path.chmod(rng.choice((0o600, 0o640, 0o755)))
        case _:
            if path.is_file() and not os.path.lexists(other):
                os.link(path, other)


def seen(folder: Path) -> dict[str, object]:
    """Everything that can be seen of a folder."""
    found: dict[str, object] = {name: os.path.exists(folder / name) for name in NAMES}
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        status = entry.stat()
        data = sorted(os.listdir(entry)) if entry.is_dir() else Path(entry.path).read_bytes()
        found[entry.name] = status.st_ino, status.st_mode, status.st_nlink, status.st_size, status.st_mtime_ns, data
    return found


def go_on(one: Path, two: Path, rng: random.Random, steps: int) -> None:
    """Let either node do things, and look after each on both, in either order."""
    for step in range(steps):
        change(rng.choice((one, two)), rng)
        first, second = rng.sample((one, two), 2)
        if rng.random() < 0.7:  # else more is changed before anybody looks
            assert seen(first) == seen(second), step


def test_what_one_node_does_is_seen_by_the_next_look_of_another(cluster: Cluster, tmp_path: Path) -> None:
    with mounted(cluster, tmp_path / "one") as one, mounted(cluster, tmp_path / "two") as two:
        (one / "shared").mkdir()
        go_on(one / "shared", two / "shared", random.Random(1), 60)


def test_a_file_that_is_open_on_a_node_is_read_as_another_has_just_written_it(cluster: Cluster, tmp_path: Path) -> None:
    with mounted(cluster, tmp_path / "one") as one, mounted(cluster, tmp_path / "two") as two:
        (one / "log").write_bytes(b"")
        with open(one / "log", "ab", buffering=0) as writer, open(two / "log", "rb", buffering=0) as reader:
            for number in range(40):
                writer.write(b"%d\n" % number)
                assert reader.read() == b"%d\n" % number and os.fstat(reader.fileno()).st_size == writer.tell()


def test_what_a_node_writes_without_waiting_is_seen_by_whoever_opens_it_on_another(
    cluster: Cluster, tmp_path: Path
) -> None:
    """It need not close or sync: that somebody looks makes it wait."""
    with mounted(cluster, tmp_path / "one") as one, mounted(cluster, tmp_path / "two") as two:
        with open(one / "big", "wb", buffering=0) as writer:
            for number in range(8):
                for _ in range(50):
                    writer.write(bytes([number]) * 50_000)
                    if number % 2:
                        assert (two / "big").stat().st_size == writer.tell()
                assert (two / "big").read_bytes()[-50_000:] == bytes([number]) * 50_000
                time.sleep(leases.BUSY_S if number == 4 else 0.0)  # after which it need not wait again
        with open(one / "small", "wb", buffering=0) as writer, open(two / "small", "rb") as reader:
            for number in range(20):
                writer.write(b"%d\n" % number)
                assert reader.read() == b"%d\n" % number


def test_what_is_removed_by_one_node_lives_on_another_as_long_as_it_is_open(cluster: Cluster, tmp_path: Path) -> None:
    """Files are opened without waiting for the server where a lease allows it: it hears of it before it is too late."""
    with mounted(cluster, tmp_path / "one") as one, mounted(cluster, tmp_path / "two") as two:
        for number in range(10):
            path = one / f"{number}"
            path.write_bytes(b"still here")
            assert (two / path.name).stat().st_size == 10
            with open(two / path.name, "rb") as file:
                path.unlink()
                assert file.read() == b"still here"
            assert not (two / path.name).exists()


@pytest.mark.slow
def test_a_node_without_a_head_reads_what_it_remembers_where_the_settings_say_so(tmp_path: Path) -> None:
    """All else waits, and goes on when there is a head again."""
    settings = '[files]\nwithout_head = "read"\n'
    with running(tmp_path / "beo", workers=1, settings=settings) as cluster, mounted(cluster, tmp_path / "one") as one:
        (one / "known").mkdir()
        (one / "known" / "file").write_bytes(b"remembered")
        (one / "known" / "open").write_bytes(b"")
        before = (one / "known" / "file").read_bytes(), os.listdir(one / "known")
        pid = tree_pid(cluster, "A")
        assert pid
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(2 * LEASE_S)  # every lease is over
            began = time.monotonic()
            with (one / "known" / "open").open():
                for _ in range(2):
                    assert ((one / "known" / "file").read_bytes(), os.listdir(one / "known")) == before
                time.sleep(1)  # longer than what is remembered is used without a look for a head
                assert (one / "known" / "file").stat().st_size == 10
            assert DRIFT_AFTER_S - 3 * LEASE_S < time.monotonic() - began < PATIENCE_S
            writing = threading.Thread(target=(one / "new").write_bytes, args=(b"waits",))
            writing.start()
            writing.join(1)
            assert writing.is_alive()
        finally:
            os.kill(pid, signal.SIGCONT)
        writing.join(PATIENCE_S)
        assert (one / "new").read_bytes() == b"waits"


@pytest.mark.slow
def test_that_is_so_through_kills_of_the_process_that_serves_the_tree(tmp_path: Path) -> None:
    with (
        running(tmp_path / "beo", workers=1, heads=2) as cluster,
        mounted(cluster, tmp_path / "one") as one,
        mounted(cluster, tmp_path / "two") as two,
    ):
        rng = random.Random(2)
        (one / "shared").mkdir()
        for _ in range(6):
            go_on(one / "shared", two / "shared", rng, 30)
            for head in ("A", "B"):
                pid = tree_pid(cluster, head)
                assert pid
                if rng.random() < 0.5:
                    kill([pid])
                    go_on(one / "shared", two / "shared", rng, 5)
                    await_another_tree(cluster, head, pid)
