"""GlusterFS with two replicas, to measure beside: one daemon and both bricks in namespaces that end with it.

Needs root and the Debian package glusterfs-server (``apt-get install -y glusterfs-server``). Run as a program inside of
the namespaces, it makes the volume, mounts it, and then does what it is told by lines of stdin.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import ROOT

ADDRESS = "10.254.0.1"  # GlusterFS refuses loopback addresses; this one is of an interface lo that nobody else has
OWN = ("/run", "/var/lib/glusterd", "/var/log/glusterfs")  # its fixed places: here each is an empty tmpfs
CHILD_S = 120.0

Measure = Callable[[list[str]], str]


def is_there() -> bool:
    """Whether it can be measured on this machine."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in ("glusterd", "gluster", "unshare", "ip"))


@contextmanager
def volume(folder: Path) -> Iterator[Measure]:
    """Yield what runs a program in the volume, mounted at `folder`/at, and returns what it printed."""
    spaces = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
    words = ["unshare", *spaces, sys.executable, "-m", "tests.bench.gluster", str(folder)]
    with subprocess.Popen(words, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout

        def measure(program: list[str]) -> str:
            assert process.stdin and process.stdout
            process.stdin.write("\0".join(program) + "\n")
            process.stdin.flush()
            return process.stdout.readline()

        try:
            assert process.stdout.readline() == "ready\n", "GlusterFS does not start"
            yield measure
        finally:
            process.terminate()


def _do(*words: str) -> None:
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=CHILD_S)


def main(folder: Path) -> None:
    """Inside: make the volume, then run one program a line, its words parted by NUL and without line ends."""
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    for place in OWN:
        _do("mount", "-t", "tmpfs", "none", place)
    os.mkdir("/run/gluster")
    folder.mkdir()
    _do("glusterd", "-l", str(folder / "glusterd.log"), "-p", str(folder / "glusterd.pid"))
    bricks = [f"{ADDRESS}:{folder}/{name}" for name in ("one", "two")]
    _do("gluster", "--mode=script", "volume", "create", "bench", "replica", "2", *bricks, "force")
    _do("gluster", "--mode=script", "volume", "start", "bench")
    at = folder / "at"
    at.mkdir()
    _do("mount", "-t", "glusterfs", f"{ADDRESS}:/bench", str(at))
    print("ready", flush=True)
    for line in sys.stdin:
        words = line.rstrip("\n").split("\0")
        done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=CHILD_S)
        print(done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
