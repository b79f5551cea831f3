"""What a waiting verb shows: one line on a terminal that renews itself, and in the end the exit code of the jobs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence

from beo import messages as m
from beo.cli.tables import span
from beo.client import ENDED
from beo.contact import tell
from beo.errors import EXIT_OK
from beo.table import escape

VERDICTS = {"cancelled": "was cancelled", "lost": "is lost"}
SIGNALLED = 128  # codes above it tell of a signal
CLEAR_LINE = "\r\x1b[K"


class StatusLine:
    """A line on standard error that renews itself and leaves no trace; nothing at all where that is no terminal."""

    def __init__(self, wanted: bool = True) -> None:
        """Show the line only where `wanted`."""
        self._wanted = wanted and sys.stderr.isatty()
        self._shown = ""

    def show(self, text: str) -> None:
        """Put `text` in the place of what is there; the empty text takes the line away."""
        if self._wanted and text != self._shown:
            sys.stderr.write(CLEAR_LINE + text)
            sys.stderr.flush()
            self._shown = text


class Progress:
    """The progress of several jobs as a status line, for the length of a `with` block."""

    def __init__(self, quiet: bool) -> None:
        """Show nothing where `quiet`."""
        self._line = StatusLine(not quiet)
        self._began_s = time.monotonic()

    def __enter__(self) -> Progress:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        self._line.show("")

    def on_progress(self, views: Sequence[m.JobView]) -> None:
        """Show where these jobs stand."""
        counts = Counter("ended" if view.state in ENDED else view.state for view in views)
        ended = counts.pop("ended", 0)
        rest = "".join(f", {count} {state}" for state, count in sorted(counts.items(), reverse=True))
        took = span(time.monotonic() - self._began_s)
        self._line.show(f"{ended} of {len(views)} job{'s' * (len(views) != 1)} ended{rest} ({took})")


def exit_code_of(views: Sequence[m.JobView], quiet: bool = False) -> int:
    """Return the first exit code by id that isn't 0, and tell of the jobs that didn't exit by themselves."""
    bad = [view for view in sorted(views, key=lambda view: view.id) if view.exit_code != EXIT_OK]
    for view in bad:
        if not quiet and (view.code_by == "beo" or view.exit_code > SIGNALLED):
            tell(f"job {view.id} {VERDICTS.get(view.state, view.state)}{_because(view.reason)}")
    return bad[0].exit_code if bad else EXIT_OK


def _because(reason: str) -> str:
    return f" ({escape(reason)})" if reason else ""
