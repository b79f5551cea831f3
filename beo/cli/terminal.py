"""This program's terminal in the hands of an interactive job: raw, its size passed on, with an escape, and put back."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterable
from contextlib import suppress

from beo.cli.watch import Printer
from beo.errors import UsageError
from beo.follow import NO_WINDOW, PIECE_BYTES, Source
from beo.records import STDOUT, Record

ESCAPE = ord("~")
LEAVE, SUSPEND, HELP = ord("."), 0x1A, ord("?")
ESCAPES = (
    ("~.", "end the session, also when no head answers"),
    ("~^Z", "suspend this program; 'fg' comes back"),
    ("~?", "print this"),
    ("~~", "one ~"),
)
LINE_ENDS = b"\r\n"

# What full-screen programs switch on or off and a killed one leaves so: number of the mode -> as a terminal has it.
MODES = {
    b"1": b"l",  # arrows for applications
    b"7": b"h",  # wrap lines
    b"25": b"h",  # show the cursor
    b"47": b"l",  # the other screen
    b"1047": b"l",
    b"1049": b"l",
    b"1000": b"l",  # the mouse
    b"1002": b"l",
    b"1003": b"l",
    b"1004": b"l",  # focus
    b"1005": b"l",
    b"1006": b"l",
    b"1015": b"l",
    b"2004": b"l",  # brackets around what is pasted
}
SEQUENCE_BYTES_MAX = 64  # of one that begins in one piece of output and ends in the next
_SWITCH = re.compile(rb"\x1b\[\?([0-9;]+)([hl])")


class Left(Exception):
    """The user has typed the escape that ends the session."""


class Escapes:
    """Finds escapes at the beginnings of lines in what is typed, in whatever pieces it comes."""

    def __init__(self) -> None:
        """Begin: that is the beginning of a line, too."""
        self._at_start = True
        self._begun = False  # a ~ was typed at the beginning of a line

    def feed(self, data: bytes) -> tuple[bytes, list[int]]:
        """Return what is for the job, and the escapes that there were: LEAVE, SUSPEND, HELP."""
        kept = bytearray()
        found = []
        for byte in data:
            if self._begun:
                self._begun = False
                if byte in (LEAVE, SUSPEND, HELP):
                    found.append(byte)
                    self._at_start = True
                    continue
                if byte != ESCAPE:
                    kept.append(ESCAPE)
            elif byte == ESCAPE and self._at_start:
                self._begun = True
                continue
            kept.append(byte)
            self._at_start = byte in LINE_ENDS
        return bytes(kept), found


class Modes:
    """Which modes of the terminal a job's output has changed."""

    def __init__(self) -> None:
        """Begin with a terminal as it should be."""
        self._changed: dict[bytes, None] = {}
        self._tail = b""

    def see(self, data: bytes) -> None:
        """Look at output."""
        data = self._tail + data
        for match in _SWITCH.finditer(data):
            for number in match[1].split(b";"):
                if MODES.get(number, match[2]) == match[2]:
                    self._changed.pop(number, None)
                else:
                    self._changed[number] = None
        begun = data.rfind(b"\x1b", max(0, len(data) - SEQUENCE_BYTES_MAX))
        self._tail = b"" if begun < 0 or _SWITCH.match(data, begun) else data[begun:]

    def undo(self) -> bytes:
        """Return what puts the terminal back."""
        back = b"".join(b"\x1b[?%b%b" % (number, MODES[number]) for number in reversed(self._changed))
        self._changed.clear()
        return back and back + b"\x1b[m"


