"""Writes down where the heads are, in a thread of its own: the control loop never waits for a disk."""

from __future__ import annotations

import logging
import queue
import threading

from beo import birth
from beo.config import Home, Place
from beo.errors import BeoError

log = logging.getLogger("beo.head")


class Clerk:
    """The thread."""

    def __init__(self, home: Home) -> None:
        """Start it."""
        self._home = home
        self._places: queue.SimpleQueue[dict[str, Place] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="clerk", daemon=True)
        self._thread.start()

    def put(self, places: dict[str, Place]) -> None:
        """Write this down, soon."""
        self._places.put(places)

    def _run(self) -> None:
        while (places := self._places.get()) is not None:
            try:
                birth.note_heads(self._home, places)
            except (OSError, BeoError) as error:  # a full disk: the next start tries again
                log.error("can't write down where the heads are: %s", error)

    def close(self) -> None:
        """Write what is left and end it."""
        self._places.put(None)
        self._thread.join()
