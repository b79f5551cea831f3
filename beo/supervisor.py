"""The supervisor: starts the heads that are here and the workers of this machine and restarts what dies. Itself
replaceable.

The daemons don't depend on it: each holds a lock of its own (see lockfile), so they live on when their supervisor is
killed, and the next one finds them by those locks, watches them, and starts only what is missing. A stopped daemon
(SIGSTOP) is alive and left alone.

SIGTERM to the supervisor is the end of the whole cluster on this machine. Agents get SIGINT ("end what you run, and
exit"), since SIGTERM means to them "exit, but leave the jobs running", as an upgrade wants it. That is what SIGHUP to a
supervisor in the foreground does: it ends with its heads and agents, and the jobs go on until the next one starts them.
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import site
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from beo.config import Home, write_durably
from beo.daemon import READY
from beo.errors import BeoError
from beo.lockfile import Process, holder, holding
from beo.notice import Notice
from beo.worker import remains

HEALTHY_S = 10.0  # who lived for so long begins with no delay again
DELAY_FIRST_S = 0.1  # before the second restart in a row; the first comes at once
DELAY_MAX_S = 5.0

LOG_SIZE_MAX_BYTES = 10 * 1024 * 1024  # of each daemon, and the same again for what came before
NEEDS_LOOK_S = 0.1  # between two looks whether what a daemon needs is there
LOOK_S = 5.0  # between two looks at the sizes of the logs, and whether the folder is still there

AGENT_END_S = 10.0  # agents end their jobs in it; more than a job's usual grace of 5 s
MOUNT_END_S = 5.0  # what was written last is answered in it
HEAD_END_S = 5.0  # for a last write to the journal
KILLED_END_S = 5.0  # after SIGKILL; only a process inside a hanging system call takes longer
STOP_MAX_S = AGENT_END_S + MOUNT_END_S + HEAD_END_S + 4 * KILLED_END_S + 2.0  # all of it together, see `stop_max_s`

# What a shell or Python itself may have left ignored; a daemon starts with the defaults.
DAEMON_MODULES = frozenset({"beo.headnode.server", "beo.worker.agent", "beo.ha.witness", "beo.tree.attach"})
_SIGNALS = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD]
_SIGNALS += [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXFSZ]


class Ends(msgspec.Struct, frozen=True):
    """How a daemon fares: how often it ended in a row without having been healthy, and the last time how."""

    count: int = 0
    how: str = ""


class Daemon(msgspec.Struct, frozen=True):
    """Something to keep running: its command line, the lock that it holds by itself, and the log of its output.

    folder: its BEO_DIR, where that isn't the supervisor's own. needs: a file without which it isn't to be started yet.
    marks: it says when it serves, see `daemon.READY`.
    """

    name: str
    argv: tuple[str, ...]
    lock: Path
    log: Path
    folder: Path | None = None
    needs: Path | None = None
    marks: bool = True


def ends_path(home: Home) -> Path:
    """Where the supervisor tells how the daemons fare: a JSON object of `Ends` by name."""
    return home.path / "run" / "ends.json"


def lock_path(home: Home) -> Path:
    """The supervisor's own lock."""
    return home.path / "run" / "supervisor.lock"


def log_path(home: Home) -> Path:
    """The supervisor's own log."""
    return home.logs / "supervisor.log"


def ready_path(home: Home, name: str) -> Path:
    """What a daemon makes when it serves, after its start."""
    return home.path / "run" / f"{name}.ready"


def programs_log(home: Home) -> Path:
    """What the programs of on_promote print."""
    return home.logs / "on_promote.log"


def heads(home: Home) -> list[Process]:
    """Return the running heads of this folder, or its witness: none, one or, where both heads are here, two."""
    locks = (home.head / "lock", home.second.head / "lock", witness_lock(home))
    return [process for lock in locks if (process := holding(lock))]


def witness_lock(home: Home) -> Path:
    """The lock of this folder's witness."""
    return home.path / "witness" / "lock"


