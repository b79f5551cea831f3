"""An errand: the process that carries an attempt's files in or out (beo/bulk/porter.py), as its warden sees it.

It runs behind the walls like the ranks do, so it ends with them whatever becomes of the warden; and it may take its
time, as the warden goes on serving its agent and its peers meanwhile.
"""

from __future__ import annotations

import json
import os
import signal

from beo.worker.loop import WRITE, Loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MODULE = "beo.bulk.porter"
WORD_SIZE_MAX_BYTES = 1 << 20
READ_BYTES = 64 << 10
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Errand:
    """One task under way. pid: of its process, which its owner reaps; then `over` is to be called."""

    def __init__(
        self,
        loop: Loop,
        python: str,
        home: str,
        kept: int,
        task: dict[str, Any],
        hear: Callable[[dict[str, Any]], None],
    ) -> None:
        """Start it. kept: a descriptor that it gets as number 3. hear: called with each of its words.

        OSError where no process can be started.
        """
        self._loop = loop
        self._hear = hear
        self._heard = b""
        self._unsent = bytearray()
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        env = {"BEO_DIR": home, "PATH": os.defpath, "PYTHONPATH": _ROOT}
        moves = [
            (os.POSIX_SPAWN_DUP2, theirs_in, 0),
            (os.POSIX_SPAWN_DUP2, theirs_out, 1),
            (os.POSIX_SPAWN_DUP2, kept, 3),
        ]
        try:
            self.pid = os.posix_spawn(
                python,
                [python, "-P", "-m", MODULE],
                env,
                file_actions=moves,
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
            )
        except OSError:
            os.close(self._to)
            os.close(self._from)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        for fd in (self._to, self._from):
            os.set_blocking(fd, False)
        loop.watch(self._from, self._ready)
        self.say(task)

    def say(self, word: dict[str, Any]) -> None:
        """Tell it something."""
        self._unsent += json.dumps(word).encode() + b"\n"
        self._pump()

    def over(self) -> None:
        """Its process was reaped: hear its last words, and close."""
        self._ready()
        self._close_to()
        if self._from >= 0:
            self._loop.unwatch(self._from)
            os.close(self._from)
            self._from = -1

    def _pump(self) -> None:
        try:
            while self._unsent and self._to >= 0:
                del self._unsent[: os.write(self._to, self._unsent[:READ_BYTES])]
            if self._to >= 0:
                self._loop.unwatch(self._to)
        except BlockingIOError:
            self._loop.watch(self._to, self._pump, WRITE)
        except OSError:  # it has ended: that is seen as it is reaped
            self._close_to()

    def _close_to(self) -> None:
        if self._to >= 0:
            self._loop.unwatch(self._to)
            os.close(self._to)
            self._to = -1

    def _ready(self) -> None:
        try:
            while self._from >= 0 and (data := os.read(self._from, READ_BYTES)):
                self._heard += data
                if len(self._heard) > WORD_SIZE_MAX_BYTES:
                    self._heard = b""
        except BlockingIOError:
            pass
        else:
            if self._from >= 0:  # its end is closed: nothing more comes
                self._loop.unwatch(self._from)
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            try:
                word = json.loads(line)
            except ValueError:
                continue
            if isinstance(word, dict):
                self._hear(word)
