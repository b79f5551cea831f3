"""The copies of a node's vault that go to the heads: when which job's is made, one at a time, by a process of its own.

A copy is made now and then of what changes, and at once where a job halts that leaves none of its nodes behind. It is
for the loss of more nodes than parity makes up for, and for what a single node keeps.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec

from beo.child import PARENT
from beo.errors import reason

MODULE = "beo.bulk.keeper"
AGAIN_S = 1.0  # before another try of one that must be made
ANSWER_MAX_BYTES = 64 << 10
LAST_MAX = 1_000  # jobs whose last copy is remembered: of another all is read again, and no more is sent for that

log = logging.getLogger("beo.agent")


class Copying(msgspec.Struct, frozen=True):
    """What to copy: the folder, whose it is, and how many bytes a second at most (0: no limit).

    as_root: only root can read it; the copy is the job's owner's all the same. last: the bundle of this node's copy
    before, if it is known.
    """

    folder: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    bytes_s: int
    as_root: bool = False
    last: str = ""


class Copied(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it: the name of the bundle and its size, or why there is none. checkpoints: see ms.VaultCopied."""

    bundle: str = ""
    size_bytes: int = 0
    failed: str = ""
    checkpoints: tuple[tuple[str, int, int], ...] = ()


class Wish(NamedTuple):
    """A copy that is to be made. bytes_s: how fast at most, 0: no limit. must: it is tried until it is made."""

    job: int
    attempt: int
    folder: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    bytes_s: int = 0
    must: bool = False
    as_root: bool = False


class Copies:
    """The copies of one node, for its agent's loop."""

    def __init__(self, beo_dir: str, tell: Callable[[Wish, Copied], None]) -> None:
        """tell: called with what came of each wish."""
        self._beo_dir = beo_dir
        self._tell = tell
        self._wishes: list[Wish] = []
        self._now: tuple[Wish, subprocess.Popen[bytes]] | None = None
        self._later: dict[tuple[int, int], float] = {}
        self._last: dict[int, str] = {}  # of a job, the bundle of its last copy

    def want(self, wish: Wish) -> None:
        """Have a copy made, before others if it must be."""
        if self._is_wanted(wish):
            return
        if wish.must:
            self._wishes = [other for other in self._wishes if other.job != wish.job]
            if self._now and not self._now[0].must:  # the one under way is of no more use, or can wait
                self._now[1].kill()
            self._wishes.insert(0, wish)
        else:
            self._wishes.append(wish)

    def _is_wanted(self, wish: Wish) -> bool:
        known = [*self._wishes, *([self._now[0]] if self._now else [])]
        return any(other[:2] == wish[:2] and other.must >= wish.must for other in known)

    def cancel(self, job: int) -> None:
        """A job is to halt: let go of what it has to overwrite. One that must be made comes at its end."""
        self._wishes = [wish for wish in self._wishes if wish.job != job or wish.must]
        if self._now and self._now[0].job == job and not self._now[0].must:
            self._now[1].kill()

    def forget(self, job: int, attempt: int) -> None:
        """Nobody wants that copy any more."""
        self._last.pop(job, None)
        self._wishes = [wish for wish in self._wishes if (wish.job, wish.attempt) != (job, attempt)]

    def tick(self, now_s: float) -> None:
        """See how it goes."""
        if self._now:
            wish, process = self._now
            if process.poll() is None:
                return
            self._now = None
            self._done(wish, _answer(process), now_s)
        ready = next((wish for wish in self._wishes if self._later.get(wish[:2], 0.0) <= now_s), None)
        if ready:
            self._wishes.remove(ready)
            self._later.pop(ready[:2], None)
            self._begin(ready, now_s)

    def _done(self, wish: Wish, told: Copied, now_s: float) -> None:
        """Say what came of it; one that must be made is tried again."""
        if told.failed:
            log.warning("job %d: no copy of its checkpoint is at the head: %s", wish.job, told.failed)
        if told.bundle:
            self._last.pop(wish.job, None)  # the newest is the last to be forgotten
            self._last[wish.job] = told.bundle
            if len(self._last) > LAST_MAX:
                del self._last[next(iter(self._last))]
        if told.failed and wish.must:
            self._later[wish[:2]] = now_s + AGAIN_S
            self._wishes.append(wish)
        else:
            self._tell(wish, told)

    def _begin(self, wish: Wish, now_s: float) -> None:
        last = self._last.get(wish.job, "")
        task = Copying(wish.folder, wish.uid, wish.gid, wish.groups, wish.bytes_s, wish.as_root, last)
        env = {**os.environ, "BEO_DIR": self._beo_dir, PARENT: str(os.getpid())}
        try:
            process = subprocess.Popen(
                (sys.executable, "-P", "-m", MODULE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
            )
        except OSError as error:  # no memory or no process is left
            self._done(wish, Copied(failed=reason(error)), now_s)
            return
        self._now = wish, process
        assert process.stdin
        with suppress(BrokenPipeError), process.stdin as told:  # it has ended: that is seen as it is reaped
            told.write(msgspec.json.encode(task) + b"\n")

    def close(self) -> None:
        """End the one under way."""
        if self._now:
            self._now[1].send_signal(signal.SIGKILL)
            self._now[1].wait()
            if self._now[1].stdout:
                self._now[1].stdout.close()


def _answer(process: subprocess.Popen[bytes]) -> Copied:
    """What a process that has ended has said."""
    assert process.stdout
    with process.stdout as out:
        line = out.read(ANSWER_MAX_BYTES)
    try:
        return msgspec.json.decode(line, type=Copied)
    except msgspec.MsgspecError:
        return Copied(failed=f"its process ended with {process.returncode}")
