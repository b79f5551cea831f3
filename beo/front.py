"""The front: what `beo` runs first. Builtin modules and a socket, so that it is there at once.

It hands the command line, with all that a program inherits, to a *resident* process that has everything loaded
(`resident.py`), passes on the signals that it gets, and ends as the verb ended. Where there is no resident, it starts
one for the next time and does the verb itself (`direct.py`), as it does for verbs that mean this process or this
terminal. Once a verb has been handed over it is never done a second time.

The conversation, over a unix socket in a folder of the user's own; both ends look at the other's user:

    front     length, request (see `request`), with descriptors: the working directory, then those of 0, 1 and 2 that
              are open; of a terminal whose input is wanted, a pipe instead of 0
    resident  TAKEN with a pidfd of the process that is going to do it; or REFUSED, or silence: the front does it
    front     GO: from here on the verb is the resident's, and as soon as this side closes, its process is killed
    resident  EXITED with the exit code, or SIGNALLED with the number of the signal that ended the process
"""

import _socket
import posix
import sys
from _signal import SIG_DFL, SIG_IGN, getsignal, pidfd_send_signal  # type: ignore[import-not-found]
from _signal import signal as set_signal

TYPE_CHECKING = False  # what typing.TYPE_CHECKING is
if TYPE_CHECKING:
    from typing import NoReturn

PROTOCOL = b"1"  # raised at any change of the conversation
TAKEN, REFUSED, GO, EXITED, SIGNALLED = b"T", b"R", b"G", b"E", b"S"

# How each verb is done. What starts daemons is their parent and gives them its limits; what draws on a terminal or asks
# a person needs that terminal's own session: both are done here. So are the verbs about files, of which the resident
# would be a tenth larger. Each verb is in one list (tests/test_front.py).
HERE = frozenset(
    {
        *("doctor", "down", "gone", "ha", "head", "login", "man", "mount", "resident", "token", "top", "umount", "up"),
        *("ckpt", "reserve", "witness", "worker"),
        *("boot", "console", "image", "node"),
        *("cat", "cp", "df", "get", "ls", "mkdir", "mv", "put", "rm"),
    }
)
THROUGH = frozenset(
    {
        "cancel",
        "completion",
        "drain",
        "events",
        "forget",
        "history",
        "hold",
        "info",
        "kill",
        "logs",
        "migrate",
        "nodes",
        "ps",
        "queue",
        "release",
        "requeue",
        "resume",
        "run",
        "set",
        "show",
        "submit",
        "users",
        "wait",
    }
)
READING = frozenset({"run"})  # pass on their standard input
TERMINAL_OPTIONS = frozenset({"--pty"})  # these take the terminal over

WAIT_S = 2.0  # for a resident that has much to do; a verb that is done here takes no tenth of that
# The most that is handed over: Linux takes no more than 6 MB of arguments and environment for a program (execve(2)).
REQUEST_SIZE_MAX_BYTES = 16 << 20
RESTART_S = 5.0  # a resident that ended so soon after its start would end again
SOCKET_PATH_MAX = 107  # bytes, of sockaddr_un
BASE_LENGTH_MAX = 24  # of XDG_RUNTIME_DIR: there has to be room for a name behind it
READ_BYTES = 4096  # of a terminal, which gives no more at a time

EXIT_INTERNAL = 70

# SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGCONT, SIGWINCH: what a program is sent.
PASSED_ON = (1, 2, 3, 10, 12, 14, 15, 18, 28)
SIGKILL, SIGCONT, SIGSTOP, SIGTSTP = 9, 18, 19, 20
NAMESPACES = ("pid", "mnt", "net", "user")  # in another one of these, the same words mean something else

_DIRECTORY, _TYPE, _OTHERS = 0o040000, 0o170000, 0o077


def main() -> "NoReturn":
    """Do the command line in `sys.argv` and leave with its exit code."""
    argv = sys.argv[1:]
    if _is_for_resident(argv):
        _ask_resident(argv)
    from beo import direct

    direct.main(argv)


def _is_for_resident(argv: list[str]) -> bool:
    environ = posix.environ
    if environ.get(b"BEO_RESIDENT") == b"0" or b"BEO_JOB_ID" in environ:  # a job's verbs belong into the job's walls
        return False
    if argv and argv[0][:1] != "-" and argv[0] not in THROUGH:
        return False
    if not TERMINAL_OPTIONS.isdisjoint(argv):
        return False
    if posix.getuid() != posix.geteuid() or posix.getgid() != posix.getegid():
        return False
    streams = [stream for stream in (sys.stdin, sys.stdout) if stream]
    return sys.getfilesystemencoding() == "utf-8" and all(stream.encoding == "utf-8" for stream in streams)


