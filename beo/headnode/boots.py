"""The process beside a head that machines boot from (beo/boot/serve.py), as the head sees it.

It is there while this head is the primary and its switch is on, so it moves with the primary, and two never give
addresses on one network. Ended or killed, it is started anew; it keeps nothing that could be lost.
"""

from __future__ import annotations

import logging
import os
import time

from beo.boot import switch
from beo.boot.switch import Status, Switch
from beo.child import Child
from beo.config import Home
from beo.errors import BeoError

ARGV = ("-P", "-m", "beo.boot.serve")
LOOK_S = 0.5  # between two looks at the switch
SILENT_S = 5.0  # a start takes half a second, a server that can't begin is started every 5 s

log = logging.getLogger("beo.head")


class Boots:
    """That process. For the control loop alone."""

    def __init__(self, home: Home) -> None:
        """Nothing is started yet."""
        self._home = home
        self._child = Child("the server of boots", home, ARGV, log)
        self._look_s = 0.0
        self._switch = Switch()
        self._status: Status | None = None
        self._why = ""
        self._since_s = 0.0  # when it was wanted
        self._stamp: tuple[int, int] | None = None

    def tick(self, leads: bool, now_s: float) -> None:
        """Keep it running where it is to run, and nowhere else."""
        if now_s >= self._look_s:
            self._look_s = now_s + LOOK_S
            self._look()
            self._status = switch.ask(self._home) if self._since_s else None
        if leads and self._switch.is_on:
            self._since_s = self._since_s or now_s
            self._child.keep(now_s)
        elif self._since_s:
            self._since_s = 0.0
            self._child.drop()

    @property
    def troubles(self) -> tuple[str, ...]:
        """What a person should know."""
        if self._why:
            return (self._why,)
        if not self._since_s:
            return ()
        status, boot_s = self._status, time.clock_gettime(time.CLOCK_BOOTTIME)
        if status and boot_s - status.said_s < SILENT_S:
            return status.troubles
        is_late = time.monotonic() - self._since_s > SILENT_S
        return ("no machine can boot from here: its server doesn't live, see the head's log",) if is_late else ()

    def close(self) -> None:
        """End the process, and wait for that."""
        self._child.close()

    def _look(self) -> None:
        """Take the switch as it is now; what was changed needs a new process."""
        try:
            found = os.stat(switch.switch_path(self._home))
            stamp = (found.st_ino, found.st_mtime_ns)
        except OSError:
            stamp = (0, 0)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        old, self._why = self._switch, ""
        try:
            self._switch = switch.read(self._home)
        except BeoError as error:
            self._switch, self._why = Switch(), str(error)
        if old != self._switch and self._since_s:
            self._since_s = 0.0
            self._child.drop()
