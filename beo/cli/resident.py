"""The verb resident: tell of the process that makes verbs quick, or end it."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from beo import front, lockfile, units
from beo.cli.group import Verb, option
from beo.errors import Conflict, NotFound

END_S = 5.0  # it ends at once; longer, and it is stopped, or its machine is


@click.command(
    cls=Verb,
    examples=[
        ("beo resident", "whether there is one, and its memory"),
        ("beo resident --stop", "end it; the next verb starts another"),
        ("BEO_RESIDENT=0 beo queue", "do without it this time"),
    ],
)
@option("--stop", is_flag=True, help="End it. Verbs that are under way are finished first.")
@option("-q", "--quiet", is_flag=True, help="Print its process id and nothing else.")
def resident(stop: bool, quiet: bool) -> None:
    """Tell of the process that has everything loaded and does this user's verbs at once.

    The first verb starts it, in the background. It ends by itself after ten minutes without a verb, and when beo was
    changed or upgraded. With BEO_RESIDENT=0 in the environment no verb uses or starts it, and each takes a little
    longer.
    """
    lock = Path(f"{front.folder()}/{front.name()}.lock")
    process = lockfile.holding(lock)
    if process is None:
        raise NotFound("no resident process", "nothing was done lately", "the next verb starts one")
    if stop:
        process.send(signal.SIGTERM)
        released = any(lockfile.holder(lock) != process.pid or process.wait(0.05) for _ in range(int(END_S / 0.05)))
        if not released:
            raise Conflict(f"process {process.pid} doesn't end", f"asked {END_S:g} s ago", f"kill -9 {process.pid}")
    if quiet:
        print(process.pid)
    elif stop:
        print(f"process {process.pid} takes no more verbs")
    else:
        family = [process.pid, *_children(process.pid)]
        memory = units.approximate_size(sum(map(_memory_bytes, family)))
        print(f"process {process.pid}, {len(family) - 1} more that wait or work, {memory} in all")


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _memory_bytes(pid: int) -> int:
    """Return a process's memory, what it shares divided among those who share it; 0 where it has just ended."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except OSError:
        return 0
