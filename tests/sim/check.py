"""The history of a run, from all sides, and a checker that compares them: for the simulator and for real daemons.

Clients tell what was acknowledged and what they saw, jobs when their ranks lived, heads which epoch they acted in, and
the cluster says at the end what became of the jobs and what its journal holds. `History.faults` lists all that doesn't
fit. Times are of one clock for all, in nanoseconds: CLOCK_BOOTTIME of the one machine that all hosts share, or the
simulator's. Whatever takes time is told by two of them, and no fault is one that a slow message could explain.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from beo.client import ENDED
from beo.messages import EventView, JobView


class Note(msgspec.Struct, frozen=True):
    """What a rank was seen to do: start, alive or end; `lines`: it has written so many by then."""

    what: str
    job: int
    attempt: int
    rank: int
    pid: int
    t_ns: int
    lines: int = 0


class Acted(msgspec.Struct, frozen=True):
    """A head did what only the primary may, at some moment between the two: it answered a client, say."""

    head: str
    epoch: int
    from_ns: int
    upto_ns: int


class Seen(msgspec.Struct, frozen=True):
    """A client asked for a job and was told this; state "": there is no such job."""

    job: int
    state: str
    attempt: int
    asked_ns: int
    answered_ns: int


class Line(msgspec.Struct, frozen=True):
    """A line of a job's output as a follower got it: the `number`-th of its rank in its attempt, from 0."""

    attempt: int
    rank: int
    number: int


class History:
    """Everything about one run. What only adds to it may be called from several threads."""

    def __init__(self) -> None:
        """Begin an empty one."""
        self._lock = threading.Lock()
        self._acknowledged: dict[str, tuple[int, int]] = {}  # tag -> (job, when)
        self._again: list[str] = []  # faults seen at once
        self._cancelled: set[str] = set()
        self._notes: dict[str, list[Note]] = {}
        self._followed: list[tuple[str, str, list[Line], bool]] = []
        self.acts: list[Acted] = []
        self.views: list[Seen] = []

    # ---- while it runs

    def acknowledged(self, tag: str, job: int, t_ns: int = 0) -> None:
        """The client was told that the submission with this tag is job `job`; twice if it submitted twice."""
        with self._lock:
            before, _ = self._acknowledged.setdefault(tag, (job, t_ns))
            if before != job:
                self._again.append(f"{tag} was acknowledged as job {before} and as job {job}")

    def cancelled(self, tag: str) -> None:
        """Somebody wished that this job ends, or tried to: it may be cancelled."""
        with self._lock:
            self._cancelled.add(tag)

    def noted(self, tag: str, note: Note) -> None:
        """A rank of the job of a tag did something."""
        with self._lock:
            self._notes.setdefault(tag, []).append(note)

    def followed(self, tag: str, who: str, lines: Sequence[Line], whole: bool = True) -> None:
        """A follower of the job of a tag got these lines; `whole`: it followed from the beginning to the end."""
        with self._lock:
            self._followed.append((tag, who, list(lines), whole))

    @property
    def jobs(self) -> list[int]:
        """The acknowledged jobs, in the order of their acknowledgements."""
        with self._lock:
            return [job for job, _ in self._acknowledged.values()]

    @property
    def tags(self) -> set[str]:
        """The submissions of which anything is known."""
        with self._lock:
            return {*self._acknowledged, *self._notes}

    def notes(self, tag: str) -> list[Note]:
        """What the ranks of the job of a tag have done so far."""
        with self._lock:
            return list(self._notes.get(tag, ()))

    def lives(self, tag: str, attempt: int = 1) -> bool:
        """Whether that attempt has done anything."""
        return any(note.attempt == attempt for note in self.notes(tag))

    def attempts(self, job: int) -> set[int]:
        """The attempts of an acknowledged job that have done anything."""
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
        found = list(self._again)
        found += _same_ids({tag: job for tag, (job, _) in self._acknowledged.items()})
        for tag in sorted(self.tags):
            notes = self.notes(tag)
            if tag in self._acknowledged:
                job, _ = self._acknowledged[tag]
                checked = _check_acknowledged(job, views.get(job), notes, tag in self._cancelled)
                found += [f"{tag}: {fault}" for fault in checked]
            found += [f"{tag}: {fault}" for fault in _check_notes(notes, views, untold)]
            if tag in adopted and len({note.attempt for note in notes}) != 1:
                found.append(f"{tag}: was started again: {_attempts(notes)}")
        for tag, who, lines, whole in self._followed:
            view = views.get(self._acknowledged[tag][0]) if whole and tag in self._acknowledged else None
            last = view.attempt if view else 0
            found += [f"{tag}: {who}: {fault}" for fault in _check_lines(lines, _written(self.notes(tag)), last)]
        found += check_views(self.views, dict(self._acknowledged.values()))
        return found + check_reigns(self.acts) + _check_events(list(events))


