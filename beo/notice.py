"""What a daemon tells systemd, where systemd has started it: that it is ready, and that it is alive. sd_notify(3).

Nothing happens where NOTIFY_SOCKET names no socket. It is one datagram.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

LOOK_S = 0.2  # between two looks whether all is ready


class Notice:
    """What one process has to tell. What systemd has put into its environment is taken out: no child is meant."""

    def __init__(self) -> None:
        """Read whom to tell, and how often."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        usec, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        is_meant = not pid or pid == str(os.getpid())
        self._every_s = int(usec) / 2e6 if usec.isdecimal() and is_meant else 0.0
        self._is_ready = not self._address
        self._told_s = float("-inf")

    def look(self, is_ready: Callable[[], bool]) -> float:
        """Tell what there is to tell; return after how many seconds to call again at the latest."""
        if not self._address:
            return float("inf")
        if not self._is_ready and is_ready():
            self._is_ready = self.tell("READY=1")
        now_s = time.monotonic()
        if self._every_s and now_s >= self._told_s + self._every_s:
            self.tell("WATCHDOG=1")
            self._told_s = now_s
        due_s = self._told_s + self._every_s - now_s if self._every_s else float("inf")
        return due_s if self._is_ready else min(due_s, LOOK_S)

    def tell(self, state: str) -> bool:
        """Say a state like "STOPPING=1"; return whether somebody was told. Never fails, never waits."""
        address = self._address
        if not address.startswith(("/", "@")):
            return False
        if address[0] == "@":
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as link:
                link.sendto(state.encode(), address)
        except OSError:
            return False
        return True
