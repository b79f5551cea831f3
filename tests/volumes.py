"""Two heads' copies of the tree, held against each other as they are on their disks while both are served.

python -m tests.volumes ONE OTHER: the same for whoever sees other disks; fails with what differs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from beo import lockfile
from beo.reader import Reader
from beo.tree.replay import replay
from beo.tree.state import State
from tests.cluster import Cluster, wait_for

EQUAL_S = 20.0  # from when nobody writes any more


def tree_of(cluster: Cluster, head: str) -> Path:
    """The folder of the tree of head A or B."""
    return (cluster.home if head == "A" else cluster.home.second).head / "tree"


def tree_pid(cluster: Cluster, head: str) -> int | None:
    """The process that serves the tree of head A or B; None where none does."""
    return lockfile.holder(tree_of(cluster, head) / "lock")


def state(folder: Path) -> State:
    """The tree as the journal in a folder has it now."""
    reader = Reader(folder / "log")
    try:
        return replay(*reader.load(1 << 62))
    finally:
        reader.close()


def last(folder: Path) -> tuple[int, bytes]:
    """The position at which the journal in a folder ends."""
    reader = Reader(folder / "log")
    try:
        found = reader.position(state(folder).index)
        return (found.idx, found.hash) if found else (0, b"")
    finally:
        reader.close()


def objects(folder: Path, inos: list[int]) -> dict[int, bytes]:
    """The bytes of inodes; of one that has no file they are none."""
    paths = {ino: folder / "objects" / f"{ino % 256:02x}" / str(ino) for ino in inos}
    return {ino: path.read_bytes() if path.exists() else b"" for ino, path in paths.items()}


def differences(one: Path, other: Path) -> list[str]:
    """What is not the same in both, in words."""
    states = [state(folder) for folder in (one, other)]
    if states[0].index != states[1].index:
        return [f"entries: {states[0].index} and {states[1].index}"]
    found = []
    if states[0].encode() != states[1].encode():
        found.append("the trees differ")
    for folder in (one, other):
        if (folder / "stale").exists() and (folder / "stale").read_bytes() != b"[]":
            found.append(f"stale in {folder}: {(folder / 'stale').read_bytes()[:200]!r}")
    inos = [ino for ino, inode in states[0].inodes.items() if inode.is_file and ino not in states[0].loose]
    bytes_of = [objects(folder, inos) for folder in (one, other)]
    for ino in inos:
        one_bytes, other_bytes = (each[ino] for each in bytes_of)
        if one_bytes != other_bytes:
            found.append(f"inode {ino}: {len(one_bytes)} and {len(other_bytes)} bytes, or others")
        if len(one_bytes) > states[0].inodes[ino].size:
            found.append(f"inode {ino}: {len(one_bytes)} bytes, where its size is {states[0].inodes[ino].size}")
    for folder in (one, other):
        left = {int(path.name) for path in (folder / "objects").glob("??/*")} - states[0].inodes.keys()
        if left:
            found.append(f"objects of no inode in {folder}: {sorted(left)[:20]}")
    return found


def await_equal(one: Path, other: Path, timeout_s: float = EQUAL_S) -> None:
    """Return when both are the same, for which nobody may write any more; fails with what differs."""
    deadline_s = time.monotonic() + timeout_s
    while found := differences(one, other):
        assert time.monotonic() < deadline_s, "\n".join(found)
        time.sleep(0.2)


def await_another_tree(cluster: Cluster, head: str, old: int | None) -> int:
    """Return the pid of another process that serves the tree of a head than it was."""

    def found() -> int | None:
        pid = tree_pid(cluster, head)
        return pid if pid != old else None

    pid = wait_for(found, f"another tree of head {head} than {old}")
    assert pid
    return pid


if __name__ == "__main__":
    await_equal(Path(sys.argv[1]), Path(sys.argv[2]))