def folder() -> str:
    """Return the folder of this user's residents: below XDG_RUNTIME_DIR, or in /tmp. It may not exist yet."""
    base = posix.environ.get(b"XDG_RUNTIME_DIR", b"").decode("utf-8", "surrogateescape")
    if base[:1] == "/" and len(base) <= BASE_LENGTH_MAX and is_ours(base):
        return f"{base}/beo"
    return f"/tmp/beo-{posix.geteuid()}"


def is_ours(path: str) -> bool:
    """Whether `path` is a folder that is ours and nobody else's to enter."""
    try:
        found = posix.lstat(path)
    except OSError:
        return False
    return found.st_mode & (_TYPE | _OTHERS) == _DIRECTORY and found.st_uid == posix.geteuid()


def name() -> str:
    """Return the name of the resident that is ours: of this installation, in these namespaces."""
    package = posix.stat(__file__.rpartition("/")[0] or ".")
    binaries = posix.stat(sys.executable.rpartition("/")[0] or ".")
    parts = [package.st_dev, package.st_ino, binaries.st_ino, sys.hexversion >> 16]
    parts += [posix.stat(f"/proc/self/ns/{kind}").st_ino for kind in NAMESPACES]
    return "-".join([f"{part:x}" for part in parts])


def facts() -> bytes:
    """Return what front and resident must have in common, because a verb tells it to the head or looks at it."""
    root = posix.stat("/")
    return b"%d %d %d %d %a" % (posix.getuid(), posix.getgid(), root.st_dev, root.st_ino, posix.getgroups())


def request(argv: list[str], standing: str) -> bytes:
    """Return what is handed over: words separated by NUL, which can stand in none of them.

    Protocol, facts, umask, ignored signals, how stdin and stdout take what is not UTF-8, which of 0, 1 and 2 are open,
    the number of arguments, these, and the environment.
    """
    umask = posix.umask(0o077)
    posix.umask(umask)
    ignored = [number for number in (*PASSED_ON, SIGTSTP) if getsignal(number) is SIG_IGN]
    errors = [(stream.errors or "strict") if stream else "strict" for stream in (sys.stdin, sys.stdout)]
    words = [PROTOCOL, facts(), b"%d" % umask, b" ".join([b"%d" % number for number in ignored])]
    words += [error.encode() for error in errors]
    words += [standing.encode(), b"%d" % len(argv)]
    words += [word.encode("utf-8", "surrogateescape") for word in argv]
    words += [key + b"=" + value for key, value in posix.environ.items()]
    return b"\0".join(words)


def _open_descriptors() -> str:
    found = ""
    for fd in range(3):
        try:
            posix.fstat(fd)
            found += str(fd)
        except OSError:
            pass
    return found


def _ask_resident(argv: list[str]) -> None:
    """Let the resident do the verb, and leave as it ended; return where nobody took it."""
    standing = _open_descriptors()  # before anything else takes their numbers
    try:
        where = folder()
        path = f"{where}/{name()}"
        body = request(argv, standing)
        here = posix.open(".", posix.O_PATH | posix.O_CLOEXEC)
    except OSError:  # no /proc, or no directory to stand in
        return
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    feed = None
    try:
        if not is_ours(where) or len(body) > REQUEST_SIZE_MAX_BYTES or len(path) > SOCKET_PATH_MAX:
            raise FileNotFoundError
        connection.settimeout(WAIT_S)
        connection.connect(path)
        if _peer(connection) != posix.geteuid():
            return
        descriptors = [here, *map(int, standing)]
        if argv and argv[0] in READING and "0" in standing and posix.isatty(0):
            descriptors[1], feed = posix.pipe2(posix.O_CLOEXEC)
        process = _hand_over(connection, body, descriptors)
        if feed is not None:
            posix.close(descriptors[1])
    except (FileNotFoundError, ConnectionRefusedError):
        if len(body) <= REQUEST_SIZE_MAX_BYTES and len(path) <= SOCKET_PATH_MAX:
            _start_resident(where, path)
        process = -1
    except OSError:  # it has too much to do, or is ending
        process = -1
    posix.close(here)
    if process >= 0:
        _see_through(connection, process, feed)
    connection.close()
    if feed is not None:
        posix.close(feed)