def mount_lock(home: Home, folder: str) -> Path:
    """The lock of who serves the tree at a folder of this machine."""
    return home.path / "run" / f"mount{folder.replace('/', '-')}.lock"


def mounts(home: Home) -> list[Process]:
    """Return who serves the tree as a folder of this machine."""
    found = (holding(lock) for lock in sorted((home.path / "run").glob("mount-*.lock")))
    return [process for process in found if process]


def agents(home: Home) -> list[Process]:
    """Return the running agents of this folder."""
    found = (holding(lock) for lock in sorted(home.nodes.glob("*/lock")))
    return [process for process in found if process]


def wardens(home: Home) -> list[Process]:
    """Return the running wardens of this folder, by their command lines (`... warden.py FOLDER ...`)."""
    nodes = os.path.realpath(home.nodes) + "/"

    def is_warden(words: list[str], _: list[str]) -> bool:
        folders = [os.path.realpath(word) for word in words if word.startswith("/") and "/wardens/" in word]
        return any(word.endswith("/warden.py") for word in words) and any(f.startswith(nodes) for f in folders)

    return _processes(is_warden)


def newborns(home: Home) -> list[Process]:
    """Return daemons of this folder by their command lines: also one that was just started and holds no lock yet."""
    mine = {f"BEO_DIR={home.path}", f"BEO_DIR={home.second.path}"}

    def is_newborn(words: list[str], environ: list[str]) -> bool:
        return any(word in DAEMON_MODULES for word in words) and not mine.isdisjoint(environ)

    return _processes(is_newborn)


def _processes(is_meant: Callable[[list[str], list[str]], bool]) -> list[Process]:
    """Return the processes whose command line and environment are meant."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            process = Process(int(entry.name))  # before its command line is read, so that it is whose that is
        except OSError:  # it may end at any moment
            continue
        words, environ = _words(entry.path, "cmdline"), _words(entry.path, "environ")
        if words and is_meant(words, environ):
            found.append(process)
        else:
            process.close()
    return found


def _words(folder: str, name: str) -> list[str]:
    try:
        return os.fsdecode(Path(folder, name).read_bytes()).split("\0")
    except OSError:  # it has ended, or is another user's
        return []


def spawn(argv: Iterable[str], env: dict[str, str], output: Path) -> int:
    """Start a process in a session of its own, its output appended to a file; return its pid. Raises OSError."""
    bound(output)
    words = list(argv)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        words[0],
        words,
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=_SIGNALS,
    )


def environment(home: Home, folder: Path | None = None) -> dict[str, str]:
    """Return the environment of a daemon: ours, this cluster, and this very beo where it isn't installed."""
    env = dict(os.environ, BEO_DIR=str(folder or home.path))
    root = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in (*site.getsitepackages(), *paths):
        env["PYTHONPATH"] = os.pathsep.join([root, *paths])
    return env


def bound(path: Path) -> None:
    """Put a log that has grown too large aside, in the place of the one before.

    It is copied and emptied, since its writer keeps it open and knows nothing of this. A line that is written just
    between the two is lost.
    """
    try:
        if path.stat().st_size <= LOG_SIZE_MAX_BYTES:
            return
    except FileNotFoundError:
        return
    with suppress(OSError):  # a full disk, say: the more reason to empty it
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)


def end(home: Home, agents: list[Process], heads: list[Process]) -> None:
    """End these processes in order, the head last, and then every warden of this folder: nothing stays behind."""
    _end(agents, signal.SIGINT, AGENT_END_S)
    _end(mounts(home), signal.SIGTERM, MOUNT_END_S)  # when no job needs them, and while they can still be answered
    _end(heads, signal.SIGTERM, HEAD_END_S + _down_max_s(home))
    deadline = time.monotonic() + KILLED_END_S
    while (left := newborns(home) + wardens(home)) and time.monotonic() < deadline:
        _end(left, signal.SIGKILL, KILLED_END_S)
    with suppress(OSError, BeoError):  # what was killed has left its temporary files; without a cluster.json, none
        remains.remove(home.cluster().cluster, [entry.name for entry in os.scandir(home.nodes)])


