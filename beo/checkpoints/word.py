"""What a running program is told from outside: by the agent of its node, and by signals."""

from __future__ import annotations

import json
import mmap
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, ClassVar

from beo.word import SIZE_BYTES

GO_ON, SCRUB, TAKE_ONE, HALT = range(4)  # the greatest of what any rank wishes is done

Handler = Callable[[int, FrameType | None], Any] | int | None


@dataclass(frozen=True, slots=True)
class Told:
    """do: SCRUB, TAKE_ONE or HALT. why: in a word. leaving: nodes whose memory goes away. when_ns: when it was said."""

    do: int
    why: str
    leaving: tuple[str, ...] = ()
    when_ns: int = 0


class Word:
    """The agent's word: a file in shared memory, of which one byte is looked at until it isn't zero."""

    def __init__(self, path: str | None) -> None:
        """Map the file, if there is any."""
        self._path = path or ""
        self._map: mmap.mmap | None = None
        self._done: Told | None = None
        if not path:
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # then there is no agent
        try:
            self._map = mmap.mmap(fd, SIZE_BYTES, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            pass
        finally:
            os.close(fd)

    def look(self) -> Told | None:
        """Return what is said, if it isn't done yet; the same words written anew are said anew."""
        if self._map is None or not self._map[0]:
            return None
        try:
            when_ns, text = os.stat(self._path).st_mtime_ns, self._map[:].rstrip(b"\0")
            said = json.loads(text)
            do = {"scrub": SCRUB, "checkpoint": TAKE_ONE, "halt": HALT}[said["do"]]
            told = Told(do, str(said.get("why", "")), tuple(map(str, said.get("leaving", ()))), when_ns)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # it is just being written, or of a later version
        return None if told == self._done else told

    def done(self, told: Told | None) -> None:
        """Take this for done."""
        self._done = told or self._done

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
            self._map = None


class Signals:
    """Counts SIGUSR1 and SIGTERM, and does nothing else when they come: what they ask for is done at a safe point.

    What is done is told by the counts that it was done for, so a signal that comes while the ranks agree isn't lost.
    Who had a handler before is called as well.
    """

    ASKS: ClassVar = {signal.SIGUSR1: TAKE_ONE, signal.SIGTERM: HALT}

    def __init__(self) -> None:
        """Handle them from now on; in a thread that isn't the main one Python can't, and nothing is handled."""
        self._counts = dict.fromkeys(self.ASKS, 0)
        self._done = dict(self._counts)
        self._before: dict[int, Handler] = {}
        if threading.current_thread() is threading.main_thread():
            for number in self.ASKS:
                self._before[number] = signal.getsignal(number)  # known before the first can come
                signal.signal(number, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        self._counts[signal.Signals(number)] += 1
        before = self._before.get(number)
        if callable(before):
            before(number, frame)

    def counts(self) -> dict[signal.Signals, int]:
        """Return how many have come by now."""
        return dict(self._counts)

    def wish(self, counts: dict[signal.Signals, int]) -> int:
        """Return what those of these ask for that aren't done: GO_ON, TAKE_ONE or HALT."""
        return max([do for number, do in self.ASKS.items() if counts[number] > self._done[number]], default=GO_ON)

    def done(self, counts: dict[signal.Signals, int]) -> None:
        """Take so many for done; those that came since then aren't."""
        self._done = counts

    def close(self) -> None:
        """Give the signals back to whoever had them, unless somebody else has taken them meanwhile."""
        for number, before in self._before.items():
            if signal.getsignal(number) == self._came:
                signal.signal(number, before if before is not None else signal.SIG_DFL)
        self._before.clear()
