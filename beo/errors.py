"""The errors of beo, and the exit codes that they become.

An error says three things: *what* happened, *why* (in brackets, optional) and the *cure* (what to do next). Errors are
data too: the head sends one as a plain dict and the client raises the same class, so a caller handles a refused job the
same way whether the refusal came from this process or from the other end of the network.
"""

from __future__ import annotations

TYPE_CHECKING = False  # every process imports this file: it imports nothing, typing included, to start sooner
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import ClassVar

__all__ = [
    "EXIT_CONFLICT",
    "EXIT_FAILED",
    "EXIT_HALTED",
    "EXIT_INTERNAL",
    "EXIT_NO_HEAD",
    "EXIT_OK",
    "EXIT_REFUSED",
    "EXIT_TIMED_OUT",
    "EXIT_UNRESTORED",
    "EXIT_USAGE",
    "BeoError",
    "Conflict",
    "DamagedJournal",
    "Internal",
    "NoHead",
    "NotFound",
    "Refused",
    "TimedOut",
    "UsageError",
    "from_dict",
    "nearest",
    "reason",
]

# Where a number has a meaning elsewhere, beo keeps it: 1 and 2 are the shell's, 69-77 sysexits.h's, 124 timeout(1)'s.
EXIT_OK = 0
EXIT_FAILED = 1  # a plain failure that nothing below describes better
EXIT_USAGE = 2  # the request itself is wrong: asking again unchanged will fail again
EXIT_NO_HEAD = 69  # EX_UNAVAILABLE: no head answers
EXIT_INTERNAL = 70  # EX_SOFTWARE: a fault of beo or of what it keeps on disk, not of the caller
EXIT_CONFLICT = 75  # EX_TEMPFAIL: not now; the same request may succeed later
EXIT_HALTED = 85  # a program took a checkpoint and waits to go on: what HTCondor's jobs say by convention
EXIT_UNRESTORED = 86  # too much of a program's checkpoint is lost: it has done nothing, and could begin with a copy
EXIT_REFUSED = 77  # EX_NOPERM: this caller may not do that
EXIT_TIMED_OUT = 124  # as timeout(1) says it

# An error's parts travel over the wire and onto a terminal: a part longer than this is cut, so that a fault which
# quotes its input cannot flood either.
PART_LIMIT_CHARS = 4096

NEAREST_LIMIT = 3  # more suggestions than this read as noise


class BeoError(Exception):
    """Any failure that beo reports on purpose; catch this to catch them all.

    `what` happened, `why` and the `cure` are kept apart, so that a caller can test or show each; `str()` joins them as
    `what (why): cure`. `exit_code` is what the command line exits with.
    """

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, what: str, why: str = "", cure: str = "") -> None:
        """Keep the three parts, each cut to `PART_LIMIT_CHARS`."""
        self.what = what[:PART_LIMIT_CHARS]
        self.why = why[:PART_LIMIT_CHARS]
        self.cure = cure[:PART_LIMIT_CHARS]
        super().__init__(self.what, self.why, self.cure)  # args rebuild the error, so it pickles and copies

    def __str__(self) -> str:
        """Join the parts as `what (why): cure`, leaving out what is empty."""
        reason = f" ({self.why})" if self.why else ""
        cure = f": {self.cure}" if self.cure else ""
        return f"{self.what}{reason}{cure}"

    def to_dict(self) -> dict[str, str]:
        """Return the error as plain text parts; `from_dict` is the way back."""
        return {"kind": type(self).__name__, "what": self.what, "why": self.why, "cure": self.cure}


class UsageError(BeoError):
    """The request is wrong in itself: a bad option, a bad spec, an impossible size."""

    exit_code = EXIT_USAGE


class NotFound(BeoError):
    """No such job, node or file; the cure lists the nearest names that do exist."""

    exit_code = EXIT_USAGE

    @classmethod
    def among(cls, noun: str, name: str, known: Iterable[str], cure: str = "") -> NotFound:
        """Return the error for `name`, naming the nearest of `known`; `cure` is used where nothing is near."""
        near = nearest(name, known)
        return cls(f"no {noun} {name!r}", cure=f"did you mean {' or '.join(near)}?" if near else cure)


class NoHead(BeoError):
    """No head answers at the addresses tried."""

    exit_code = EXIT_NO_HEAD


class TimedOut(BeoError):
    """The wait ended before what was waited for."""

    exit_code = EXIT_TIMED_OUT


class Refused(BeoError):
    """This caller may not do that: another user's job, or a foreign key."""

    exit_code = EXIT_REFUSED


class Conflict(BeoError):
    """Not now: something is already running, too full or changing; the same request may succeed later."""

    exit_code = EXIT_CONFLICT


class DamagedJournal(BeoError):
    """The journal holds a record that should be whole and is not."""

    exit_code = EXIT_INTERNAL


class Internal(BeoError):
    """A fault of beo's own; the caller did nothing wrong."""

    exit_code = EXIT_INTERNAL


_KINDS: dict[str, type[BeoError]] = {
    kind.__name__: kind
    for kind in (BeoError, UsageError, NotFound, NoHead, TimedOut, Refused, Conflict, DamagedJournal, Internal)
}


def from_dict(parts: Mapping[str, object]) -> BeoError:
    """Return the error that `to_dict` made into `parts`.

    It never fails: it reads what another machine sent, perhaps of another version, so an unknown kind becomes a plain
    `BeoError` and a part that is missing or not text becomes empty.
    """

    def text(name: str, default: str = "") -> str:
        value = parts.get(name)
        return value if isinstance(value, str) else default

    kind = _KINDS.get(text("kind"), BeoError)
    return kind(text("what", "an error without a description"), text("why"), text("cure"))


def reason(error: BaseException) -> str:
    """Return why something failed, in lower case; of an OSError without its number and path, which beo says itself."""
    told = error.strerror if isinstance(error, OSError) else ""
    return (told or str(error)).lower()


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to `NEAREST_LIMIT` of `known` that read like `name`, the nearest first."""
    import difflib  # here, because only a mistake needs it and every command would pay for it

    return difflib.get_close_matches(name, list(known), n=NEAREST_LIMIT, cutoff=0.6)