def stop_max_s(home: Home) -> float:
    """Return how long a supervisor may take to end everything, the programs of on_promote included."""
    return STOP_MAX_S + _down_max_s(home)


def leave(home: Home, agents: list[Process], heads: list[Process]) -> None:
    """End these processes, and nothing that they run: the next ones take it over."""
    _end(agents, signal.SIGTERM, AGENT_END_S)
    _end(heads, signal.SIGTERM, HEAD_END_S + _down_max_s(home))


def _down_max_s(home: Home) -> float:
    """How long the programs of the heads here may take to end: those of both heads end at one time."""
    times = [0.0]
    for one in (home, home.second):
        with suppress(BeoError):  # a head that can't read its settings has started no program either
            times.append(one.config().ha.down_max_s)
    return max(times)


def end_process(process: Process) -> None:
    """End one head: SIGTERM, and SIGKILL where that is not enough."""
    _end([process], signal.SIGTERM, HEAD_END_S)


def _end(processes: list[Process], number: int, timeout_s: float) -> None:
    for process in processes:
        process.send(number)
        process.send(signal.SIGCONT)  # who is stopped would never hear it
    deadline = time.monotonic() + timeout_s
    stubborn = [process for process in processes if not process.wait(deadline - time.monotonic())]
    for process in stubborn:
        process.send(signal.SIGKILL)
    for process in processes:
        process.wait(KILLED_END_S)
        process.close()


def delay_s(ends_in_a_row: int) -> float:
    """Return how long to wait before the next start: nothing at first, then 0.1 s, doubled up to 5 s."""
    if ends_in_a_row <= 1:
        return 0.0
    return min(DELAY_MAX_S, DELAY_FIRST_S * 2.0 ** min(ends_in_a_row - 2, 30))


