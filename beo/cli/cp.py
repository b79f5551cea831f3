"""The verb cp: files from and to a node's own disk, by an errand there, and from one place of the tree to another."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from typing import NamedTuple

import click
import msgspec

from beo import messages as m
from beo import spec, table
from beo.cli.files import copy_within
from beo.cli.group import Verb, option
from beo.cli.watch import Printer, Watch, follow_job
from beo.client import Cluster
from beo.contact import tell
from beo.errors import EXIT_FAILED, EXIT_OK, BeoError, Conflict, NotFound, Refused, UsageError
from beo.follow import Source
from beo.records import STDOUT, Record
from beo.worker.copier import DIRECTORY, FAILURES_MAX, Failure, StreamError, Taker, pack

REPORT_MAX_BYTES = 8 << 20  # a thousand failures with long paths
FAILURES_SHOWN_MAX = 20
CANCEL_PATIENCE_S = 2.0

_PLACE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252}):(.*)", re.DOTALL)


class Place(NamedTuple):
    """A path on a node; on this machine where `node` is empty."""

    node: str
    path: str

    def __str__(self) -> str:
        """As it was typed."""
        return self.beside(self.path)

    def beside(self, path: str) -> str:
        """A path of the same machine, as it would be typed."""
        return f"{self.node}:{path}" if self.node else path


def place(word: str) -> Place:
    """Read NODE:PATH, or a path of this machine: one in which a / comes before any colon."""
    match = _PLACE.fullmatch(word)
    if not match:
        return Place("", word)
    return Place(match[1], match[2] or ".")


@click.command(
    cls=Verb,
    examples=[
        ("beo cp node03:/tmp/out.csv .", "from a node's disk to here"),
        ("beo cp big.dat node03:/tmp/", "from here to a node's disk"),
        ("beo cp -r node03:/tmp/run node04:/tmp", "a directory, from node to node"),
        ("beo cp -r /runs/a /runs/b", "within the tree"),
    ],
    exits=[("1", "some files could not be read or written; the others are there")],
)
@click.argument("sources", nargs=-1, required=True, metavar="FILE...")
@click.argument("target", metavar="FILE")
@option("-r", "--recursive", is_flag=True, help="Directories too, with everything in them.")
@option("-v", "--verbose", is_flag=True, help="Print each name.")
def cp(sources: tuple[str, ...], target: str, recursive: bool, verbose: bool) -> int:
    """Copy files from or to a node's own disk, with your rights there, without ssh.

    FILE is NODE:PATH, or a path of this machine (one with a colon in its name is written ./a:b). A PATH that doesn't
    begin with / begins at your home on that node. Where no FILE names a node, all are paths in the tree, and the copy
    stays there; 'beo put' and 'beo get' go between the tree and this machine.

    Files go into the last FILE where that is a directory, else it is the copy's name. Modes and times of change are
    kept, owners are who runs this; symbolic links below a directory stay links. A file has its name only when all of it
    is there, so one that is interrupted leaves none that is cut.

    A copy takes no slot, and a node does four at a time. What comes from a node passes through the heads' disks, and is
    forgotten there a minute later: gigabytes that others need too are better written to the tree at once.
    """
    to = place(target)
    places = [place(word) for word in sources]
    if not to.node and not any(one.node for one in places):
        copy_within(sources, target, recursive, verbose)
        return EXIT_OK
    many = len(places) > 1
    groups: dict[str, list[str]] = {}
    for one in places:
        groups.setdefault(one.node, []).append(one.path)
    outcome = Outcome()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    for node, paths in groups.items():
        if not _copy(Place(node, ""), paths, to, many, recursive, verbose, outcome):
            break
    return outcome.end()


def _interrupt(number: int, _: object) -> None:
    sys.exit(128 + number)


class Outcome:
    """What was copied and what wasn't, of all that one command is about."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._made = 0
        self._failed = 0
        self._failures: list[tuple[Place, Failure]] = []

    def add(self, source: Place, target: Place, made: int, failed: int, failures: Iterable[Failure]) -> None:
        """Take what a taker says."""
        self._made += made
        self._failed += failed
        for failure in failures:
            if len(self._failures) < FAILURES_MAX:
                self._failures.append((source if failure[0] == "from" else target, failure))

    def end(self) -> int:
        """Tell what failed; return the exit code. Raises the error that says it, where that one thing is all."""
        if not self._failed:
            return EXIT_OK
        if self._failed == 1 and not self._made and self._failures:
            raise _error(*self._failures[0])
        for where, (_, path, _, why) in self._failures[:FAILURES_SHOWN_MAX]:
            tell(f"{where.beside(path)}: {why}")
        if self._failed > FAILURES_SHOWN_MAX:
            tell(f"and {self._failed - FAILURES_SHOWN_MAX} more")
        return EXIT_FAILED


