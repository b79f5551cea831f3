"""The holder: between a warden and a program that may be moved, the one process that doesn't travel.

    python -I holder.py FOLDER [--as UID:GID[:GROUP...]] [--env FILE] [--criu PATH] -- PROGRAM ...

Runs the program, or lets it go on where `criu.dump` has left it in FOLDER; passes on signals, and ends as it ends, with
85 where it was dumped. A warden needs to know nothing of CRIU: what it starts is a rank like any other. The program's
processes are numbered from `FIRST_PID` on, so that those of a new warden never have the number of one that moves in.

It is root's. So its own environment must not be the job's, which could name a library to load: that comes in FILE, as
`NAME=VALUE` and a NUL byte each; without FILE the program gets the holder's own.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

if __name__ == "__main__":  # started by path: the package is two folders up
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from pathlib import Path

from beo.errors import EXIT_FAILED, EXIT_HALTED, BeoError, UsageError
from beo.worker import criu, ranks

FIRST_PID = 1000
"""More than a warden, its holders and a criu at work have used before the program is there."""
FILES_MAX = 1 << 20
FORWARDED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGWINCH,
)
_PR_SET_CHILD_SUBREAPER = 36
_LAST_PID = "/proc/sys/kernel/ns_last_pid"


def main(words: list[str]) -> int:
    """Hold one program until its end."""
    try:
        asked = _understand(words)
        return _leave(asked.folder, hold(asked))
    except BeoError as error:
        print(f"beo: {error}", file=sys.stderr)
        return error.exit_code
    except ranks.LaunchError as error:
        print(f"beo: {error.text}", file=sys.stderr)
        return error.status


class Asked:
    """What the holder was told: where images are, whose program it is, what it has in its environment, and what to run.

    criu: see `criu.find`.
    """

    def __init__(self, folder: str, argv: list[str]) -> None:
        self.folder = Path(folder)
        self.argv = argv
        self.person = ranks.Person(None, None, None)
        self.env = dict(os.environ)
        self.criu = ""


def hold(asked: Asked) -> int:
    """Start the program or let it go on, and wait for its end; its status, as `os.wait` has it."""
    folder = asked.folder
    os.closerange(criu.STANDARD, FILES_MAX)  # nobody shall inherit what doesn't travel
    own_null()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    root = 0
    pending: list[int] = []

    def forward(number: int, _: object) -> None:
        if not root:
            pending.append(number)  # it is passed on once there is somebody
            return
        try:
            os.killpg(root, number)
        except ProcessLookupError:
            pass

    for each in FORWARDED:
        signal.signal(each, forward)
    if criu.is_sealed(folder):
        root = criu.restore(folder, criu=asked.criu)
        criu.forget(folder)  # it has gone on: what it does from now on must not be done again
    else:
        start_above(FIRST_PID)
        (folder / criu.DUMPED).unlink(missing_ok=True)
        root = ranks.fork(asked.argv, asked.env, (0, 1, 2), os.getcwd(), asked.person, None, "beo: ")
    for number in pending:
        forward(number, None)
    while True:
        pid, status = os.wait()
        if pid == root:
            return status


def own_null() -> None:
    """Open anew what standard descriptors have of /dev/null: the agent opened it outside these walls, where CRIU can't
    find it again by its name."""
    for number in range(criu.STANDARD):
        try:
            is_null = os.path.samestat(os.fstat(number), os.stat(os.devnull))
        except OSError:
            is_null = True  # it is closed: the program shall not get something else in its place
        if is_null:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)


def start_above(number: int) -> None:
    """Let processes begun in this PID namespace from now on have higher numbers; nothing where they have already."""
    with open(_LAST_PID, "r+") as file:
        if int(file.read()) < number:
            file.seek(0)
            file.write(str(number))


def _leave(folder: Path, status: int) -> int:
    """The exit code for how the program ended; by its signal, if it was one."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    if code == -signal.SIGKILL and (folder / criu.DUMPED).exists():
        return EXIT_HALTED
    if -code in FORWARDED:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return EXIT_FAILED


def _understand(words: list[str]) -> Asked:
    usage = UsageError("usage: holder.py FOLDER [--as UID:GID[:GROUP...]] [--env FILE] [--criu PATH] -- PROGRAM ...")
    if "--" not in words:
        raise usage
    at = words.index("--")
    head, argv = words[:at], words[at + 1 :]
    if not argv or len(head) % 2 == 0:
        raise usage
    asked = Asked(head[0], argv)
    try:
        for option, value in zip(head[1::2], head[2::2], strict=True):
            if option == "--as":
                uid, gid, *groups = (int(number) for number in value.split(":"))
                asked.person = ranks.Person(uid, gid, groups)
            elif option == "--env":
                lines = os.fsdecode(Path(value).read_bytes()).split("\0")
                asked.env = dict(line.split("=", 1) for line in lines if line)
            elif option == "--criu":
                asked.criu = value
            else:
                raise usage
    except ValueError:
        raise usage from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
