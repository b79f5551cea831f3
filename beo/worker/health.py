"""How this node's machine is, looked at now and then by a thread of its own: a disk that hangs delays no heartbeat."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from beo.messages import Finding, Health

LOOK_S = 60.0  # between two looks at the machine
TELL_S = 5.0  # between two reports: the head forgets them with each of its lives
FINDINGS_MAX = 32  # that the head takes

log = logging.getLogger("beo.health")


class Checkup:
    """The thread, and what it last found."""

    def __init__(self, look: Callable[[], list[Finding]]) -> None:
        """Take what looks at the machine; it may block."""
        self._look = look
        self._findings: tuple[Finding, ...] = ()
        self._told_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beo-checkup", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Let it end; it isn't waited for, since it may hang where the machine does."""
        self._stop.set()

    def report(self, node: str, incarnation: str) -> Health | None:
        """Return what is to be told to the head now, if it is time to."""
        now_s = time.monotonic()
        if now_s < self._told_s + TELL_S:
            return None
        self._told_s = now_s
        return Health(node, incarnation, time.time(), self._findings)

    def _run(self) -> None:
        while True:
            try:
                self._findings = tuple(self._look()[:FINDINGS_MAX])
            except Exception:  # a look that fails is no reason for an agent to end
                log.exception("the machine can't be looked at")
            if self._stop.wait(LOOK_S):
                return
