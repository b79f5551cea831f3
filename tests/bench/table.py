"""What was measured, as rows of a table: medians and spreads beside the bare thing, on a machine that is named."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

BEGIN = "<!-- make bench: begin -->"
END = "<!-- make bench: end -->"


@dataclass
class Row:
    """One line: samples of beo and of the bare thing in one unit, taken in turn, and what is aimed at.

    bare_is: what the bare thing was. aim: a text, since aims are of many kinds.
    """

    what: str
    unit: str
    bare_is: str = ""
    aim: str = ""
    beo: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        """The row as it is printed: what, unit, beo, bare, the ratio of the medians, aim."""
        ratio = ""
        if self.beo and self.bare and statistics.median(self.bare):
            ratio = f"{number(statistics.median(self.beo) / statistics.median(self.bare))} ×"
        bare = f"{spread(self.bare)} ({self.bare_is})" if self.bare else "–"
        return [self.what, self.unit, spread(self.beo), bare, ratio, self.aim]


def number(value: float) -> str:
    """Three digits that mean something: 0.0123, 1.23, 12.3, 1,234."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def spread(samples: list[float]) -> str:
    """`median (lowest-highest)`, or the single value."""
    if not samples:
        return "–"
    middle = number(statistics.median(samples))
    if len(samples) == 1:
        return middle
    return f"{middle} ({number(min(samples))}–{number(max(samples))})"


def render(rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| what | unit | beo | bare | beo ÷ bare | limit or aim |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    lines += [f"| {' | '.join(row.cells)} |" for row in rows]
    return "\n".join(lines)


def machine() -> str:
    """Where and when this is measured, in one sentence."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} with {len(os.sched_getaffinity(0))} cores ({processor()}), "
        f"{memory_gib:.0f} GiB of memory, Linux {platform.release()}, Python {platform.python_version()}; "
        f"load at the start {os.getloadavg()[0]:.1f}."
    )


def processor() -> str:
    """The processor's name, as the kernel knows it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(path: Path, text: str) -> None:
    """Put a text between the two marks of a page; raises ValueError where they aren't there."""
    page = path.read_text()
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no {BEGIN} and {END}: put them where the table belongs")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
