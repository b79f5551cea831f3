"""A person at a terminal, for tests: types, reads the screen, resizes the window, closes it.

with Person([*BEO, "run", "--pty", "bash"], env) as person:
    person.type("echo hello\\n")
    person.sees("hello")
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 30.0


class Person:
    """A program as the only one of a session on a pseudo-terminal, which controls it; ended with the `with` block."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], rows: int = 24, columns: int = 80) -> None:
        self.screen = b""
        """All that was shown."""
        self._read_to = 0
        self._status: int | None = None
        self.fd, self.slave = os.openpty()
        self.resize(rows, columns)
        self.modes = termios.tcgetattr(self.slave)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
                for number in (0, 1, 2):
                    os.dup2(self.slave, number)
                os.chdir(ROOT)
                os.execvpe(argv[0], list(argv), env)
            finally:
                os._exit(127)

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *failure: object) -> None:
        if failure[0]:
            print(f"--- the screen:\n{self.screen.decode(errors='replace')}", file=sys.stderr)
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.close()

    def close(self) -> None:
        """Close the window."""
        for fd in (self.fd, self.slave):
            if fd >= 0:
                os.close(fd)
        self.fd = self.slave = -1

    def resize(self, rows: int, columns: int) -> None:
        """Drag the window to another size."""
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        """Press keys."""
        data = text.encode() if isinstance(text, str) else text
        while data:
            data = data[os.write(self.fd, data) :]

    def look(self, timeout_s: float = 0.05) -> bool:
        """Take in what is shown now; False when nothing will be shown any more."""
        if select.select([self.fd], [], [], timeout_s)[0]:
            try:
                self.screen += os.read(self.fd, 1 << 16)
            except OSError:
                return False
        return True

    def sees(self, pattern: str) -> str:
        """Look until the pattern is on the screen, behind where it was found the last time; the text that matched."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not (match := re.compile(pattern.encode(), re.DOTALL).search(self.screen, self._read_to)):
            assert time.monotonic() < deadline_s, f"{pattern!r} is not on the screen: {self.screen[self._read_to :]!r}"
            self.look()
        self._read_to = match.end()
        return match[0].decode()

    def left(self) -> int:
        """Wait for the end of the program, and return its exit code (negative: the signal)."""
        deadline_s = time.monotonic() + PATIENCE_S
        while self._status is None:
            assert time.monotonic() < deadline_s, f"it doesn't end: {self.screen[self._read_to :]!r}"
            if self.fd >= 0:
                self.look(0.01)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        while self.fd >= 0 and select.select([self.fd], [], [], 0)[0] and self.look(0):
            pass
        return self._status

    @property
    def is_raw(self) -> bool:
        """Whether the terminal hands over each key as it is."""
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal's modes are what they were before the program."""
        return termios.tcgetattr(self.slave) == self.modes
