"""A client that submits one job after another at a steady pace, as a process. ``python -m tests.bench.steady LOG``.

It waits for nothing but its answers, and retries as every client does. LOG gets a line for each submission: when it
began and when it was acknowledged, in nanoseconds of CLOCK_BOOTTIME. Ends when its stdin does.
"""

from __future__ import annotations

import select
import sys
import time
from pathlib import Path

from beo import client, submission
from beo.errors import NoHead
from tests.history import now_ns

PACE_S = 0.02
PATIENCE_S = 60.0


def main() -> None:
    """Submit held jobs, so that what is measured is the submissions alone."""
    spec = submission.new_spec(["true"], cwd="/", env={"PATH": "/bin:/usr/bin"})
    with client.Cluster() as own, Path(sys.argv[1]).open("ab", buffering=0) as log:
        while not select.select([sys.stdin], [], [], 0)[0]:
            began_ns = now_ns()
            try:
                own.submit(spec, patience_s=PATIENCE_S, hold=True)
            except NoHead:
                continue
            log.write(b"%d %d\n" % (began_ns, now_ns()))
            time.sleep(PACE_S)


if __name__ == "__main__":
    main()
