"""What the daemons share: a log, two signals that end them, and an exit code that tells the supervisor how it went."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from beo.errors import BeoError, Internal
from beo.log import setup

READY = "BEO_READY"  # in a daemon's environment: the file that it makes when it serves


class Daemon(Protocol):
    """A loop that runs until it is stopped."""

    def run(self) -> None:
        """Serve until `stop`."""

    def stop(self, number: int, frame: object = None) -> None:
        """Let `run` return; takes what a signal handler is given."""

    def close(self) -> None:
        """Release everything, after a clean end only: after any other, the process's end does."""


def main(name: str, make: Callable[[], Daemon]) -> int:
    """Make a daemon and run it until SIGTERM or SIGINT; return its exit code, 0 for a clean end."""
    mark = os.environ.pop(READY, "")  # it is ours, and no child's
    setup(name)
    log = logging.getLogger(f"beo.{name}")
    try:
        daemon = make()
        signal.signal(signal.SIGTERM, daemon.stop)
        signal.signal(signal.SIGINT, daemon.stop)
        if mark:
            with suppress(OSError):  # whoever waits for it goes on to wait
                Path(mark).touch(0o600)
        daemon.run()
    except BeoError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("the %s ends", name)
        return Internal.exit_code
    daemon.close()
    log.info("ended")
    return 0
