"""Two hosts for a program to move between: each with a root, mounts, processes and a network of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cluster import ROOT, wait_for
from tests.net.space import Space

HOLDER = ROOT / "beo" / "worker" / "holder.py"
# Another root: a file system in memory, with the folders of the real one hung into it. Own /tmp: only the folder of the
# test is the same on both, as a shared file system's is.
_FURNISH = """
set -e
mount --make-rprivate /
mkdir -p "$NEW"
mount -t tmpfs -o size=64M tmpfs "$NEW"
cd "$NEW"
for each in /*; do
  case $each in /proc|/tmp) mkdir ".$each";; *)
    if [ -L "$each" ]; then cp -P "$each" ".$each"
    elif [ -d "$each" ]; then mkdir ".$each"; mount --rbind "$each" ".$each"; fi;;
  esac
done
chmod 1777 tmp
mkdir -p ".$FOLDER" ".$CHECKOUT" old
mount --rbind "$CHECKOUT" ".$CHECKOUT"
mount --rbind "$FOLDER" ".$FOLDER"
mount -t proc proc proc
pivot_root . old
cd /
umount -l old
umount -l /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
hostname "$NAME"
ip link set lo up
"""


class Sandbox:
    """One host. folder: what it shares with the others."""

    def __init__(self, name: str, folder: Path) -> None:
        """Switch it on."""
        words = {"NAME": name, "FOLDER": str(folder), "CHECKOUT": str(ROOT), "NEW": str(folder / f"{name}.root")}
        self._space = Space(("net", "mount", "uts", "ipc"), _FURNISH, words)
        self.pid = self._space.pid

    def enter(self) -> list[str]:
        """The words in front of a command that is to run in it."""
        return self._space.enter("net", "mount", "uts", "ipc", "pid")

    def hold(self, images: Path, argv: list[str], stdin: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """Start a program's holder in it, or that of what goes on from the images; with pipes, as a rank's."""
        pipe = subprocess.PIPE
        words = [*self.enter(), sys.executable, "-I", str(HOLDER), str(images), "--", *argv]
        return subprocess.Popen(words, stdin=stdin, stdout=pipe, stderr=pipe)

    def crash(self) -> None:
        """`kill -9` of everything in it."""
        self._space.end()


def holder_of(started: subprocess.Popen[bytes]) -> int:
    """The number of the holder, once its program runs; what was started is nsenter, which waits for it."""

    def found() -> int:
        for child in _children(started.pid):
            if _children(child) and b"holder.py" not in _cmdline(_children(child)[0]):
                return child
        assert started.poll() is None, "the holder has ended"
        return 0

    pid: int = wait_for(found, "a program to be held")
    return pid


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"holder.py"
