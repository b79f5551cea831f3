"""`make sim`: many seeds on all cores, and what came of them; `make sim SEED=n` shows one, step by step."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from typing import NamedTuple

from tests.sim.clock import Violation
from tests.sim.world import Simulation


class Outcome(NamedTuple):
    """What came of one seed."""

    seed: int
    violation: str
    acknowledged: int = 0
    lost: int = 0
    crashes: int = 0
    troubles: int = 0
    ends: int = 0
    takeovers: tuple[float, ...] = ()
    waits: tuple[float, ...] = ()


def outcome(seed: int) -> Outcome:
    """Run one seed."""
    try:
        sim = Simulation(seed).run()
    except (Violation, AssertionError) as violation:
        return Outcome(seed, str(violation) or "an assertion failed")
    except Exception as error:  # a core must not raise, and the other seeds are to be run all the same
        return Outcome(seed, repr(error))
    return Outcome(
        seed,
        "",
        len(sim.client.acknowledged),
        len(sim.truth.excused),
        sim.trouble.crashes,
        sim.trouble.count,
        sim.jobs.ends,
        tuple(sim.truth.takeovers),
        tuple(sim.client.waits),
    )


def _of(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def main() -> int:
    """Run seeds, print progress and a summary; 1 if any was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seed", type=int, help="show this one")
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    words = parser.parse_args()
    if words.seed is not None:
        try:
            Simulation(words.seed, verbose=True).run()
        except Violation as violation:
            print(f"violated: {violation}")
            return 1
        return 0
    began_s = time.monotonic()
    found: list[Outcome] = []
    with multiprocessing.Pool(words.jobs) as pool:
        for one in pool.imap_unordered(outcome, range(words.first, words.first + words.seeds), chunksize=8):
            found.append(one)
            if one.violation:
                print(f"seed {one.seed}: {one.violation}", flush=True)
            if len(found) % 1000 == 0:
                print(f"{len(found)} seeds, {time.monotonic() - began_s:.0f} s", flush=True)
    takeovers = [down_s for one in found for down_s in one.takeovers]
    waits = [wait_s for one in found for wait_s in one.waits]
    print(f"{len(found)} seeds, {sum(bool(one.violation) for one in found)} violated")
    print(f"{sum(one.acknowledged for one in found)} jobs acknowledged, {sum(one.ends for one in found)} parts ran")
    print(f"{sum(one.lost for one in found)} of them lost where the level A or B allows it")
    print(f"{sum(one.crashes for one in found)} crashes among {sum(one.troubles for one in found)} troubles")
    print(f"{len(takeovers)} take-overs: p50 {_of(takeovers, 0.5):.2f} s, max {max(takeovers, default=0.0):.2f} s")
    print(f"from submission to acknowledgement: p50 {_of(waits, 0.5) * 1e3:.0f} ms, p99 {_of(waits, 0.99):.2f} s")
    return int(any(one.violation for one in found))


if __name__ == "__main__":
    sys.exit(main())
