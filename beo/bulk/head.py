"""Serves the chunks in a head's tree: ``python -m beo.bulk.head FD``, started by the tree's process.

FD is a socket that listens. Which file a chunk is, and that it is whole, says the ticket, which the tree's process has
made: so nothing has to be known here but the heads' key. A process of its own, since a thread of the tree's would take
turns with it (decision 25 has what that costs).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path

from beo import daemon
from beo.bulk import tickets
from beo.bulk.serving import Serving
from beo.bulk.tickets import Request
from beo.bulk.words import HEAD
from beo.child import end_with_parent
from beo.config import Home, home
from beo.tree.store import object_path


class Head:
    """The process."""

    def __init__(self, where: Home, listener: socket.socket) -> None:
        """Serve what is in this folder."""
        key = tickets.server_key(tickets.master_key(where.secret("head")), HEAD)
        self._objects = where.head / "tree" / "objects"
        self._serving = Serving(listener, self._look, lambda: (key,), time.time)
        self._stopped = threading.Event()

    def _look(self, request: Request) -> int | None:
        return open_object(self._objects, request.ino)

    def run(self) -> None:
        """Serve until stopped."""
        self._serving.start()
        self._stopped.wait()

    def stop(self, *_: object) -> None:
        """Let `run` return; also a signal handler."""
        self._stopped.set()

    def close(self) -> None:
        """End what is under way."""
        self._serving.close()


def open_object(objects: Path, ino: int) -> int | None:
    """Return a descriptor of an inode's bytes; None where there are none."""
    try:
        return os.open(object_path(objects, ino), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM, or until the tree's process ends; 0 for a clean end."""
    if not end_with_parent():
        return 1
    return daemon.main("bulk", lambda: Head(home(), socket.socket(fileno=int(arguments[0]))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