class Screen(Printer):
    """Prints a job's terminal on this one. A terminal that has gone ends the session, as a hang-up."""

    def __init__(self) -> None:
        """Take standard output and standard error."""
        super().__init__()
        self._modes = Modes()
        self._gone = False

    def write(self, found: Iterable[Record]) -> None:
        """Print records; what was printed has left this process when it returns."""
        for _, fd, data in found:
            self._modes.see(data)
            self._print(data if fd == STDOUT else data.replace(b"\n", b"\r\n"))  # beo's own word comes as lines

    def put_back(self) -> None:
        """Undo what the job has done to the terminal and left so."""
        self._print(self._modes.undo())

    def _print(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        except OSError:
            self._gone = True
            os.kill(os.getpid(), signal.SIGHUP)


class Terminal(Source):
    """A terminal as the source of a job's input: raw within its `with` block, and as it was behind it, come what may.

    Every key goes to the job, ^C and ^Z too, but for the `ESCAPES`.
    """

    def __init__(self, fd: int, screen: Screen) -> None:
        """Take the terminal, and what the job prints on; raises `UsageError` where the descriptor is no terminal."""
        if not os.isatty(fd):
            why = "standard input is none"
            raise UsageError("--pty takes a terminal", why, "run it from one ('ssh -t' makes one), or leave out --pty")
        super().__init__(fd)
        self.changed: Callable[[], object] = lambda: None
        """Called by a signal handler when the terminal's size is another."""
        self._screen = screen
        self._escapes = Escapes()
        self._raw = False
        self._window = NO_WINDOW
        self._handlers = {
            signal.SIGWINCH: self._tell_change,
            signal.SIGTSTP: self._suspend,
            signal.SIGCONT: self._make_raw,
        }

    @property
    def window(self) -> tuple[int, int]:
        """The present (rows, columns).

        The kernel is asked each time: of two handlers of SIGWINCH, one within the other, the later one ends first.
        """
        with suppress(OSError):
            columns, rows = os.get_terminal_size(self.fd)
            self._window = rows, columns
        return self._window

    def __enter__(self) -> Terminal:
        """Make the terminal raw."""
        self._before = termios.tcgetattr(self.fd)
        self._handlers_before = {number: signal.signal(number, new) for number, new in self._handlers.items()}
        self._make_raw()
        return self

    def __exit__(self, *_: object) -> None:
        """Make the terminal what it was."""
        self._screen.put_back()
        self._put_back()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def read(self) -> bytes | None:
        """Return what was typed for the job; None, and a SIGHUP to this program, when the terminal is no more.

        Raises `Left` where the user asks for an end.
        """
        try:
            data = os.read(self.fd, PIECE_BYTES)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            os.kill(os.getpid(), signal.SIGHUP)
            return None
        kept, found = self._escapes.feed(data)
        for escape in found:
            if escape == LEAVE:
                raise Left
            if escape == SUSPEND:
                self._suspend()
            else:
                lines = ("", "At the beginning of a line:", *(f"  {keys:4} {what}" for keys, what in ESCAPES))
                print("\n".join(lines), file=sys.stderr, flush=True)
        return kept

    def _tell_change(self, *_: object) -> None:
        self.changed()

    def _make_raw(self, *_: object) -> None:
        """Make it raw, if it is ours to do so: whoever is in the background must leave the terminal alone."""
        self._raw = self._is_foreground()
        if self._raw:
            with suppress(termios.error):
                tty.setraw(self.fd, termios.TCSADRAIN)
            _end_lines_with("\r\n")

    def _put_back(self) -> None:
        if self._raw and self._is_foreground():
            with suppress(termios.error):  # it is no more
                termios.tcsetattr(self.fd, termios.TCSADRAIN, self._before)
        self._raw = False
        _end_lines_with("\n")

    def _suspend(self, *_: object) -> None:
        self._put_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(0, signal.SIGTSTP)  # as ^Z does: whoever waits for this program in the same job stops as well
        signal.signal(signal.SIGTSTP, self._suspend)
        self._make_raw()
        self.changed()

    def _is_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self.fd) == os.getpgrp()
        except OSError:  # not the terminal that controls this program: then nobody else uses it by job control
            return True


def _end_lines_with(end: str) -> None:
    """A raw terminal goes down at a newline and not to the left, so messages meanwhile need both."""
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.isatty():
        sys.stderr.reconfigure(newline=end)
