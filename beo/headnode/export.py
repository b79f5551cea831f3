"""`-o FILE` and `-e FILE`: a job's output as plain files, written from the store as it grows, each byte exactly once.

A file is a prefix of what the store holds for its descriptors, in the store's order; of an attempt that goes on where
another one halted, of both. So nothing has to be remembered
over a crash but that there is something to write: a small mark beside the store, made before the attempt starts and
removed when its file is complete. A file that is found is gone on with where it is such a prefix, and else begun anew.

Of two heads only the one that leads writes, and only while no other can lead: as both have the same store, it goes on
with what the other has written. The one that follows keeps the marks of what it would go on with.

This is a thread of its own, because it writes where users say: a file system that hangs must not hold up the store.
Files are opened as the job's owner, so nobody gets a file that he couldn't have written himself.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import queue
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from beo import records
from beo.errors import BeoError, Conflict, Refused, UsageError
from beo.headnode.output import read_blocks
from beo.messages import CHUNK_SIZE_MAX_BYTES
from beo.spec import JobSpec

__all__ = ["Exports", "Jobs"]

RETRY_S = 5.0  # between attempts at a file that can't be written; a job may make the folder itself
LAPSE_S = 0.05  # between looks at whether this head may write again
ERRORS_MAX = 10_000  # texts kept for `beo show`

_NULL_DEVICE = os.makedev(1, 3)
_SETGROUPS = {"x86_64": 116, "aarch64": 159}  # the raw call, since that of the C library changes all threads

log = logging.getLogger("beo.export")


class Jobs(Protocol):
    """What the exports ask about jobs; answered from any thread."""

    def spec(self, job: int) -> JobSpec | None:
        """Return a job's spec, None for an unknown one."""

    def ids(self, job: int) -> tuple[int, int, tuple[int, ...]] | None:
        """Return the owner's uid, gid and further groups as of the submission, None for an unknown job."""

    def since(self, job: int) -> int:
        """Return the first attempt of which a job's present one is the continuation: they write one file."""

    def is_over(self, job: int, attempt: int) -> bool:
        """Say whether an attempt's end is committed (so all its output is in the store), or it will never start."""


@contextmanager
def _acting_as(uid: int, gid: int, groups: tuple[int, ...]) -> Iterator[None]:
    """Touch files as this user, in this thread only."""
    if uid == os.geteuid():
        yield
        return
    number = _SETGROUPS.get(platform.machine())
    if os.geteuid() != 0 or number is None:
        raise Refused("the head can't write files of another user", "it doesn't run as root", "use 'beo logs'")
    libc = ctypes.CDLL(None, use_errno=True)
    own_groups, own_gid = os.getgroups(), os.getegid()

    def become(uid: int, gid: int, groups: Collection[int]) -> None:
        if libc.syscall(number, len(groups), (ctypes.c_uint32 * len(groups))(*groups)):
            raise OSError(ctypes.get_errno(), "can't take the owner's groups")
        libc.setfsgid(gid)
        libc.setfsuid(uid)
        if libc.setfsuid(-1) != uid or libc.setfsgid(-1) != gid:  # they tell no error: ask what is
            raise OSError(1, "can't act as the owner")

    try:
        become(uid, gid, groups)
        yield
    finally:
        libc.setfsuid(0)  # first, since it gives the rights back
        become(0, own_gid, own_groups)


Place = tuple[int, int]
"""Where in the output of several attempts: which of them, and the cursor in its."""


