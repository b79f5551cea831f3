"""What happened to the jobs of a run, from three sides, and a checker that compares them.

The client knows what was acknowledged, the jobs write down themselves when they lived, and the cluster says at the end
what became of them and what its journal holds. `History.faults` lists all that doesn't fit.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import msgspec

from beo.client import ENDED
from beo.messages import EventView, JobView

BEAT_S = 0.02  # between two signs of life of a job
LASTING_S = 100.0  # of a job that is not released: longer than its test

# A job that lives for so many seconds, or until a file is there, and writes to a file of its own that it starts, lives
# and ends. Each line is written in one go behind all others, so that two copies would show, whatever they do to each
# other.
_WITNESS = f"""
import os, sys, time
job, attempt, rank = (os.environ[f"BEO_{{word}}"] for word in ("JOB_ID", "ATTEMPT", "RANK"))
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def note(what):
    t_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    os.write(fd, f"{{what}} {{job}} {{attempt}} {{rank}} {{os.getpid()}} {{t_ns}}\\n".encode())
    return t_ns
end_ns = note("start") + int(float(sys.argv[2]) * 1e9)
while note("alive") < end_ns and not os.path.exists(sys.argv[3]):
    time.sleep({BEAT_S})
note("end")
"""


class Note(msgspec.Struct, frozen=True):
    """A line that a job wrote: what is start, alive or end; t_ns is CLOCK_BOOTTIME."""

    what: str
    job: int
    attempt: int
    rank: int
    pid: int
    t_ns: int


class History:
    """Everything about one run. `acknowledged` may be called from several threads."""

    def __init__(self, folder: Path) -> None:
        """Take an empty folder for what the jobs write."""
        self._folder = folder
        self._released = folder.with_suffix(".released")
        folder.mkdir()
        self._lock = threading.Lock()
        self._acknowledged: dict[str, tuple[int, float]] = {}  # tag -> (job, when)
        self._again: list[str] = []  # faults seen at once

    # ---- while it runs

    def argv(self, tag: str, lasting_s: float = LASTING_S) -> list[str]:
        """The command of a job that lasts so long, at most until `release`, and writes its notes under its own tag."""
        return [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _WITNESS,
            str(self._folder / tag),
            str(lasting_s),
            str(self._released),
        ]

    def release(self) -> None:
        """Let all jobs come to their end."""
        self._released.touch()

    def acknowledged(self, tag: str, job: int) -> None:
        """The client was told that the submission with this tag is job `job`; twice if it submitted twice."""
        with self._lock:
            before, _ = self._acknowledged.setdefault(tag, (job, time.time()))
            if before != job:
                self._again.append(f"{tag} was acknowledged as job {before} and as job {job}")

    @property
    def jobs(self) -> list[int]:
        """The acknowledged jobs, in the order of their acknowledgements."""
        with self._lock:
            return [job for job, _ in self._acknowledged.values()]

    def notes(self, tag: str) -> list[Note]:
        """What the job of a tag has written so far."""
        try:
            lines = (self._folder / tag).read_text().split("\n")[:-1]  # behind the last newline there is none
        except FileNotFoundError:
            return []
        return [Note(what, *map(int, rest)) for what, *rest in map(str.split, lines)]

    def lives(self, tag: str, attempt: int = 1) -> bool:
        """Whether that attempt has written anything."""
        return any(note.attempt == attempt for note in self.notes(tag))

    def attempts(self, job: int) -> set[int]:
        """The attempts of an acknowledged job that have written anything."""
        with self._lock:
            tags = [tag for tag, (number, _) in self._acknowledged.items() if number == job]
        return {note.attempt for tag in tags for note in self.notes(tag)}

    # ---- afterwards

    def faults(
        self,
        rows: Iterable[JobView],
        events: Iterable[EventView],
        adopted: Collection[str] = (),
        untold: bool = False,
    ) -> list[str]:
        """Return in words all that breaks a promise, nothing for a good run.

        rows: all jobs, after all have ended. events: the whole journal. adopted: the tags of jobs of which only one
        attempt may have come to its first line, whatever was killed. untold: whether an attempt that had ended may be
        followed by another: its worker was killed as a whole, with the result that nobody else had yet.
        """
        views = {view.id: view for view in rows}
        tags = sorted({*self._acknowledged, *(path.name for path in self._folder.iterdir())})
        found = list(self._again)
        found += _same_ids({tag: job for tag, (job, _) in self._acknowledged.items()})
        for tag in tags:
            notes = self.notes(tag)
            if tag in self._acknowledged:
                job, _ = self._acknowledged[tag]
                found += [f"{tag}: {fault}" for fault in _check_acknowledged(job, views.get(job), notes)]
            found += [f"{tag}: {fault}" for fault in _check_notes(notes, views, untold)]
            if tag in adopted and len({note.attempt for note in notes}) != 1:
                found.append(f"{tag}: was started again: {_attempts(notes)}")
        return found + _check_events(list(events))


def _same_ids(jobs: dict[str, int]) -> list[str]:
    return [f"job {job} was given to {count} submissions" for job, count in Counter(jobs.values()).items() if count > 1]


def _check_acknowledged(job: int, view: JobView | None, notes: Sequence[Note]) -> list[str]:
    """It exists, it ran to its end once, and that is what the cluster says."""
    if view is None:
        return [f"job {job} was acknowledged and is not there"]
    if view.state not in ENDED:
        return [f"job {job} is {view.state}"]
    found = []
    if (view.state, view.exit_code) != ("done", 0):
        found.append(f"job {job} is {view.state} with {view.exit_code} ({view.reason})")
    foreign = {note.job for note in notes} - {job}
    if foreign:
        found.append(f"job {job} was acknowledged, but it ran as {sorted(foreign)}")
    last = [note.rank for note in notes if note.what == "end" and note.attempt == view.attempt]
    if view.state == "done" and sorted(last) != list(range(view.ranks)):
        found.append(f"job {job} is done in attempt {view.attempt}, in which ranks {sorted(last)} came to their end")
    return found


def _check_notes(notes: Sequence[Note], views: dict[int, JobView], untold: bool) -> list[str]:
    """One submission is one job; no attempt starts twice, none after an end that was told, no two live at a time."""
    found = []
    jobs = sorted({note.job for note in notes})
    if len(jobs) > 1:
        found.append(f"one submission ran as jobs {jobs}")
    found += [f"job {job} ran and nobody knows it" for job in jobs if job not in views]
    for what in ("start", "end"):
        counts = Counter((note.job, note.attempt, note.rank) for note in notes if note.what == what)
        found += [
            f"job %d, attempt %d, rank %d: {count} times {what}" % key for key, count in counts.items() if count > 1
        ]
    lives = _lives(notes)
    for (job, attempt), (first_ns, _) in lives.items():
        for (_, earlier), (_, last_ns) in lives.items():
            if earlier < attempt and first_ns <= last_ns:
                late_s = (last_ns - first_ns) / 1e9
                found.append(f"job {job}: attempt {earlier} lived {late_s:.3f} s into attempt {attempt}")
    starts, ends = (Counter((n.job, n.attempt) for n in notes if n.what == what) for what in ("start", "end"))
    for job, attempt in ends:
        if ends[job, attempt] == starts[job, attempt] and not untold:
            later = [other for _, other in lives if other > attempt]
            found += [f"job {job}: attempt {other} began after attempt {attempt} had ended" for other in later]
    return found


def _lives(notes: Iterable[Note]) -> dict[tuple[int, int], tuple[int, int]]:
    """(job, attempt) -> the first and the last moment at which any of its ranks lived, ns."""
    moments: dict[tuple[int, int], list[int]] = defaultdict(list)
    for note in notes:
        moments[note.job, note.attempt].append(note.t_ns)
    return {key: (min(found), max(found)) for key, found in sorted(moments.items())}


def _attempts(notes: Iterable[Note]) -> str:
    return f"attempts {sorted({note.attempt for note in notes})}"


def _check_events(events: Sequence[EventView]) -> list[str]:
    """In the journal, too, a job is submitted once, an attempt starts once, and its parts end once."""
    once = Counter(
        (event.kind, event.job, event.node, event.text.split(",")[0].split(":")[0] if event.kind != "Submitted" else "")
        for event in events
        if event.kind in ("Submitted", "Started", "PartEnded")
    )
    found = [f"{count} entries {key}" for key, count in once.items() if count > 1]
    epochs = [event.epoch for event in events]
    return found + (["epochs go back"] if epochs != sorted(epochs) else [])