def _peer(connection: _socket.socket) -> int:
    """Return the user at the other end."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder)


def _hand_over(connection: _socket.socket, body: bytes, descriptors: list[int]) -> int:
    """Return the pidfd of the process that takes it; -1 where it is refused, or the resident has gone."""
    data = len(body).to_bytes(8, sys.byteorder) + body
    packed = b"".join([fd.to_bytes(4, sys.byteorder) for fd in descriptors])
    sent = connection.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, packed)])
    if sent < len(data):
        connection.sendall(memoryview(data)[sent:])
    answer, ancillary, _, _ = connection.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
    if answer != TAKEN or not ancillary:
        return -1
    return int.from_bytes(ancillary[0][2][:4], sys.byteorder)


def _see_through(connection: _socket.socket, process: int, feed: int | None) -> "NoReturn":
    """Say GO, pass on signals (and a terminal's input) until the verb has ended, and end as it did."""
    sent = []

    def pass_on(number: int, _: object = None) -> None:
        sent.append(number)
        try:
            pidfd_send_signal(process, number)
        except ProcessLookupError:
            pass

    def stop(number: int, _: object) -> None:
        pass_on(SIGSTOP)
        set_signal(number, SIG_DFL)
        posix.kill(posix.getpid(), number)  # here we stand until somebody sends SIGCONT
        set_signal(number, stop)
        pass_on(SIGCONT)

    for number in PASSED_ON:
        if getsignal(number) is not SIG_IGN:
            set_signal(number, pass_on)
    if getsignal(SIGTSTP) is not SIG_IGN:
        set_signal(SIGTSTP, stop)
    connection.settimeout(None)
    try:
        connection.send(GO)
        if feed is not None:
            _feed(connection, feed)
        answer = connection.recv(2)
    except OSError:
        answer = b""
    if answer[:1] == EXITED:
        posix._exit(answer[1])
    if answer[:1] == SIGNALLED:
        if answer[1] not in sent and answer[1] != 13:  # SIGPIPE is its own reader's doing
            _complain(f"what did this was ended by signal {answer[1]}")
        _die(answer[1])
    if ends := [number for number in sent if number in (1, 2, 3, 10, 12, 14, 15)]:
        _die(ends[-1])
    _complain(
        "what did this has gone (the resident process was killed), so it may be done or not: "
        "look with 'beo queue' before you do it again"
    )
    posix._exit(EXIT_INTERNAL)


def _complain(text: str) -> None:
    try:
        posix.write(2, f"beo: {text}\n".encode())
    except OSError:
        pass


def _die(number: int) -> "NoReturn":
    """End by a signal."""
    if number != SIGKILL:
        set_signal(number, SIG_DFL)
    posix.kill(posix.getpid(), number)
    posix._exit(128 + number)


def _feed(connection: _socket.socket, feed: int) -> None:
    """Pass on what is typed until the verb has something to say, which is its end.

    Reading is done here because the kernel stops who reads a terminal from the background, and that is to be us.
    """
    from select import POLLIN, POLLOUT, poll

    watch = poll()
    watch.register(connection, POLLIN)
    watch.register(0, POLLIN)
    posix.set_blocking(feed, False)
    typed = b""
    while True:
        for fd, _ in watch.poll():
            if fd == connection.fileno():
                return
            try:
                if fd == 0:
                    typed = _typed()
                    watch.unregister(0)
                else:
                    typed = typed[posix.write(feed, typed) :]
                    watch.unregister(feed)
                if typed:
                    watch.register(feed, POLLOUT)
                elif fd == 0:  # its end
                    posix.close(feed)
                    return
                else:
                    watch.register(0, POLLIN)
            except OSError:  # nobody reads it any more
                return


def _typed() -> bytes:
    try:
        return posix.read(0, READ_BYTES)
    except OSError:  # the terminal has gone
        return b""


def _start_resident(where: str, path: str) -> None:
    """Start a resident in the background, for the next verb; nothing is waited for."""
    try:
        if not is_ours(where):
            posix.mkdir(where, 0o700)
        if _is_fresh(f"{path}.lock"):
            return
        root = __file__.rpartition("/")[0].rpartition("/")[0] or "."
        code = f"import sys; sys.path.insert(0, {root!r}); from beo.resident import main; main()"
        words = [sys.executable, "-I", "-c", code, path]
        null = [(posix.POSIX_SPAWN_OPEN, fd, "/dev/null", posix.O_RDWR, 0) for fd in range(3)]
        kept = (b"PATH", b"LANG", b"LC_ALL", b"LC_CTYPE", b"HOME")
        environ = {key: value for key, value in posix.environ.items() if key in kept}
        posix.posix_spawn(sys.executable, words, environ, file_actions=null)
    except OSError:
        pass  # then it is done without


def _is_fresh(path: str) -> bool:
    """Whether a file was written just now."""
    try:
        changed_s = posix.stat(path).st_mtime
    except OSError:
        return False
    from time import time

    return 0 <= time() - changed_s < RESTART_S


if __name__ == "__main__":
    main()