class _Sink:
    """One file to be written: the `fds` of an attempt's output."""

    def __init__(self, job: int, attempt: int, name: str, mark: Path, source: Path) -> None:
        self.job, self.attempt, self.name = job, attempt, name
        self.mark, self.source = mark, source
        self.before: list[Path] = []  # the output of those attempts that this one goes on from, whole
        self.path = ""
        self.fds: frozenset[int] = frozenset()
        self.end = -1  # of the store, durable; -1: not known yet
        self.place: Place = (0, 0)
        self.skip_bytes = 0  # bytes from there on that are in the file already
        self.fd = -1
        self.void = False  # /dev/null: nothing to do
        self.term = 0  # of leading, in which it was opened

    def resolve(self, spec: JobSpec) -> None:
        """Take the path and the descriptors from the spec."""
        paths = {records.STDOUT: spec.output, records.STDERR: spec.errors or spec.output}
        paths = {fd: path.replace("%j", str(self.job)) for fd, path in paths.items()}
        self.path = paths[records.STDOUT if self.name == "o" else records.STDERR]
        self.fds = frozenset(fd for fd, path in paths.items() if path == self.path)

    def open(self, ids: tuple[int, int, tuple[int, ...]]) -> None:
        """Open the file, and find where to go on; raises BeoError or OSError."""
        with _acting_as(*ids):
            flags = os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            try:
                fd = os.open(self.path, flags | os.O_RDWR, 0o644)
                readable = True
            except PermissionError:  # it may be one that its owner can only write
                fd = os.open(self.path, flags | os.O_WRONLY, 0o644)
                readable = False
        try:
            state = os.fstat(fd)
            self.void = stat.S_ISCHR(state.st_mode) and state.st_rdev == _NULL_DEVICE
            if not stat.S_ISREG(state.st_mode) and not self.void:
                raise UsageError(f"{self.path} is not a regular file", "", "change -o or -e")
            self.place, self.skip_bytes = (0, 0), 0
            if state.st_size and not self.void and not (readable and self._is_ours(fd, state.st_size)):
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        self.fd = fd

    def _is_ours(self, fd: int, size: int) -> bool:
        """Whether the file is a beginning of the output; then what follows is what is to be written next."""
        place, at = (0, 0), 0
        while not self._is_end(place):
            following, own = self._own(place)
            there = os.pread(fd, len(own), at)
            if there != own[: size - at]:
                return False
            if at + len(own) >= size:
                self.place, self.skip_bytes = place, size - at
                return True
            place, at = following, at + len(own)
        return False

    def _is_end(self, place: Place) -> bool:
        return place[0] == len(self.before) and place[1] >= self.end

    def _own(self, place: Place) -> tuple[Place, bytes]:
        """Return (next place, what is for this file) of the next stretch of the store."""
        number, cursor = place
        is_before = number < len(self.before)
        try:
            source = os.open(self.before[number] if is_before else self.source, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if is_before:  # it has printed nothing
                return (number + 1, 0), b""
            raise
        try:
            end = os.fstat(source).st_size if is_before else self.end
            if is_before and cursor >= end:
                return (number + 1, 0), b""
            cursor, data = read_blocks(source, cursor, end, 2 * CHUNK_SIZE_MAX_BYTES)
        finally:
            os.close(source)
        return (number, cursor), b"".join(record.data for record in records.unpack(data) if record.fd in self.fds)

    def write_some(self) -> bool:
        """Append the next stretch of the store; return whether all of it is in the file. Raises OSError."""
        if self.void or self._is_end(self.place):
            return True
        place, own = self._own(self.place)
        while self.skip_bytes < len(own):
            self.skip_bytes += os.write(self.fd, own[self.skip_bytes :])
        self.skip_bytes -= len(own)
        self.place = place
        return self._is_end(place)

    def complete(self) -> None:
        """The file is whole: make it durable and forget it."""
        if not self.void:
            os.fsync(self.fd)
        self.drop()

    def close(self) -> None:
        """Leave it to another head, or to a later time."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def drop(self) -> None:
        """Forget it as it is."""
        self.close()
        self.mark.unlink(missing_ok=True)


class Exports:
    """The thread that writes them. All methods are for any thread."""

    def __init__(
        self, folder: Path, source: Callable[[int, int], Path], jobs: Jobs, may: Callable[[], bool] = lambda: True
    ) -> None:
        """Take the store's folder for the marks and `source(job, attempt)` for its files; goes on where marks are.

        may: whether no other head can write now.
        """
        self._may = may
        self._folder = folder
        self._source = source
        self._jobs = jobs
        self._sinks: dict[tuple[int, int, str], _Sink] = {}
        self._finished: queue.SimpleQueue[tuple[int, int, str]] = queue.SimpleQueue()
        self._errors: dict[tuple[int, str], str] = {}
        self._changed = threading.Condition()
        self._work = True
        self._term = 0  # how often this head has begun to lead
        self._leading = False
        self._lapsed = False  # something was left undone because another head might write
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="beo-export", daemon=True)
        for mark in sorted(folder.glob("*.export-[oe]")):
            job, attempt, rest = mark.name.split(".")
            self._add(int(job), int(attempt), rest[-1])

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it; what is unfinished goes on at the next start. Doesn't wait for ever for a hung file system."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=RETRY_S)

    def lead(self) -> None:
        """Write from now on, as far as is told by `grown` anew: the files may be another head's work meanwhile."""
        with self._changed:
            self._term += 1
            self._leading = self._work = True
            for sink in self._sinks.values():
                sink.end = -1
            self._changed.notify()

    def rest(self) -> None:
        """Write no more: another head does."""
        with self._changed:
            self._leading = False
            self._work = True
            self._changed.notify()

    def begin(self, job: int, attempt: int) -> None:
        """An attempt is about to start, or runs: write its files. Earlier attempts of the job write no more."""
        spec = self._jobs.spec(job)
        if spec is None:
            return
        names = {spec.output: "o"} if spec.output else {}
        if spec.errors:
            names.setdefault(spec.errors, "e")
        for name in names.values():
            mark = self._folder / f"{job}.{attempt}.export-{name}"
            if (job, attempt, name) not in self._sinks:
                mark.touch(mode=0o600)
                self._add(job, attempt, name)
        self.poke()

    def grown(self, job: int, attempt: int, end: int) -> None:
        """The store holds the attempt's output durably up to `end`."""
        with self._changed:
            for name in "oe":
                if sink := self._sinks.get((job, attempt, name)):
                    sink.end = max(sink.end, end)
                    self._work = True
            self._changed.notify()

    def poke(self) -> None:
        """Some attempt may be over: look."""
        if not self._sinks:
            return  # nothing is being written; what begins now looks by itself
        with self._changed:
            self._work = True
            self._changed.notify()

    def names(self) -> list[tuple[int, int, str]]:
        """Return the unfinished files as (job, attempt, "o" or "e")."""
        with self._changed:
            return sorted(self._sinks)

    def finished(self) -> list[tuple[int, int, str]]:
        """Return what this head, leading, has finished since the last call."""
        return [self._finished.get_nowait() for _ in range(self._finished.qsize())]

    def drop(self, names: Iterable[tuple[int, int, str]]) -> None:
        """Another head has finished these."""
        with self._changed:
            for name in names:
                if sink := self._sinks.get(name):
                    sink.mark.unlink(missing_ok=True)
                    self._work = True
            self._changed.notify()

    def active(self) -> list[tuple[int, int]]:
        """Return the attempts (job, attempt) with unfinished files."""
        with self._changed:
            return sorted({key[:2] for key in self._sinks})

    def error(self, job: int) -> str:
        """Return why a job's -o or -e file is not written, or ''."""
        return "; ".join(text for name in "oe" if (text := self._errors.get((job, name))))

    def forget(self, jobs: Collection[int]) -> None:
        """Drop all about these jobs."""
        with self._changed:
            for key in [key for key in self._sinks if key[0] in jobs]:
                self._sinks[key].mark.unlink(missing_ok=True)
            for job in jobs:
                self._errors.pop((job, "o"), None)
                self._errors.pop((job, "e"), None)
            self._work = True
            self._changed.notify()

    def _add(self, job: int, attempt: int, name: str) -> None:
        mark = self._folder / f"{job}.{attempt}.export-{name}"
        with self._changed:
            self._sinks[job, attempt, name] = _Sink(job, attempt, name, mark, self._source(job, attempt))

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    wait_s = LAPSE_S if self._lapsed else RETRY_S
                    self._changed.wait_for(lambda: self._work or self._stopping, timeout=wait_s)
                    if self._stopping:
                        return
                    self._work = self._lapsed = False
                    sinks, term = list(self._sinks.values()), self._term if self._leading else 0
                latest: dict[int, int] = {}
                for sink in sinks:
                    latest[sink.job] = max(sink.attempt, latest.get(sink.job, 0))
                for sink in sinks:
                    if sink.term != term:
                        sink.close()
                        sink.term = term
                    if not self._leading or not term:
                        if not sink.mark.exists():
                            self._finish(sink)
                        continue
                    if sink.attempt < latest[sink.job] or not sink.mark.exists() or self._advance(sink):
                        self._finish(sink)
                        self._finished.put((sink.job, sink.attempt, sink.name))
        finally:
            for sink in self._sinks.values():
                sink.close()

    def _finish(self, sink: _Sink) -> None:
        sink.drop()
        with self._changed:
            self._sinks.pop((sink.job, sink.attempt, sink.name), None)

    def _advance(self, sink: _Sink) -> bool:
        """Write some of it; return whether the sink is done with, for good or ill."""
        over = self._jobs.is_over(sink.job, sink.attempt)  # before `end` is looked at: it doesn't grow after that
        if sink.end < 0:
            return False
        if not self._may():
            self._lapsed = True
            return False
        try:
            if sink.fd < 0:
                spec, ids = self._jobs.spec(sink.job), self._jobs.ids(sink.job)
                if spec is None or ids is None:
                    return True
                sink.resolve(spec)
                sink.before = [self._source(sink.job, n) for n in range(self._jobs.since(sink.job), sink.attempt)]
                self._refuse_shared(sink)
                sink.open(ids)
            if not sink.write_some():
                self._work = True
                return False
            self._errors.pop((sink.job, sink.name), None)
            if over:
                sink.complete()
            return over
        except (BeoError, OSError) as error:
            self._report(sink, error)
            return over  # it was the last try; the store still has everything

    def _refuse_shared(self, sink: _Sink) -> None:
        """Two jobs' bytes in one file could not be told apart after a crash."""
        for other in list(self._sinks.values()):
            if other is not sink and other.fd >= 0 and other.path == sink.path and not other.void:
                raise Conflict(f"{sink.path} is being written by job {other.job}", "", "put %j into -o and -e")

    def _report(self, sink: _Sink, error: BeoError | OSError) -> None:
        text = str(error)
        if isinstance(error, OSError):
            why = (error.strerror or str(error)).lower()
            text = f"can't write {sink.path} ({why}): mend that, or read the output by 'beo logs {sink.job}'"
        key = sink.job, sink.name
        if self._errors.get(key) != text:
            log.warning("output file of job %d: %s", sink.job, text)
            while len(self._errors) >= ERRORS_MAX:
                self._errors.pop(next(iter(self._errors)))
            self._errors[key] = text
