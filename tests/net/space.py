"""A process that waits in namespaces of its own: what hosts and switches are made of, gone when it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.cluster import PATIENCE_S, is_alive, wait_for

INSTALL = {"ip": "iproute2", "nft": "nftables", "unshare": "util-linux", "nsenter": "util-linux"}  # program -> package

# PID 1 of a space: nobody need reap its children, and it ends with whoever holds the other end of its stdin.
_WAIT = "trap '' CHLD; echo ready; exec cat"


def missing() -> str:
    """What is missing here to make hosts, in one line with the cure; "" where nothing is."""
    absent = [program for program in INSTALL if not shutil.which(program)]
    packages = " ".join(dict.fromkeys(INSTALL[program] for program in absent))
    return f"no {' and no '.join(absent)} here: apt-get install -y {packages}" if absent else ""


def do(words: list[str], text: str = "") -> None:
    """Run a command that has to succeed, with a text as its stdin."""
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{' '.join(words)}: {text}{done.stderr}"


class Space:
    """A process that waits in namespaces of its own."""

    def __init__(self, kinds: tuple[str, ...], script: str, env: dict[str, str], above: Space | None = None) -> None:
        """Make them, furnished by a shell script. above: whose mounts they start with, instead of this machine's."""
        words = ["unshare", *(f"--{kind}" for kind in kinds), "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._outer = subprocess.Popen(
            [*(above.enter("mount") if above else ()), *words, "sh", "-c", script + _WAIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            text=True,
        )
        assert self._outer.stdout and self._outer.stderr
        line = self._outer.stdout.readline()
        assert line == "ready\n", f"no namespaces: {line}{self._outer.stderr.read()}"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self.pid = int(children[0])
        self.own = {self._outer.pid, self.pid}

    def enter(self, *kinds: str) -> list[str]:
        """The words in front of a command that is to run in there."""
        return ["nsenter", "--target", str(self.pid), *(f"--{kind}" for kind in kinds)]

    def kill(self) -> None:
        """SIGKILL to its first process, and so to all of them at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, and return when nothing of it is left."""
        self.kill()
        for stream in (self._outer.stdin, self._outer.stdout, self._outer.stderr):
            if stream:
                stream.close()
        self._outer.wait()
        wait_for(lambda: not is_alive(self.pid), "the end of a host")
