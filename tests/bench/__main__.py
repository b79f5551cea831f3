"""`make bench`: what the documents claim, measured in one run beside the bare thing.

    python -m tests.bench [--write] [NAME ...]

Each measurement takes beo and its bare counterpart in turn, several times, and gives medians and spreads. Nothing here
fails for being slow: a number is to be looked at, on a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import (
    bulk,
    checkpoint,
    control,
    criu,
    files,
    flush,
    inside,
    live,
    restart,
    stage,
    table,
    takeover,
    terminal,
)

PAGE = stage.ROOT / "docs" / "performance.md"

MEASUREMENTS: dict[str, Callable[[Path], Iterator[table.Row]]] = {
    "submissions": control.submissions,
    "jobs": control.jobs,
    "owners": control.owners,
    "launch": terminal.launch,
    "wide": inside.wide,
    "steps": inside.steps,
    "messages": terminal.messages,
    "verbs": terminal.verbs,
    "recovery": control.recovery,
    "output": terminal.output,
    "steady": live.steady,
    "echo": live.echo,
    "memory": control.memory,
    "duplex": takeover.duplex,
    "takeover": takeover.takeover,
    "long": takeover.takeover_long,
    "files": files.files,
    "bulk": bulk.bulk,
    "checkpoint": checkpoint.checkpoint,
    "flush": flush.flush,
    "criu": criu.criu,
    "restart": restart.restart,
}


def main() -> int:
    """Measure what is named, or everything; print the rows as they come."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)} (default: all)")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(stage.ROOT)}")
    chosen = parser.parse_args()
    for name in chosen.names:
        if name not in MEASUREMENTS:
            parser.error(f"no measurement {name!r}: there are {', '.join(MEASUREMENTS)}")
    if chosen.write and chosen.names:
        parser.error("--write takes the whole table: leave out the names")
    stage.interrupt_on_sigterm()
    machine = table.machine()
    rows: list[table.Row] = []
    print(machine, flush=True)
    for name in chosen.names or MEASUREMENTS:
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="beo-bench-") as folder:
            for row in MEASUREMENTS[name](Path(folder)):
                rows.append(row)
                print("  ".join(filter(None, row.cells)), flush=True)
        print(f"-- {name}: {time.monotonic() - began_s:.0f} s", flush=True)
    if chosen.write:
        table.write(PAGE, f"{machine}\n\n{table.render(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
