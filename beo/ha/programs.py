"""The programs of ``[[ha.on_promote]]``: started in order where the primary is, ended in reverse on the way down.

One thread does one thing after another and heeds the last wish, `promote` or `demote`, between any two: however quickly
they follow each other, it ends in the last. What was begun is on disk (run/promoted.json) before it begins, so a head
that is started again after a SIGKILL takes up, or ends, what the last one left.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from beo.config import write_durably
from beo.errors import reason
from beo.lockfile import Process, started
from beo.settings import PROGRAM_KILL_S, Program

DELAY_FIRST_S = 0.2  # before a `run` program that ended is started again; doubled each time
DELAY_MAX_S = 30.0
HEALTHY_S = 10.0  # who ran for so long begins with the first delay again
RECORD_SIZE_MAX_BYTES = 1 << 20  # of promoted.json: a hundred programs with long command lines
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# A shell that becomes the command when it is told to: its pid is on record before, so none is ever lost. `cd /`, as
# daemons do: a relative path would mean another file on each machine.
GATE = ("/bin/sh", "-c", 'cd / && read -r go && exec "$@"', "beo-on-promote")
_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD)

log = logging.getLogger("beo.ha")

State = Literal["starting", "up", "stopping"]


class Begun(msgspec.Struct, frozen=True):
    """A program that was begun and hasn't been stopped yet; pid and ticks are those of its command that runs."""

    program: Program
    state: State
    pid: int = 0
    ticks: str = ""
    trouble: str = ""  # what went wrong at its start


class Record(msgspec.Struct, frozen=True):
    """promoted.json: what was begun since this boot of the machine, in order."""

    boot: str
    epoch: int
    begun: tuple[Begun, ...]


class Fare(msgspec.Struct, frozen=True):
    """How a program fares: its name, down | starting | up | failed | stopping, and what is wrong with it."""

    name: str
    state: str
    trouble: str = ""


class _Course:
    """A program that was begun, and its process while one runs."""

    def __init__(self, begun: Begun) -> None:
        self.begun = begun
        self.process: Process | None = None
        self.since_s = 0.0  # when that was started
        self.ends = 0  # of a `run` program, in a row
        self.due_s = 0.0  # when it is to be started again

    def fail(self, now_s: float) -> None:
        """Count an end, and set when it is started again."""
        self.ends += 1
        self.due_s = now_s + min(DELAY_FIRST_S * 2 ** min(self.ends - 1, 10), DELAY_MAX_S)


