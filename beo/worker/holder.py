"""The holder: between a warden and a program that may be moved, the one process that doesn't travel.

    python -I holder.py FOLDER [--as UID:GID[:GROUP...]] [--env FILE] [--criu PATH] [--apart FILE] -- PROGRAM ...

Runs the program, or lets it go on where `criu.dump` has left it in FOLDER; passes on signals, and ends as it ends, with
85 where it was dumped. A warden needs to know nothing of CRIU: what it starts is a rank like any other. The program's
processes are numbered from `FIRST_PID` on, so that those of a new warden never have the number of one that moves in.

It is root's. So its own environment must not be the job's, which could name a library to load: that comes in FILE, as
`NAME=VALUE` and a NUL byte each; without FILE the program gets the holder's own.

With --apart it is that of one rank of an MPI program: the rank, by its BEO_RANK, becomes a machine of its own
(apart.py; FILE says where the others are), and has its folder in FOLDER. The holder is two processes then, one on
either side. Its PMI socket is passed through, since one that comes from another network can't be dumped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import struct
import sys
import threading
import time

if __name__ == "__main__":  # started by path: the package is two folders up
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))]

from pathlib import Path

from beo.errors import EXIT_FAILED, EXIT_HALTED, BeoError, UsageError
from beo.worker import apart, contain, criu, ranks

FIRST_PID = 1000
"""More than a warden, its holders and a criu at work have used before the program is there."""
FILES_MAX = 1 << 20
PMI_BYTES = 64 << 10  # passed on at a time
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
_status = struct.Struct("=i")


def main(words: list[str]) -> int:
    """Hold one program until its end."""
    try:
        asked = _understand(words)
        return _leave(asked.folder, hold_apart(asked) if asked.places else hold(asked))
    except BeoError as error:
        print(f"beo: {error}", file=sys.stderr)
        return error.exit_code
    except ranks.LaunchError as error:
        print(f"beo: {error.text}", file=sys.stderr)
        return error.status


class Asked:
    """What the holder was told: where images are, whose program it is, what it has in its environment, and what to run.

    criu: see `criu.find`. rank, places: of a rank that is a machine of its own, see apart.py.
    """

    def __init__(self, folder: str, argv: list[str]) -> None:
        self.folder = Path(folder)
        self.argv = argv
        self.person = ranks.Person(None, None, None)
        self.env = dict(os.environ)
        self.criu = ""
        self.rank = 0
        self.places: apart.Places | None = None


def hold_apart(asked: Asked) -> int:
    """Do the same on a machine of its own."""
    assert asked.places
    asked.folder.mkdir(mode=0o700, exist_ok=True)
    told, tell = os.pipe()
    for each in FORWARDED:
        signal.signal(each, signal.SIG_IGN)  # the other half hears it too
    inside = apart.go(asked.rank, asked.places)
    if inside:
        os.close(tell)
        with open(told, "rb") as file:
            word = file.read(_status.size)
        os.waitpid(inside, 0)
        apart.leave()
        return _status.unpack(word)[0] if len(word) == _status.size else signal.SIGKILL
    status = EXIT_FAILED << 8
    try:
        status = hold(asked, tell)
        _await_criu(asked.folder)
        if os.WIFEXITED(status):
            apart.await_last_words()
    except BeoError as error:
        print(f"beo: {error}", file=sys.stderr, flush=True)
        status = error.exit_code << 8
    except ranks.LaunchError as error:
        print(f"beo: {error.text}", file=sys.stderr, flush=True)
        status = error.status << 8
    finally:
        os.write(tell, _status.pack(status))
        os._exit(0)


def _await_criu(folder: Path) -> None:
    """Let criu finish after it has ended the program: with this process, the first of these, it would end too."""
    until_s = time.monotonic() + criu.DUMP_MAX_S
    while (folder / criu.DUMPED).exists() and contain.inmates("pidns") and time.monotonic() < until_s:
        time.sleep(0.005)


def hold(asked: Asked, kept: int = -1) -> int:
    """Start the program or let it go on, and wait for its end; its status, as `os.wait` has it.

    kept: a descriptor that stays open.
    """
    folder = asked.folder
    line = PmiLine() if asked.places else None
    close_all_but({kept, *(line.ends if line else ())})  # nobody shall inherit what doesn't travel
    own_null()
    descriptors = (0, 1, 2, line.theirs) if line else (0, 1, 2)
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
    if criu.is_sealed(folder) or (asked.places and asked.places.is_back):  # then nothing is begun anew
        try:
            root = criu.restore(folder, descriptors, criu=asked.criu)
        except BeoError:
            end_all()
            raise
        if asked.places:
            apart.let_in(asked.rank, asked.places)
        criu.forget(folder)  # it has gone on: what it does from now on must not be done again
    else:
        if asked.places:
            apart.let_in(asked.rank, asked.places)
        criu.start_above(FIRST_PID)
        (folder / criu.DUMPED).unlink(missing_ok=True)
        root = ranks.fork(asked.argv, asked.env, descriptors, os.getcwd(), asked.person, None, "beo: ")
    for number in pending:
        forward(number, None)
    if line:
        line.pass_on(folder, asked.places is not None and asked.places.is_back)
    while True:
        pid, status = os.wait()
        if pid == root:
            start_below()
            return status


class PmiLine:
    """A rank's PMI socket: the warden's on one side, on the other one of the network that the rank is in."""

    def __init__(self) -> None:
        """Make the rank's."""
        self._warden = socket.socket(fileno=os.dup(ranks.PMI_FD))
        self._ours, rank = socket.socketpair()
        self.theirs = rank.detach()

    @property
    def ends(self) -> set[int]:
        """The descriptors that it needs."""
        return {self._warden.fileno(), self._ours.fileno(), self.theirs}

    def pass_on(self, folder: Path, is_back: bool) -> None:
        """The rank has its end: bring what comes at either side to the other, until one hangs up.

        The folder tells when it is quiet, so that no answer is lost by a dump.
        """
        os.close(self.theirs)
        said = folder / criu.TALK
        if is_back:
            said.write_bytes(criu.ANSWERED)
        for source, target, mark in (
            (self._warden, self._ours, criu.ANSWERED),
            (self._ours, self._warden, criu.ASKED),
        ):
            threading.Thread(target=_pass_on, args=(source, target, said, mark), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, said: Path, mark: bytes) -> None:
    try:
        while data := source.recv(PMI_BYTES):
            said.write_bytes(mark)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has gone


