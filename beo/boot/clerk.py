"""A thread that asks the heads while the loop goes on, and a queue with a limit before it.

A loop that serves packets must never wait for a head, which may be in the middle of a take-over.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from beo.errors import BeoError, Conflict

WAITING_MAX = 512  # more machines than that ask again by themselves
END_S = 5.0  # for the question that is being asked

log = logging.getLogger("beo.boot")

Work = Callable[[], Any]
Then = Callable[[Any], object]


class Clerk:
    """Does one thing after the other; what comes of it is handed over in the loop's own thread, by `hear`."""

    def __init__(self, name: str) -> None:
        """Start the thread."""
        self._work: queue.Queue[tuple[Work, Then] | None] = queue.Queue()
        self._done: queue.SimpleQueue[tuple[Then, Any]] = queue.SimpleQueue()
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return the descriptor to poll for reading."""
        return self._reader

    def ask(self, work: Work, then: Then) -> None:
        """Have this done; then is called with its result, or the BeoError that it raised."""
        if self._work.qsize() >= WAITING_MAX:
            then(Conflict("too many machines ask at once", f"{WAITING_MAX} wait already", "ask again"))
            return
        self._work.put((work, then))

    def hear(self, _: int = 0) -> None:
        """Hand over what is done."""
        try:
            os.read(self._reader, 4096)
        except BlockingIOError:
            pass
        while not self._done.empty():
            then, result = self._done.get_nowait()
            then(result)

    def close(self) -> None:
        """Let the thread end."""
        self._work.put(None)
        self._thread.join(END_S)
        if not self._thread.is_alive():
            os.close(self._reader)
            os.close(self._writer)

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            work, then = item
            result: Any
            try:
                result = work()
            except BeoError as error:
                result = error
            except Exception as error:  # whatever it is, one machine's question must not end all others'
                log.exception("a question to the head failed")
                result = Conflict("the server of boots has a fault", type(error).__name__, "see its log")
            self._done.put((then, result))
            try:
                os.write(self._writer, b"\0")
            except BlockingIOError:  # it is full: the loop will wake anyway
                pass
