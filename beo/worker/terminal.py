"""A pseudo-terminal for rank 0 of an interactive job: the warden holds one end, the rank has the other as 0, 1, 2."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from beo.worker.ranks import LaunchError, Person

TYPE_CHECKING = False
if TYPE_CHECKING:
    from beo.worker.pipes import Input, Output

TERMINAL_NOTICE_S = 0.002
"""Shortest time between two notices of new output: who types waits for each echo."""
HANG_UP_S = 1.0
"""Between SIGHUP, for which a program in a terminal has its own way to end, and SIGTERM."""
WRITABLE_BY_GROUP = 0o620
"""As login leaves a terminal: `write` and `wall` go through the group that the kernel's file system gives it."""

_WINDOW = struct.Struct("HHHH")  # rows, columns and twice pixels, which nobody asks for
_IUTF8 = 0o40000  # erase a whole character, not a byte of it; Python has no name for it


class Terminal:
    """window: its size, (rows, columns). What the rank prints goes to `output`, what it reads comes from `input`."""

    def __init__(self, window: tuple[int, int], output: Output, input: Input) -> None:
        self.window = window
        self._output = output
        self._input = input

    def open(self, rank: int, person: Person) -> list[int]:
        """Make it for a rank of this person: its 0, 1 and 2, for the caller to close. LaunchError if there is none."""
        try:
            ours, theirs = os.openpty()
        except OSError as error:
            text = f"this node has no pseudo-terminal to give ({error.strerror}): mount devpts, or leave out --pty"
            raise LaunchError(126, text) from None
        try:
            if not person.is_us:
                os.fchown(theirs, person.uid, -1)
            os.fchmod(theirs, WRITABLE_BY_GROUP)
            modes = termios.tcgetattr(theirs)
            modes[0] |= _IUTF8
            termios.tcsetattr(theirs, termios.TCSANOW, modes)
            self._output.adopt(rank, 1, ours)
            self._input.adopt(os.dup(ours))  # the loop calls one function per descriptor
            self.resize(self.window)
        except OSError as error:
            os.close(theirs)
            raise LaunchError(126, f"cannot set up a pseudo-terminal ({error.strerror})") from None
        return [theirs, os.dup(theirs), os.dup(theirs)]

    def resize(self, window: tuple[int, int]) -> None:
        """Take another size; the kernel tells the program in the foreground by SIGWINCH."""
        if not self._input.closed:
            self.window = window
            fcntl.ioctl(self._input.fileno(), termios.TIOCSWINSZ, _WINDOW.pack(*window, 0, 0))

    @staticmethod
    def control(fd: int) -> None:
        """Make `fd` the controlling terminal of this process, which leads a session without one."""
        fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