def close_all_but(kept: set[int]) -> None:
    """Close every descriptor but the standard ones and these."""
    low = criu.STANDARD
    for number in sorted(number for number in kept if number >= low):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, FILES_MAX)


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


def end_all() -> None:
    """See the end of what a restore has left half done: its numbers are free then for the next try."""
    for pid in contain.descendants(os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    try:
        while True:
            os.wait()
    except ChildProcessError:
        start_below()


def start_below() -> None:
    """Let the next holder of this warden have a small number again, where a warden is used for several attempts."""
    with open(criu.LAST_PID, "w") as file:
        file.write(str(os.getpid()))


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
    usage = UsageError(
        "usage: holder.py FOLDER [--as UID:GID[:GROUP...]] [--env FILE] [--criu PATH] [--apart FILE] -- PROGRAM ..."
    )
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
            elif option == "--apart":
                asked.places = apart.Places.read(value)
            else:
                raise usage
    except ValueError:
        raise usage from None
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    if asked.places:
        asked.rank = int(os.environ["BEO_RANK"])
        asked.folder /= str(asked.rank)
        asked.env |= {name: word for name, word in os.environ.items() if name.startswith("PMI_")}
        asked.env |= {name: os.environ[name] for name in ("BEO_RANK", "BEO_LOCAL_RANK")}
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
