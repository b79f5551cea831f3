"""The history of a run of real daemons: its jobs write down themselves when they lived, each in a file of its own."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.sim import check
from tests.sim.check import Line, Note

BEAT_S = 0.02  # between two signs of life of a job
LASTING_S = 100.0  # of a job that is not released: longer than its test

# A job that lives for so many seconds, or until a file is there, and writes to a file of its own that it starts, lives
# and ends. Each line is written in one go behind all others, so that two copies would show, whatever they do to each
# other. If it is to talk, it also says something at each sign of life.
_WITNESS = f"""
import os, sys, time
job, attempt, rank = (os.environ[f"BEO_{{word}}"] for word in ("JOB_ID", "ATTEMPT", "RANK"))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
lines = 0
def note(what):
    t_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.write(fd, f"{{what}} {{job}} {{attempt}} {{rank}} {{os.getpid()}} {{t_ns}} {{lines}}\\n".encode())
    return t_ns
end_ns = note("start") + int(float(sys.argv[2]) * 1e9)
while note("alive") < end_ns and not os.path.exists(sys.argv[3]):
    if sys.argv[4:]:
        os.write(1, f"{{attempt}} {{rank}} {{lines}}\\n".encode())
        lines += 1
    time.sleep({BEAT_S})
note("end")
"""


def now_ns() -> int:
    """The clock of all notes."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def said(text: str) -> list[Line]:
    """What a follower got of a job that talks; raises ValueError where that isn't whole lines of it."""
    if text and not text.endswith("\n"):
        raise ValueError(f"half a line at the end: {text[-80:]!r}")
    return [Line(*map(int, line.split())) for line in text.splitlines()]


def argv_of(folder: Path, tag: str, lasting_s: float, talks: bool = False) -> list[str]:
    """The command of a job that lasts so long, at most until FOLDER.released is there, and notes it in FOLDER/TAG."""
    words = [sys.executable, "-I", "-S", "-c", _WITNESS]
    words += [str(folder / tag), str(lasting_s), str(folder.with_suffix(".released"))]
    return [*words, "talk"] if talks else words


class History(check.History):
    """A history whose jobs keep notes in files, so that these outlive the jobs and what runs them."""

    def __init__(self, folder: Path) -> None:
        """Take an empty folder for what the jobs write."""
        super().__init__()
        self._folder = folder
        self._released = folder.with_suffix(".released")
        folder.mkdir()

    def argv(self, tag: str, lasting_s: float = LASTING_S, talks: bool = False) -> list[str]:
        """The command of a job that lasts so long, at most until `release`, and writes its notes under its own tag."""
        return argv_of(self._folder, tag, lasting_s, talks)

    def release(self) -> None:
        """Let all jobs come to their end."""
        self._released.touch()

    def acknowledged(self, tag: str, job: int, t_ns: int = 0) -> None:
        """The client was told just now that the submission with this tag is job `job`."""
        super().acknowledged(tag, job, t_ns or now_ns())

    @property
    def tags(self) -> set[str]:
        """Those that were acknowledged or have written anything."""
        return super().tags | {path.name for path in self._folder.iterdir()}

    def notes(self, tag: str) -> list[Note]:
        """What the job of a tag has written so far."""
        try:
            lines = (self._folder / tag).read_text().split("\n")[:-1]  # behind the last newline there is none
        except FileNotFoundError:
            return []
        return [Note(what, *map(int, rest)) for what, *rest in map(str.split, lines)]
