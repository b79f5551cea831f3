"""The holder: between a warden and a program that may be moved, the one process that doesn't travel.

    python -I holder.py FOLDER [--as UID:GID[:GROUP...]] -- PROGRAM ...

Runs the program, or lets it go on where `criu.dump` has left it in FOLDER; passes on signals, and ends as it ends, with
85 where it was dumped. A warden needs to know nothing of CRIU: what it starts is a rank like any other. The program's
processes are numbered from `FIRST_PID` on, so that those of a new warden never have the number of one that moves in.
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
        folder, person, argv = _understand(words)
        return _leave(folder, hold(folder, person, argv))
    except BeoError as error:
        print(f"beo: {error}", file=sys.stderr)
        return error.exit_code
    except ranks.LaunchError as error:
        print(f"beo: {error.text}", file=sys.stderr)
        return error.status


def hold(folder: Path, person: ranks.Person, argv: list[str]) -> int:
    """Start the program or let it go on, and wait for its end; its status, as `os.wait` has it."""
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

    for number in FORWARDED:
        signal.signal(number, forward)
    if criu.is_sealed(folder):
        root = criu.restore(folder)
        criu.forget(folder)  # it has gone on: what it does from now on must not be done again
    else:
        start_above(FIRST_PID)
        (folder / criu.DUMPED).unlink(missing_ok=True)
        root = ranks.fork(argv, dict(os.environ), (0, 1, 2), os.getcwd(), person, None, "beo: ")
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
    signal.signal(-code, signal.SIG_DFL) if code != -signal.SIGKILL else None
    os.kill(os.getpid(), -code)
    return EXIT_FAILED


def _understand(words: list[str]) -> tuple[Path, ranks.Person, list[str]]:
    usage = UsageError("usage: holder.py FOLDER [--as UID:GID[:GROUP...]] -- PROGRAM ...")
    head, argv = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else ([], [])
    if not argv or len(head) not in (1, 3) or (len(head) == 3 and head[1] != "--as"):
        raise usage
    if len(head) == 1:
        return Path(head[0]), ranks.Person(None, None, None), argv
    try:
        uid, gid, *groups = (int(number) for number in head[2].split(":"))
    except ValueError:
        raise usage from None
    return Path(head[0]), ranks.Person(uid, gid, groups), argv


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
