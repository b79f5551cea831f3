"""Starting one rank: find its program as the job would, and run it in a session of its own with nothing that leaks.

The fast way is posix_spawn. A rank that needs more than it can do (another user, a cgroup to join) is forked: the
warden is a few megabytes, so that is cheap here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

PMI_FD = 3
"""Where a rank finds its PMI socket: the first descriptor after the standard ones."""
PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where programs are looked for if the job has no PATH."""

UMASK = 0o022
"""Of a rank that isn't the daemon's own user's: what a login usually has; root's own may be stricter, or none."""

_ALL_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class LaunchError(Exception):
    """A rank that couldn't be started: the exit status a shell would give (126 or 127), and why."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Person:
    """Whose rank it is: numbers of the user, the group and the further groups; None: whoever the warden is.

    is_us: whether a rank of this person needs no change. Without root none is possible: then the user decides.
    """

    def __init__(self, uid: int | None, gid: int | None, groups: Sequence[int] | None) -> None:
        our_uid, our_gid, our_groups = os.geteuid(), os.getegid(), os.getgroups()
        self.uid = our_uid if uid is None else uid
        self.gid = our_gid if gid is None else gid
        if groups is None:
            groups = our_groups if self.uid == our_uid else ()  # nobody gets our groups by accident
        self.groups = sorted({self.gid, *groups})
        same_groups = self.gid == our_gid and self.groups == sorted({our_gid, *our_groups})
        self.is_us = self.uid == our_uid and (self.uid != 0 or same_groups)

    def become(self) -> None:
        """Turn this process into one of this person, for good."""
        os.umask(UMASK)
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def find(program: str, path: str) -> str:
    """The file that `program` means in the current directory and with this PATH; LaunchError if there is none."""
    if "/" in program:
        places = [program]
    else:
        # An empty entry is the current directory, as in every shell.
        places = [f"{folder or '.'}/{program}" for folder in path.split(":")] if program else []
    for place in places:
        if os.access(place, os.X_OK, effective_ids=True) and not os.path.isdir(place):
            return place
    for place in places:  # only now that there is none: a job looks into many folders before it finds its program
        if os.path.isdir(place):
            raise LaunchError(126, f"'{place}' is a directory")
        if os.path.exists(place):
            raise LaunchError(126, f"'{place}' is not executable: chmod +x it, or give its interpreter")
    if "/" in program:
        raise LaunchError(127, f"'{program}' does not exist on this node: is its folder shared?")
    raise LaunchError(127, f"'{program}' is not in PATH ({path}): install it on this node, or give its full path")


def enter(folder: str) -> None:
    """Make `folder` the current directory; LaunchError if that is not possible."""
    try:
        os.chdir(folder)
    except OSError as error:
        text = f"cannot enter '{folder}' ({error.strerror}): is it shared with this node?"
        raise LaunchError(126, text) from None


def spawn(argv: Sequence[str], env: Mapping[str, str], descriptors: Sequence[int], path: str | None = None) -> int:
    """Start `argv` in the current directory; its pid, or LaunchError.

    descriptors: what the rank gets as 0, 1, 2 and, if there is a fourth, as PMI_FD. All others close themselves. path:
    where to look for the program, if not in its PATH.
    """
    place = find(argv[0], path or env.get("PATH", PATH))
    moves = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(descriptors)]
    for program, arguments in ((place, list(argv)), ("/bin/sh", _by_shell(place, argv))):
        try:
            return os.posix_spawn(
                program, arguments, env, file_actions=moves, setsid=True, setsigmask=(), setsigdef=_ALL_SIGNALS
            )
        except (OSError, ValueError) as error:
            if program == place and isinstance(error, OSError) and error.errno == errno.ENOEXEC:
                continue
            raise LaunchError(126, _why(place, error)) from None
    raise AssertionError("the shell was tried last")


def fork(
    argv: Sequence[str],
    env: Mapping[str, str],
    descriptors: Sequence[int],
    cwd: str,
    person: Person,
    cgroup: str | None,
    complaint: str,
    path: str | None = None,
    control: Callable[[int], None] | None = None,
) -> int:
    """Start `argv` as `person` in `cwd` and in `cgroup`; its pid.

    control: makes descriptor 0 the controlling terminal of the rank's session, where it is one. What goes wrong is
    written on the rank's stderr, after `complaint`, and is its exit status: only the child can tell what this person
    may do.
    """
    pid = os.fork()
    if pid:
        return pid
    status, text = 126, "cannot start"
    try:
        signal.set_wakeup_fd(-1)
        for number, fd in enumerate(descriptors):
            os.dup2(fd, number)
            os.set_inheritable(number, True)
        os.setsid()
        if control:
            control(0)
        if cgroup is not None:
            _join(cgroup)
        if not person.is_us:
            _become(person)
        enter(cwd)
        for number in _ALL_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        place = find(argv[0], path or env.get("PATH", PATH))
        try:
            os.execve(place, list(argv), env)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                text = _why(place, error)
            else:
                os.execve("/bin/sh", _by_shell(place, argv), env)
    except LaunchError as error:
        status, text = error.status, error.text
    except BaseException as error:
        text = _why(argv[0], error)
    finally:
        try:
            os.write(2, f"{complaint}{text}\n".encode(errors="surrogateescape"))
        finally:
            os._exit(status)


def _join(cgroup: str) -> None:
    try:
        with open(os.path.join(cgroup, "cgroup.procs"), "w") as file:
            file.write("0")  # whoever writes it: no number has to be translated
    except OSError as error:
        raise LaunchError(126, f"cannot join the cgroup '{cgroup}' ({error.strerror})") from None


def _become(person: Person) -> None:
    try:
        person.become()
    except OSError:
        text = f"cannot become user {person.uid}: the worker of this node must run as root for that"
        raise LaunchError(126, text) from None


def _by_shell(place: str, argv: Sequence[str]) -> list[str]:
    """A script without a `#!` line is the shell's, as execvp has it."""
    return ["/bin/sh", place, *argv[1:]]


def _why(place: str, error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOENT:
        return f"cannot run '{place}': the interpreter it names does not exist on this node"
    if isinstance(error, OSError) and error.errno == errno.E2BIG:
        return f"cannot run '{place}': its arguments and environment are too long together: pass them in a file"
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return f"cannot run '{place}': {reason}"
