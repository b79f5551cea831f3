"""What a run of stepping.py has written down, over all its attempts, and whether it ever lost what it had kept."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

from tests.cluster import ROOT


class Stepped:
    """The lines of one job, in order: `begins N`, `step N`, `kept N`."""

    def __init__(self, log: Path) -> None:
        """Name the file; it is made here."""
        self.log = log
        self.log.touch()

    def argv(self, level: str, steps: int, step_s: float, every: int) -> list[str]:
        """What to submit, with a checkpoint each `every` steps."""
        program = [sys.executable, str(ROOT / "tests" / "stepping.py"), str(steps), str(step_s), str(every)]
        return ["env", f"LEVEL={level}", *program, str(self.log)]

    def told(self) -> list[tuple[str, int]]:
        """All lines."""
        return [(what, int(number)) for what, number in re.findall(r"^(\w+) (\d+)$", self.log.read_text(), re.M)]

    def numbers(self, what: str) -> list[int]:
        """Those of the lines of a kind."""
        return [number for kind, number in self.told() if kind == what]

    def count(self, what: str) -> int:
        """How many lines there are of a kind."""
        return len(self.numbers(what))

    def again(self) -> list[int]:
        """How many steps were computed again, each time that it began anew."""
        told = [(what, number) for what, number in self.told() if what != "kept"]
        return [before - number for (_, before), (what, number) in pairwise(told) if what == "begins"]

    def faults(self) -> list[str]:
        """Each time that it began further back than with its last checkpoint, or further on than it had been."""
        found, kept, step = [], 0, 0
        for what, number in self.told():
            if what == "begins" and not kept <= number <= step:
                found.append(f"it began with {number}, though {kept} of {step} steps were kept")
            kept = number if what == "kept" else kept
            step = number if what in ("step", "begins") else step
        return found


def total(output: str) -> str:
    """The answer in what it printed. AssertionError where there is none."""
    found = re.search(r"^total \d+$", output, re.MULTILINE)
    assert found, output
    return found[0]
