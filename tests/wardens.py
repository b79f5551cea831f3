"""A toy agent for tests: starts real wardens, gives them orders, hears them out, and leaves nothing behind."""

from __future__ import annotations

import base64
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from beo.worker import contain
from beo.worker.process import Link, attach, spawn_warden
from beo.worker.spool import records

PATIENCE_S = 5.0
"""After which a condition that should have come true counts as a failure."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Poll until `condition()` is true, and return its value."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.002)
    return value


def alive(pids: Iterable[int]) -> list[int]:
    """Those of `pids` that live (a zombie doesn't)."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found.append(pid)
    return found


class Agent:
    """One agent with one warden. Every message is kept in `heard`; `wait` returns the next that fits."""

    def __init__(self, folder: Path, kind: str = "pidns", node: str = "node01") -> None:
        self.folder = folder
        self.node = node
        self.heard: list[dict[str, Any]] = []
        self._at = 0
        self.link: Link = spawn_warden(str(folder), sys.executable, kind)
        self.keeper = self.link.pid or 0
        self.hello = self.wait("hello")
        self.wait("state")

    def wait(self, op: str, **words: Any) -> dict[str, Any]:
        """The next message with this op and these words."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            while self._at < len(self.heard):
                message = self.heard[self._at]
                self._at += 1
                if message["op"] == op and all(message.get(key) == value for key, value in words.items()):
                    return message
            assert time.monotonic() < deadline, f"no {op}, only {self.heard[-3:]}; {self.log()}"
            assert not self.link.closed, f"the warden has gone: {self.log()}"
            self.poll(0.1)

    def poll(self, timeout_s: float = 0.0) -> list[dict[str, Any]]:
        """Hear what there is to hear now."""
        select.select([self.link.fileno()], [self.link.fileno()] if self.link.wants_write else [], [], timeout_s)
        self.link.flush()
        messages = self.link.receive()
        self.heard += messages
        return messages

    def start(self, argv: list[str], job: int = 1, **words: Any) -> None:
        """Order one attempt; as a job of one rank unless `words` say otherwise."""
        message = {
            "op": "start",
            "job": job,
            "attempt": 1,
            "node": self.node,
            "nodes": [self.node],
            "argv": argv,
            "cwd": "/",
            "env": {"PATH": os.environ["PATH"]},
            "ranks": [0],
            "size": 1,
            "env_of": {},
            "stdin": False,
            "pmi": None,
            "time_limit_s": None,
            "grace_s": 0.2,
            "mem_bytes": None,
            "cgroup": None,
            "tmp": None,
            "uid": None,
            "gid": None,
            "groups": None,
            "leash_until_ns": None,
        }
        self.link.send({**message, **words})

    def say(self, op: str, **words: Any) -> None:
        """Send any other message."""
        self.link.send({"op": op, **words})

    def feed(self, offset: int, data: bytes, eof: bool = False) -> None:
        """Send input for rank 0."""
        self.say("stdin", offset=offset, data=base64.b64encode(data).decode(), eof=eof)

    def run(self, argv: list[str], job: int = 1, **words: Any) -> dict[str, Any]:
        """Order one attempt, see it end, and return its result."""
        self.start(argv, job, **words)
        result: dict[str, Any] = self.wait("ended", job=job)["result"]
        return result

    def pids(self) -> dict[str, int]:
        """Rank -> number of its process outside, of those that run now."""
        self.say("state")
        pids: dict[str, int] = self.wait("state")["pids"]
        return pids

    def commit(self, job: int = 1) -> None:
        """Tell the warden that the result is safe."""
        self.say("committed", job=job, attempt=1)

    def output(self, job: int = 1, fd: int = 1, rank: int | None = None) -> bytes:
        """What the ranks have printed so far."""
        try:
            spool = (self.folder / f"{job}.1.spool").read_bytes()
        except FileNotFoundError:
            return b""
        return b"".join(data for who, kind, data in records(spool) if kind == fd and rank in (None, who))

    def reattach(self) -> None:
        """Be another agent: hang up, and find the warden again."""
        self.link.close()
        link = wait_for(lambda: attach(str(self.folder)), "the warden to answer")
        self.link, self._at = link, len(self.heard)

    def processes(self) -> list[int]:
        """Keeper, PID 1 and everything behind the walls, as numbered outside."""
        return [self.keeper, *contain.descendants(self.keeper)]

    def log(self) -> str:
        """What the warden has complained about."""
        return (self.folder / "warden.log").read_text()

    def close(self) -> None:
        """End the warden, by force if need be, and see that nothing of it is left."""
        everything = self.processes() if alive([self.keeper]) else []
        if not self.link.closed:
            self.say("exit")
        if everything and not _gone_soon(self.keeper):
            for pid in everything:
                os.kill(pid, signal.SIGKILL)
        self.link.close()
        try:
            os.waitpid(self.keeper, 0)
        except ChildProcessError:
            pass
        wait_for(lambda: not alive(everything), f"{everything} to be gone")
        assert "Traceback" not in self.log(), self.log()


def _gone_soon(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while alive([pid]) and time.monotonic() < deadline:
        time.sleep(0.002)
    return not alive([pid])