def _error(where: Place, failure: Failure) -> BeoError:
    _, path, number, why = failure
    what = where.beside(path)
    on = f" on {where.node}" if where.node else ""
    if number == errno.EISDIR and why == DIRECTORY:
        return UsageError(f"{what} is a directory", "", "say -r to copy it with all in it")
    if number == errno.ENOENT:
        return NotFound(what, why, f"see what is there{on}: 'ls {os.path.dirname(path) or '.'}'")
    if number in (errno.EPERM, errno.EACCES, errno.EROFS):
        return Refused(what, why, f"see with 'ls -ld' whose it is{on}")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return Conflict(what, why, f"make room{on}: see 'df {os.path.dirname(path) or '.'}'")
    return Conflict(what, why, "")


# ---- one copy


def _copy(
    source: Place, paths: list[str], target: Place, many: bool, recursive: bool, verbose: bool, outcome: Outcome
) -> bool:
    """Copy from one machine to one, of which at least one is a node; False where nothing can be put there at all."""
    names = _tell if verbose else lambda path: None
    if not target.node:
        taker = Taker(target.path, many, names)
        with closing(taker):
            _Errand(source, ["get", "-r" if recursive else "-", *paths], _Feed(taker)).run()
        if not taker.done:
            raise Conflict(f"the copy from {source.node} was cut", "", "say it again")
        outcome.add(source, target, taker.made, taker.failed, taker.failures)
        return True
    report = _Report()
    errand = _Errand(target, ["put", "-d" if many else "-", target.path], report)
    if source.node:
        _between(source, ["get", "-r" if recursive else "-", *paths], errand)
    else:
        errand.feed(pack(paths, recursive, names))
        errand.run()
    told = report.told(target)
    outcome.add(source, target, told.made, told.failed, told.failures)
    if not told.done and not told.failed:
        raise Conflict(f"the copy to {target.node} was cut", "", "say it again")
    return not told.hopeless


def _tell(path: str) -> None:
    print(table.escape(path))


class _Stopped(Exception):
    """The other end has ended."""