class Programs:
    """The programs of one head. Every public method returns at once, but for `close`."""

    def __init__(self, record: Path, output: Path, programs: tuple[Program, ...], env: Mapping[str, str]) -> None:
        """Read what an earlier head left; nothing is started or ended before the first wish.

        record: promoted.json. output: the file that takes what the programs print. env: what they see in their
        environment, besides this process's own.
        """
        self._path = record
        self._output = output
        self._programs = programs
        self._env = dict(env)
        self._boot = BOOT_ID.read_text().strip()
        self._troubles: dict[str, str] = {}
        self._record_trouble = ""
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wish: tuple[bool, int] | None = None  # whether they shall run, and in which epoch; None: as it is
        self._ended = False
        self._epoch = 0
        self._courses = [_Course(begun) for begun in self._read()]
        self._troubles |= {one.begun.program.title: one.begun.trouble for one in self._courses if one.begun.trouble}
        self.left = [course.begun.program.title for course in self._courses]
        """What an earlier head had begun, by name."""
        self._thread = threading.Thread(target=self._run, name="on_promote", daemon=True)
        self._thread.start()

    def promote(self, epoch: int) -> None:
        """Let them run: this head is the primary, of that epoch."""
        self._wish_for((True, epoch))

    def demote(self) -> None:
        """Let none of them run: this head is not the primary."""
        self._wish_for((False, 0))

    def fares(self) -> list[Fare]:
        """How each of them fares, in order; what earlier settings had begun, too."""
        with self._lock:
            begun = {course.begun.program: course for course in self._courses}
            known = [*self._programs, *(program for program in begun if program not in self._programs)]
            return [self._fare(program, begun.get(program)) for program in known]

    @property
    def troubles(self) -> list[str]:
        """What is wrong, a line each."""
        with self._lock:
            told = [f"on_promote {name} {trouble}: see {self._output}" for name, trouble in self._troubles.items()]
            return told + ([self._record_trouble] if self._record_trouble else [])

    @property
    def are_down(self) -> bool:
        """Whether none of them runs."""
        with self._lock:
            return not self._courses

    def close(self, timeout_s: float) -> bool:
        """End them all in reverse, and the thread; say whether that was done within this time."""
        self.demote()
        with self._lock:
            self._ended = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        os.close(self._wake)
        return True

    def _wish_for(self, wish: tuple[bool, int]) -> None:
        with self._lock:
            if wish == self._wish:
                return
            self._wish = wish
        os.eventfd_write(self._wake, 1)

    def _fare(self, program: Program, course: _Course | None) -> Fare:
        trouble = self._troubles.get(program.title, "")
        if course is None:
            return Fare(program.title, "down", trouble)
        return Fare(program.title, "failed" if trouble and course.begun.state == "up" else course.begun.state, trouble)

    # The thread.

    def _run(self) -> None:
        try:
            self._follow()
        except Exception as error:
            log.exception("on_promote ends")
            with self._lock:
                self._record_trouble = f"on_promote ended by a fault of beo itself ({error}): restart this head"

    def _follow(self) -> None:
        """Do what is wished for, one thing after another."""
        while True:
            with self._lock:
                wish, ended = self._wish, self._ended
            if wish is not None and wish[0]:
                self._epoch = wish[1]
            if wish is None:
                self._wait([], None)
            elif not wish[0] or not self._fits():
                if self._courses:
                    self._take_down(self._courses[-1])
                elif ended:
                    return
                else:
                    self._wait([], None)
            elif len(self._courses) < len(self._programs):
                self._bring_up(self._programs[len(self._courses)])
            else:
                self._watch()

    def _fits(self) -> bool:
        """Whether what was begun is what is to run: an earlier head may have had other settings, or died in between."""
        begun = [course.begun for course in self._courses]
        return all(
            one.program == wanted and one.state == "up" for one, wanted in zip(begun, self._programs, strict=False)
        ) and len(begun) <= len(self._programs)

    def _bring_up(self, program: Program) -> None:
        """Begin a program: it counts as begun, whatever comes of it, and is stopped on the way down."""
        course = _Course(Begun(program, "starting"))
        self._trouble(program, "")
        key = "run" if program.run else "start"
        if not self._begin(course, key, "up" if program.run else "starting"):
            self._change(course, "up")
            return
        log.info("on_promote %s: started", program.title, extra={"pid": course.begun.pid})
        if program.run:
            return
        how = self._finish(course, program.timeout_s, may_be_cut=True)
        if how:
            self._trouble(program, f"didn't start: it {how}")
        self._change(course, "up")

    def _take_down(self, course: _Course) -> None:
        """End a program, and strike it off the record."""
        program = course.begun.program
        self._end(course)  # the `run`, or the start or stop of an earlier head that was killed meanwhile
        if program.stop:
            if not self._begin(course, "stop", "stopping"):
                self._strike(course)
                return
            how = self._finish(course, program.timeout_s, may_be_cut=False)
            self._trouble(program, f"didn't stop: it {how}" if how else "")
        log.info("on_promote %s: stopped", program.title)
        self._strike(course)

    def _watch(self) -> None:
        """Keep the `run` programs running, until something changes."""
        now_s = time.monotonic()
        kept = [course for course in self._courses if course.begun.program.run]
        for course in kept:
            if course.process is None:
                self._adopt_or_restart(course, now_s)
            elif course.ends and now_s >= course.since_s + HEALTHY_S:
                course.ends = 0
                self._trouble(course.begun.program, "")
        running = {course.process.fileno(): course for course in kept if course.process}
        due_s = [course.since_s + HEALTHY_S if course.process else course.due_s for course in kept if course.ends]
        for fd in self._wait([*running], min(due_s) - now_s if due_s else None):
            course = running[fd]
            _signal_group(course.begun.pid, signal.SIGKILL)  # what it left behind
            how = _how(course)
            course.fail(time.monotonic())
            self._trouble(course.begun.program, f"{how}, {course.ends} times in a row" if course.ends > 1 else how)

    def _adopt_or_restart(self, course: _Course, now_s: float) -> None:
        begun = course.begun
        if begun.pid and not course.ends and (process := _find(begun)):
            course.process, course.since_s = process, now_s
            log.info("on_promote %s: found", begun.program.title, extra={"pid": begun.pid})
        elif now_s >= course.due_s:
            if self._begin(course, "run", "up"):
                log.info("on_promote %s: started again", begun.program.title, extra={"pid": course.begun.pid})
            else:
                course.fail(now_s)

    def _begin(self, course: _Course, key: str, state: State) -> bool:
        """Start a command of a program, with its pid on record before it does anything; say whether it runs."""
        program = course.begun.program
        words = program.words(key)
        env = {**os.environ, **self._env, "BEO_EPOCH": str(self._epoch)}
        if not shutil.which(words[0], path=env.get("PATH")):
            self._trouble(program, f"can't {key}: there is no program {words[0]!r}")
            return False
        try:
            self._note(f"{key} {program.title}: {' '.join(words)}")
            pid, gate = _spawn(words, env, self._output)
        except OSError as error:
            self._trouble(program, f"can't {key}: {reason(error)}")
            return False
        try:
            course.process = Process(pid)
            course.since_s = time.monotonic()
            written = self._change(course, state, pid)
            if written or key == "stop":  # a stop that is not on record is done again: better twice than never
                os.write(gate, b"go\n")
        finally:
            os.close(gate)  # one that isn't let through ends here
        if not written and key != "stop":
            course.process.wait(PROGRAM_KILL_S)
            _how(course)
            self._trouble(program, f"can't {key}: its record can't be written")
        return course.process is not None

    def _finish(self, course: _Course, timeout_s: float, *, may_be_cut: bool) -> str:
        """Wait for the end of a command that returns; return what went wrong, "" for nothing.

        may_be_cut: it is ended when nobody wants it any more.
        """
        assert course.process
        deadline_s = time.monotonic() + timeout_s
        why = ""
        while not course.process.wait(0):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or (may_be_cut and not self._is_wanted()):
                why = (
                    f"took longer than {timeout_s:g} s" if left_s <= 0 else "was cut short: this is no primary any more"
                )
                self._end_process(course, PROGRAM_KILL_S)
                break
            self._wait([course.process.fileno()], left_s)
        how = _how(course) if course.process else ""
        return why or ("" if how == "exited with 0" else how)

    def _end(self, course: _Course) -> None:
        """End what runs of a program."""
        if course.process is None and course.begun.pid:
            course.process = _find(course.begun)
        if course.process is not None:
            timeout_s = course.begun.program.timeout_s if course.begun.program.run else PROGRAM_KILL_S
            self._end_process(course, timeout_s)

    def _end_process(self, course: _Course, timeout_s: float) -> None:
        """SIGTERM to a command and its children, SIGKILL to what is left of them after a while."""
        assert course.process
        _signal_group(course.process.pid, signal.SIGTERM)
        _signal_group(course.process.pid, signal.SIGCONT)
        if not course.process.wait(timeout_s):
            log.warning("on_promote %s: killed after %g s", course.begun.program.title, timeout_s)
        _signal_group(course.process.pid, signal.SIGKILL)
        course.process.wait(PROGRAM_KILL_S)
        _how(course)

    def _is_wanted(self) -> bool:
        with self._lock:
            return self._wish is not None and self._wish[0]

    def _wait(self, fds: list[int], timeout_s: float | None) -> list[int]:
        """Wait until one of these is ready, a wish comes, or the time is over; return those that are."""
        poll = select.poll()
        for fd in (self._wake, *fds):
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)]
        if self._wake in ready:
            with suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        return [fd for fd in ready if fd != self._wake]

    # What is kept.

    def _change(self, course: _Course, state: State, pid: int = 0) -> bool:
        program = course.begun.program
        trouble = self._troubles.get(program.title, "") if program.start else ""
        begun = Begun(program, state, pid, started(pid) if pid else "", trouble)
        with self._lock:
            course.begun = begun
            if course not in self._courses:
                self._courses.append(course)
        return self._write()

    def _strike(self, course: _Course) -> None:
        with self._lock:
            self._courses.remove(course)
        self._write()

    def _write(self) -> bool:
        record = Record(self._boot, self._epoch, tuple(course.begun for course in self._courses))
        try:
            if record.begun:
                write_durably(self._path, msgspec.json.encode(record) + b"\n", 0o600)
            else:
                self._path.unlink(missing_ok=True)
            trouble = ""
        except OSError as error:
            trouble = f"can't write {self._path} ({reason(error)}): make room, or the next head can't end what runs"
            log.error("%s", trouble)
        with self._lock:
            self._record_trouble = trouble
        return not trouble

    def _read(self) -> tuple[Begun, ...]:
        """Return what an earlier head began and never ended; nothing where the machine was started anew since."""
        try:
            with self._path.open("rb") as file:
                record = msgspec.json.decode(file.read(RECORD_SIZE_MAX_BYTES), type=Record)
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.MsgspecError) as error:
            self._record_trouble = (
                f"{self._path} is damaged ({reason(error)}): end by hand what an earlier head started"
            )
            log.error("%s", self._record_trouble)
            return ()
        if record.boot != self._boot:
            return ()  # nothing of that runs any more
        self._epoch = record.epoch
        return record.begun

    def _trouble(self, program: Program, trouble: str) -> None:
        with self._lock:
            before = self._troubles.pop(program.title, "")
            if trouble:
                self._troubles[program.title] = trouble
        if trouble and trouble != before:
            log.warning("on_promote %s %s", program.title, trouble)

    def _note(self, line: str) -> None:
        fd = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} beo: {line}\n")


def _spawn(words: tuple[str, ...], env: Mapping[str, str], output: Path) -> tuple[int, int]:
    """Start a command behind the gate, in a session of its own; return its pid and what opens the gate."""
    inner, outer = os.pipe()
    try:
        pid = os.posix_spawn(
            GATE[0],
            [*GATE, *words],
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, inner, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=_SIGNALS,
        )
    except OSError:
        os.close(outer)
        raise
    finally:
        os.close(inner)
    return pid, outer


def _find(begun: Begun) -> Process | None:
    """Return the process of a command that an earlier head started, if it still runs."""
    try:
        process = Process(begun.pid)
    except OSError:
        return None
    if not begun.ticks or started(begun.pid) != begun.ticks:
        process.close()
        return None
    return process


def _how(course: _Course) -> str:
    """Say how a command ended, and let go of it."""
    assert course.process
    process, course.process = course.process, None
    try:
        _, status = os.waitpid(process.pid, 0 if process.wait(0) else os.WNOHANG)
        code = os.waitstatus_to_exitcode(status)
    except ChildProcessError:
        return "ended"  # an earlier head's child
    finally:
        process.close()
    return f"exited with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