class _Watch:
    """A daemon, the process that runs it now, if any, and when it is due: to be started, or to be called healthy."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.process: Process | None = None
        self.mark: Path | None = None  # what it makes when it serves; None where it was found, and does
        self.due_s = 0.0
        self.ends = Ends()


class Supervisor:
    """Keeps the daemons of one folder running until it is told to stop. All times are of time.monotonic."""

    def __init__(
        self, home: Home, heads: Iterable[Daemon], agents: Iterable[Daemon], mounts: Iterable[Daemon] = ()
    ) -> None:
        """Take what to run, the heads that are here; nothing is started yet, but `Ends` are told."""
        self._home = home
        self._heads = [_Watch(head) for head in heads]
        self._agents = [_Watch(agent) for agent in agents]
        self._watches = [*self._heads, *map(_Watch, mounts), *self._agents]
        self._log = logging.getLogger("beo.supervisor")
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._leaves = False
        self._tell()

    def stop(self) -> None:
        """Make `run` end everything and return. From a signal handler or any thread."""
        os.eventfd_write(self._stop, 1)

    def leave(self) -> None:
        """Make `run` end the heads and agents, and return; what they run goes on. To be called like `stop`."""
        self._leaves = True
        self.stop()

    def run(self) -> None:
        """Start what isn't running and restart what ends, until `stop` or `leave`; then end it all, or the daemons."""
        looked_s = time.monotonic()
        notice = Notice()
        cluster = ""
        with suppress(OSError, BeoError):
            cluster = self._home.cluster().cluster  # while it can be read: `end` can't when the folder is gone
        while True:
            now = time.monotonic()
            for watch in self._watches:
                if watch.process is None and watch.due_s <= now:
                    self._start(watch)
                elif watch.process and watch.ends.count and watch.due_s <= now:
                    watch.ends = Ends()
                    self._tell()
            if now >= looked_s + LOOK_S:
                looked_s = now
                if not self._home.cluster_file.exists():  # not the folder: a daemon may have made that again
                    self._log.error("the cluster's folder is gone: ending everything")
                    break
                for path in (
                    log_path(self._home),
                    *(watch.daemon.log for watch in self._watches),
                    programs_log(self._home),
                    programs_log(self._home.second),
                ):
                    bound(path)
            running = {watch.process.fileno(): watch for watch in self._watches if watch.process}
            due_s = [watch.due_s for watch in self._watches if watch.process is None or watch.ends.count]
            told_s = notice.look(self._is_up)
            ready = self._wait([*running], min(told_s, min([looked_s + LOOK_S, *due_s]) - time.monotonic()))
            if self._stop in ready:
                self._log.info("told to %s", "leave: jobs go on" if self._leaves else "stop: ending everything")
                break
            for fd in ready:
                self._ended(running[fd])
        notice.tell("STOPPING=1")
        self._end()
        if cluster and not self._home.cluster_file.exists():
            remains.remove(cluster, [watch.daemon.name for watch in self._agents])

    def _is_up(self) -> bool:
        """Whether all that is to run does, has its lock, and serves."""
        with suppress(BeoError):  # a lock that is held by whom we can't name
            return all(
                watch.process and holder(watch.daemon.lock) and (watch.mark is None or watch.mark.exists())
                for watch in self._watches
            )
        return True

    def _wait(self, fds: list[int], timeout_s: float) -> list[int]:
        poll = select.poll()
        for fd in (self._stop, *fds):
            poll.register(fd, select.POLLIN)
        return [fd for fd, _ in poll.poll(max(0.0, timeout_s) * 1000)]

    def _start(self, watch: _Watch) -> None:
        daemon = watch.daemon
        if daemon.needs and not daemon.needs.exists():
            watch.due_s = time.monotonic() + NEEDS_LOOK_S
            return
        try:
            watch.process = holding(daemon.lock)
            verb, watch.mark = "found", None
            if watch.process is None:
                env = environment(self._home, daemon.folder)
                if daemon.marks:
                    watch.mark = ready_path(self._home, daemon.name)
                    watch.mark.unlink(missing_ok=True)
                    env[READY] = str(watch.mark)
                watch.process = Process(spawn(daemon.argv, env, daemon.log))
                verb = "started"
        except (OSError, BeoError) as error:
            self._fault(watch, f"can't be started: {str(error).lower()}")
            return
        watch.due_s = time.monotonic() + HEALTHY_S
        self._log.info("%s %s", verb, daemon.name, extra={"pid": watch.process.pid})

    def _ended(self, watch: _Watch) -> None:
        assert watch.process
        how = _how(watch.process)
        watch.process.close()
        watch.process = None
        self._fault(watch, how)

    def _fault(self, watch: _Watch, how: str) -> None:
        watch.ends = Ends(watch.ends.count + 1, how)
        wait_s = delay_s(watch.ends.count)
        watch.due_s = time.monotonic() + wait_s
        self._log.warning("%s %s", watch.daemon.name, how, extra={"restart_in_s": wait_s, "ends": watch.ends.count})
        if wait_s:  # the first restart comes before anything else
            self._tell()

    def _tell(self) -> None:
        text = msgspec.json.encode({watch.daemon.name: watch.ends for watch in self._watches})
        try:
            write_durably(ends_path(self._home), text + b"\n", 0o600)
        except OSError as error:  # a full disk: the daemons matter more
            self._log.warning("can't write %s: %s", ends_path(self._home), error)

    def _end(self) -> None:
        """End our own children, which may hold no lock yet, and whoever else holds one."""
        own_agents = [watch.process for watch in self._agents if watch.process]
        own_heads = [watch.process for watch in self._heads if watch.process]
        own = {process.pid for process in own_agents + own_heads}
        other_agents = [process for process in agents(self._home) if process.pid not in own]
        other_heads = [process for process in heads(self._home) if process.pid not in own]
        finish = leave if self._leaves else end
        finish(self._home, own_agents + other_agents, own_heads + other_heads)


def _how(process: Process) -> str:
    """Reap a process that ended, and say how it did."""
    try:
        _, status = os.waitpid(process.pid, os.WNOHANG)
    except ChildProcessError:
        return "ended"  # a child of an earlier supervisor
    code = os.waitstatus_to_exitcode(status)
    return f"exited with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
