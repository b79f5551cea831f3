"""Makes one snapshot beside a daemon that goes on and started it: the body of ``python -m MODULE FOLDER UPTO``.

It reads the journal in FOLDER up to entry UPTO as the daemon itself would at its start, and writes the state as the
file of a snapshot (beo/snapshots.py). So the daemon never encodes its whole state between two requests, and the memory
that it takes is gone when it ends. It changes nothing else: whether the file counts is for the daemon to say.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from beo import snapshots
from beo.entries import Entry, Snapshot
from beo.errors import BeoError, Conflict, Internal
from beo.log import setup
from beo.reader import Reader

NICENESS = 10  # the daemon and what it serves come first
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("beo.compactor")


class State(Protocol):
    """What a journal comes to."""

    index: int

    def encode(self) -> bytes:
        """Return it as a snapshot."""


Replay = Callable[[Snapshot | None, Iterable[Entry]], State]


def compact(folder: Path, upto: int, replay: Replay) -> None:
    """Write the snapshot after entry `upto` of the journal in `folder`; raises BeoError or OSError, nothing is left."""
    last: Entry | None = None

    def passing(entries: Iterator[Entry]) -> Iterator[Entry]:
        nonlocal last  # as it was read: asked for again, it might be another one by now
        for entry in entries:
            last = entry
            yield entry

    reader = Reader(folder)
    try:
        reader.check_format()
        snapshot, entries = reader.load(upto)
        state = replay(snapshot, passing(entries))
    finally:
        reader.close()
    if not last or last.index != upto:
        raise Conflict(f"the journal ends at entry {state.index}", f"entry {upto} is gone", "take another snapshot")
    snapshots.write(folder, Snapshot(last.index, last.epoch, last.hash, state.encode()))


def main(arguments: list[str], replay: Replay) -> int:
    """Do that, as a process that ends with the daemon; 0 if the file is there."""
    daemon = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != daemon:
        return Internal.exit_code
    setup("compactor")
    os.nice(NICENESS)
    gc.disable()  # everything that is made here stays until the end
    try:
        folder, upto = Path(arguments[0]), int(arguments[1])
        compact(folder, upto, replay)
    except BeoError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("no snapshot was made")
        return Internal.exit_code
    return 0