def check_reigns(acts: Iterable[Acted]) -> list[str]:
    """One head per epoch, and none acts in an epoch after another has acted in a higher one.

    So no two act at one moment: what both did can be put in an order in which one ceased before the other began.
    """
    found = []
    heads: dict[int, str] = {}
    last: dict[int, int] = {}  # epoch -> it was certainly in force at or after this
    first: dict[int, int] = {}  # epoch -> it was certainly in force at or before this
    for act in acts:
        if heads.setdefault(act.epoch, act.head) != act.head:
            found.append(f"epoch {act.epoch} is of {heads[act.epoch]} and of {act.head}")
        last[act.epoch] = max(last.get(act.epoch, act.from_ns), act.from_ns)
        first[act.epoch] = min(first.get(act.epoch, act.upto_ns), act.upto_ns)
    epochs = sorted(first)
    for nth, epoch in enumerate(epochs):
        for later in epochs[nth + 1 :]:
            if last[epoch] > first[later]:
                late_s = (last[epoch] - first[later]) / 1e9
                found.append(f"{heads[epoch]} acted in epoch {epoch} {late_s:.3f} s into epoch {later}")
    return list(dict.fromkeys(found))


def _same_ids(jobs: Mapping[str, int]) -> list[str]:
    return [f"job {job} was given to {count} submissions" for job, count in Counter(jobs.values()).items() if count > 1]


def _check_acknowledged(job: int, view: JobView | None, notes: Sequence[Note], cancelled: bool) -> list[str]:
    """It exists, it ran to its end once, and that is what the cluster says."""
    if view is None:
        return [f"job {job} was acknowledged and is not there"]
    if view.state not in ENDED:
        return [f"job {job} is {view.state}"]
    found = []
    if (view.state, view.exit_code) != ("done", 0) and not (cancelled and view.state == "cancelled"):
        found.append(f"job {job} is {view.state} with {view.exit_code} ({view.reason})")
    foreign = {note.job for note in notes} - {job}
    if foreign:
        found.append(f"job {job} was acknowledged, but it ran as {sorted(foreign)}")
    last = [note.rank for note in notes if note.what == "end" and note.attempt == view.attempt]
    if view.state == "done" and sorted(last) != list(range(view.ranks)):
        found.append(f"job {job} is done in attempt {view.attempt}, in which ranks {sorted(last)} came to their end")
    return found


def _check_notes(notes: Sequence[Note], views: Mapping[int, JobView], untold: bool) -> list[str]:
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


def _written(notes: Iterable[Note]) -> dict[tuple[int, int], int]:
    """(attempt, rank) -> how many lines it wrote, of those that came to their end."""
    return {(note.attempt, note.rank): note.lines for note in notes if note.what == "end"}


def _check_lines(lines: Sequence[Line], written: Mapping[tuple[int, int], int], last: int) -> list[str]:
    """Each rank's lines are 0, 1, 2 ... in each attempt, and attempts follow each other; `last` is there to its end."""
    found = []
    attempts = [line.attempt for line in lines]
    if attempts != sorted(attempts):
        found.append("an earlier attempt's lines come behind a later one's")
    numbers: dict[tuple[int, int], list[int]] = defaultdict(list)
    for line in lines:
        numbers[line.attempt, line.rank].append(line.number)
    for (attempt, rank), got in sorted(numbers.items()):
        wrong = next((nth for nth, number in enumerate(got) if nth != number), None)
        if wrong is not None:
            found.append(f"line {got[wrong]} of attempt {attempt}, rank {rank} comes where line {wrong} belongs")
    for (attempt, rank), count in sorted(written.items()):
        got_count = len(numbers.get((attempt, rank), ()))
        if attempt == last and got_count < count:
            found.append(f"{got_count} of {count} lines of attempt {attempt}, rank {rank}")
    return found


def check_views(views: Iterable[Seen], acknowledged: Mapping[int, int]) -> list[str]:
    """Who asks later sees no less: what was acknowledged is there, attempts only grow, and an end is the end."""
    found = []
    of_jobs: dict[int, list[Seen]] = defaultdict(list)
    for view in views:
        of_jobs[view.job].append(view)
    for job, seen in sorted(of_jobs.items()):
        known = sorted(seen, key=lambda view: view.answered_ns)
        best: Seen | None = None  # of all that were answered before the one in hand was asked
        nth = 0
        for view in sorted(seen, key=lambda view: view.asked_ns):
            while nth < len(known) and known[nth].answered_ns < view.asked_ns:
                best = max(best or known[nth], known[nth], key=_progress)
                nth += 1
            if not view.state and acknowledged.get(job, view.asked_ns) < view.asked_ns:
                found.append(f"job {job} was acknowledged, and later somebody was told that it doesn't exist")
            elif best and _progress(view) < _progress(best):
                what = f"{view.state or 'unknown'} in attempt {view.attempt}"
                found.append(f"job {job} was {best.state} in attempt {best.attempt}, and later {what}")
            elif best and best.state in ENDED and view.state != best.state:
                found.append(f"job {job} had ended as {best.state}, and later as {view.state}")
    return list(dict.fromkeys(found))


def _progress(view: Seen) -> tuple[bool, bool, int]:
    return bool(view.state), view.state in ENDED, view.attempt


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
