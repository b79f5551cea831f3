"""Makes one snapshot beside a head that goes on: ``python -m beo.headnode.compactor FOLDER UPTO``, started by the head.

It reads the head's journal (FOLDER) up to entry UPTO as the head itself would at its start, and writes the state as the
file of a snapshot (beo/snapshots.py). So the head never encodes its whole state between two requests, and the memory
that it takes is gone when it ends. It changes nothing else: whether the file counts is for the head to say.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from beo import snapshots
from beo.entries import Entry, Snapshot
from beo.errors import BeoError, Conflict, Internal
from beo.headnode.replay import replay
from beo.log import setup
from beo.reader import Reader

NICENESS = 10  # the head and what it serves come first
_PR_SET_PDEATHSIG = 1

log = logging.getLogger("beo.compactor")


def compact(folder: Path, upto: int) -> None:
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


def main(arguments: list[str]) -> int:
    """Do that, as a process that ends with the head; 0 if the file is there."""
    head = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != head:
        return Internal.exit_code
    setup("compactor")
    os.nice(NICENESS)
    gc.disable()  # everything that is made here stays until the end
    try:
        folder, upto = Path(arguments[0]), int(arguments[1])
        compact(folder, upto)
    except BeoError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception:
        log.exception("no snapshot was made")
        return Internal.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
