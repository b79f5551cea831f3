"""When a head last was alive: for how long nobody acted is told by the difference."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

TOUCH_S = 1.0


class Alive:
    """An empty file whose time of change is moved on once a second. Not synced: a power cut makes it a little older."""

    def __init__(self, path: Path) -> None:
        """Look how long ago it was changed, and make it where it is missing."""
        self._path = path
        self._touched_s = 0.0
        try:
            self.silent_s = max(0.0, time.time() - path.stat().st_mtime)
        except OSError:
            self.silent_s = 0.0
            with suppress(OSError):
                path.touch(0o600)

    def touch(self) -> None:
        """Say that the head is alive, if that is due."""
        now_s = time.monotonic()
        if now_s - self._touched_s >= TOUCH_S:
            self._touched_s = now_s
            with suppress(OSError):  # a full disk takes it all the same; a broken one says so elsewhere
                os.utime(self._path)
