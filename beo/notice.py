"""What a daemon tells systemd, where systemd has started it: that it is ready, and that it is alive. sd_notify(3).

Nothing happens where NOTIFY_SOCKET names no socket. It is one datagram.
"""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Say a state like "READY=1" or "WATCHDOG=1"; return whether somebody was told. Never fails, never waits."""
    address = os.environ.get("NOTIFY_SOCKET", "")
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


def watchdog_s() -> float:
    """How often to say "WATCHDOG=1": half of what systemd waits; 0 where it doesn't wait for this process."""
    try:
        if int(os.environ.get("WATCHDOG_PID") or os.getpid()) != os.getpid():
            return 0.0
        return max(0, int(os.environ.get("WATCHDOG_USEC") or 0)) / 2e6
    except ValueError:
        return 0.0