class _Errand:
    """A copier on a node, and both ends of its streams here."""

    def __init__(self, where: Place, words: list[str], output: _Output) -> None:
        self._where = where
        self._words = words
        self._output = output
        self._read, self._write = os.pipe()
        self._feeder: threading.Thread | None = None
        self._failed: list[BaseException] = []
        self._stopping = False
        output.done = self.close_input

    def feed(self, pieces: Iterator[bytes]) -> None:
        """Let its input be these pieces."""

        def write() -> None:
            try:
                with open(self._write, "wb", buffering=0, closefd=False) as pipe:
                    for piece in pieces:
                        rest = memoryview(piece)
                        while rest:
                            rest = rest[pipe.write(rest) :]
            except BrokenPipeError:
                pass  # it has ended, and says why
            except BaseException as error:
                self._failed.append(error)
            finally:
                self.close_input()

        self._feeder = threading.Thread(target=write, daemon=True)
        self._feeder.start()

    def put(self, data: bytes) -> None:
        """Give it a piece of input; waits until there is room. Raises OSError where it takes no more."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._write, rest) :]

    def close_input(self) -> None:
        """Its input ends."""
        fd, self._write = self._write, -1
        if fd >= 0:
            os.close(fd)

    def close_reading(self) -> None:
        """Nobody reads that input any more."""
        fd, self._read = self._read, -1
        if fd >= 0:
            os.close(fd)

    def stop(self) -> None:
        """Let `run` end soon, wherever it is: by another thread."""
        self._stopping = True

    def _look(self) -> None:
        if self._stopping:
            raise _Stopped

    def run(self) -> None:
        """Have it done, from the submission to the end. Raises what went wrong, but what is in the report."""
        cluster = Cluster()
        number = 0
        try:
            number = cluster.submit(spec.check(self._spec()))
            watch = Watch(cluster, number, attached=True)
            view = follow_job(cluster, watch, self._output, source=Source(self._read), on_wake=self._look)
        except BaseException:
            if number:
                with suppress(BeoError):
                    cluster.cancel([str(number)], CANCEL_PATIENCE_S)
            raise
        finally:
            self.close_reading()
            if self._feeder:
                self._feeder.join()
            self.close_input()
            cluster.close()
        if self._failed:
            raise self._failed[0]
        self._check(view)

    def _spec(self) -> spec.JobSpec:
        words = tuple(self._words)
        return spec.JobSpec(
            argv=words, cwd="/", name="cp", requeue="never", stdin=True, attached=True, errand=self._where.node
        )

    def _check(self, view: m.JobView) -> None:
        if view.state != "done":
            why = table.escape(view.reason) or f"it ended as {view.state}"
            raise Conflict(f"the copy on {self._where.node} came to no end", why, f"see 'beo show {view.id}'")


class _Output(Printer):
    """What comes out of an errand. done: to be called when it has nothing more to do."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Callable[[], None] = lambda: None

    def write(self, found: Iterable[Record]) -> None:
        for _, fd, data in found:
            if fd == STDOUT:
                self.take(data)
            else:  # of a copier that fails as it shouldn't
                sys.stderr.write(table.escape(data.decode(errors="replace")))

    def close(self) -> None:
        pass

    def take(self, data: bytes) -> None:
        raise NotImplementedError


class _Feed(_Output):
    """For a taker here."""

    def __init__(self, taker: Taker) -> None:
        super().__init__()
        self._taker = taker

    def take(self, data: bytes) -> None:
        if self._taker.done or self._taker.hopeless:
            return
        try:
            self._taker.feed(data)
        except StreamError as error:
            raise BeoError("what comes from the node is no copy", str(error), "install the same beo there") from None
        if self._taker.done:
            self.done()
        elif self._taker.hopeless:
            raise _error(Place("", ""), self._taker.failures[-1])


class _Pass(_Output):
    """For another errand."""

    def __init__(self, other: _Errand) -> None:
        super().__init__()
        self._other = other

    def take(self, data: bytes) -> None:
        try:
            self._other.put(data)
        except OSError:  # it has ended, and says why
            raise _Stopped from None


class _Told(msgspec.Struct):
    done: bool
    hopeless: bool
    made: int
    failed: int
    failures: list[tuple[str, str, int, str]]


class _Report(_Output):
    """What a taker on a node says at its end."""

    def __init__(self) -> None:
        super().__init__()
        self._text = b""

    def take(self, data: bytes) -> None:
        self._text += data[: REPORT_MAX_BYTES - len(self._text)]

    def told(self, where: Place) -> _Told:
        """Return it."""
        try:
            return msgspec.json.decode(self._text, type=_Told)
        except msgspec.MsgspecError as error:
            what = f"what {where.node} says of the copy makes no sense"
            raise BeoError(what, str(error).lower(), "install the same beo there") from None


def _between(source: Place, words: list[str], taking: _Errand) -> None:
    """From node to node: what one packs, the other takes, and this program only passes it on."""
    giving = _Errand(source, words, _Pass(taking))
    failed: list[BaseException] = []

    def give() -> None:
        try:
            giving.run()
        except _Stopped:
            pass
        except BaseException as error:
            failed.append(error)
        finally:
            taking.close_input()

    thread = threading.Thread(target=give, daemon=True)
    thread.start()
    try:
        taking.run()
    except BaseException:
        giving.stop()
        raise
    finally:
        giving.close_input()
        thread.join()
    if failed:
        raise failed[0]
