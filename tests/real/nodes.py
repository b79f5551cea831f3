"""Two nodes of one tree for other people's programs: a cluster of two heads, and the tree mounted twice.

The tests never touch a mount themselves: whatever does is a process with a limit of time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import BEO, ROOT, Cluster, running, wait_for

SLOTS = 4  # of each worker
PLACE = "tree"  # where each rank finds its own node's mount

# A rank gets a mount namespace of its own, in which ROOT/tree is the mount of the node on which it runs: as if each
# node were a machine.
_PER_NODE = """#!/bin/sh
here=$(dirname "$0")
grep -q " $here/$BEO_NODE fuse.beo " /proc/mounts || { echo "the tree is not mounted on $BEO_NODE" >&2; exit 97; }
exec unshare --mount sh -c 'mount --bind "$0/$BEO_NODE" "$0/tree" && exec "$@"' "$here" "$@"
"""


@dataclass(frozen=True)
class Nodes:
    """The cluster, and where the tree is mounted: `a` is node01's, `b` node02's."""

    cluster: Cluster
    folder: Path

    @property
    def a(self) -> Path:
        """The tree on node01."""
        return self.folder / "node01"

    @property
    def b(self) -> Path:
        """The tree on node02."""
        return self.folder / "node02"

    def run(
        self, *words: str | Path | int, limit_s: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that may hang to its end, or to that of its time: exit 124."""
        surroundings = {**self.cluster.env, "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        argv = ["timeout", "--kill-after=5", f"{limit_s}", *map(str, words)]
        return subprocess.run(argv, cwd=cwd or self.folder, env=surroundings, capture_output=True, text=True)

    def do(
        self, *words: str | Path | int, limit_s: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a program that has to succeed; return what it printed."""
        done = self.run(*words, limit_s=limit_s, cwd=cwd, env=env)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"exit {done.returncode}: {' '.join(map(str, words))}\n{said[-6000:]}"
        return said

    def start(self, *words: str | Path | int) -> subprocess.Popen[str]:
        """Start a program."""
        return subprocess.Popen([*map(str, words)], env=self.cluster.env, stdout=subprocess.PIPE, text=True)

    def ranks(self, number: int, *words: str | Path, limit_s: float, env: Mapping[str, str] | None = None) -> str:
        """Run MPI ranks on both nodes in turns, each with its own node's mount at `folder/tree`; return their words."""
        spread = ["run", "-n", f"{number}", "-N", "2"]
        return self.do(*BEO, *spread, self.folder / "per-node", *words, limit_s=limit_s, env=env)

    def fresh(self, name: str) -> tuple[Path, Path]:
        """A new empty folder in the tree, as both nodes see it."""
        self.do("mkdir", self.a / name, limit_s=20)
        return self.a / name, self.b / name


def _is_mounted(folder: Path) -> bool:
    return f" {folder} fuse.beo " in Path("/proc/mounts").read_text()


@contextmanager
def _shared(folder: Path) -> Iterator[None]:
    """Let what is mounted below a folder be seen by wardens that are there already, as systemd has it for a whole
    machine: containers don't."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "--make-shared", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def two_nodes(folder: Path) -> Iterator[Nodes]:
    """A cluster of two heads and two workers with the tree mounted for each; nothing of it is left at the end."""
    with _shared(folder), running(folder / "beo", workers=2, slots=SLOTS, heads=2) as cluster:
        nodes = Nodes(cluster, folder)
        script = folder / "per-node"
        script.write_text(_PER_NODE)
        script.chmod(0o755)
        (folder / PLACE).mkdir()
        mounts: list[subprocess.Popen[bytes]] = []
        try:
            for place in (nodes.a, nodes.b):
                place.mkdir()
                argv = [sys.executable, "-m", "beo.tree.attach", str(place)]
                mounts.append(subprocess.Popen(argv, env=cluster.env, cwd=ROOT))
                wait_for(lambda place=place: _is_mounted(place), f"the tree is at {place}")  # type: ignore[misc]
            yield nodes
        finally:
            for one in mounts:
                one.terminate()
            for one in mounts:
                one.wait(20)
            left = [place for place in (nodes.a, nodes.b) if _is_mounted(place)]
            for place in left:
                subprocess.run(["umount", "--lazy", place], check=False)
        assert not left, f"still mounted: {left}"


def can_mount() -> bool:
    """Whether this machine lets us."""
    return os.geteuid() == 0 and os.path.exists("/dev/fuse")
