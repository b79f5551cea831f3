"""The walls around an attempt, what is behind them, and the leash on it all: system calls, many without a Python word.

Three kinds of wall, from the best to the least:
  pidns      own PID, mount and IPC namespaces; needs root. Killing PID 1 kills everything, whatever it did to hide.
  userns     the same inside a user namespace of one's own, without root, where the kernel lets one.
  subreaper  no namespaces: orphans come to the warden, and /proc is walked to find descendants. Best effort.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KINDS = ("pidns", "userns", "subreaper")

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REMOUNT = 32
_MS_BIND, _MS_REC, _MS_SLAVE = 1 << 12, 1 << 14, 1 << 19
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_CLOCK_BOOTTIME = 7
_TIMER_ABSTIME = 1
_SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)


def enter(kind: str) -> None:
    """Build the walls for the children to come: the next child is PID 1 of them. OSError where the kernel refuses."""
    if kind == "subreaper":
        _call(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return
    uid, gid = os.getuid(), os.getgid()
    user = _CLONE_NEWUSER if kind == "userns" else 0
    _call(_libc.unshare, user | _CLONE_NEWPID | _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUTS)
    if user:
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)


def settle(kind: str) -> None:
    """Make oneself at home behind the walls, as their first process: die with the parent, own /proc, own /dev/shm."""
    if kind == "subreaper":
        # Here a dead parent must not kill this process: it is the only one left that knows the ranks.
        _call(_libc.prctl, _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        return
    _call(_libc.prctl, _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    # Slave, not private: what the host mounts or unmounts later is seen here too, and nothing of ours is seen there.
    _call(_libc.mount, None, b"/", None, _MS_REC | _MS_SLAVE, None)
    _call(_libc.mount, b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, None)
    if os.path.isdir("/dev/shm"):
        _mount_shm()


def bind(source: str, target: str) -> None:
    """Let the file `source` be seen in the place of `target` behind the walls. OSError where the kernel refuses."""
    _call(_libc.mount, os.fsencode(source), os.fsencode(target), None, _MS_BIND, None)


def mount_tmpfs(target: str, options: str) -> None:
    """Mount a file system in memory at `target`, with these options of its own. OSError where the kernel refuses."""
    _call(_libc.mount, b"tmpfs", os.fsencode(target), b"tmpfs", _MS_NOSUID | _MS_NODEV, options.encode())


def unmount(target: str) -> None:
    """Take away what is mounted at `target`, though it be in use. OSError where the kernel refuses."""
    _call(_libc.umount2, os.fsencode(target), _MNT_DETACH)


def freshen(kind: str) -> None:
    """Leave nothing of an attempt for the next one: no shared memory, semaphore or queue. No process may be left."""
    if kind == "subreaper":
        return
    try:
        left = os.listdir("/dev/shm")
    except FileNotFoundError:  # this machine has no such folder
        left = []
    if left:
        _call(_libc.umount2, b"/dev/shm", _MNT_DETACH)
        _mount_shm()
    # Unasked, as nothing tells whether there are POSIX message queues: 13 µs, and the old one goes with all it holds.
    _call(_libc.unshare, _CLONE_NEWIPC)


def kill_all(kind: str, number: int) -> None:
    """Send signal `number` to every process behind the walls but this one."""
    if kind != "subreaper":
        try:
            os.kill(-1, number)  # atomic against fork: the kernel holds the task list meanwhile
        except ProcessLookupError:
            pass
        return
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def kill_marked(kind: str, mark: str, living: Iterable[int]) -> int:
    """Kill every process behind the walls that has `mark` in its environment or descends from one of `living`.

    How many there were, those of `living` aside. Who has shed both its parents and its environment isn't found; it dies
    with the attempt.
    """
    living = set(living)
    line = mark.encode() + b"\0"
    parents: dict[int, int] = {}
    marked = set()
    for pid in inmates(kind):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
            if words[0] in (b"Z", b"X"):
                continue
            parents[pid] = int(words[1])
            with open(f"/proc/{pid}/environ", "rb") as file:
                text = file.read()
            if text.startswith(line) or b"\0" + line in text:
                marked.add(pid)
        except (OSError, IndexError):
            continue  # gone meanwhile, or of somebody else
    known = marked | living
    found = set(marked)
    fresh = known
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh and pid not in known}
        found |= fresh
        known |= fresh
    found -= living
    for pid in found:
        try:
            os.kill(pid, _SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
    return len(found)


def inmates(kind: str) -> list[int]:
    """Every process behind the walls but this one, as numbers in this process's /proc."""
    own = os.getpid()
    if kind == "subreaper":
        return descendants(own)
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own]


def resident_bytes(kind: str) -> int:
    """Memory that the processes behind the walls hold; pages shared by several count for each."""
    pages = 0
    for pid in inmates(kind):
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                pages += int(file.read().split()[1])
        except (OSError, IndexError):
            continue  # gone meanwhile
    return pages * os.sysconf("SC_PAGE_SIZE")


def descendants(ancestor: int) -> list[int]:
    """Children of `ancestor`, their children and so on, from one walk of /proc."""
    return below(ancestor, children())


def children() -> dict[int, list[int]]:
    """Every process that has children, and these, from one walk of /proc."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue  # gone meanwhile
        found.setdefault(parent, []).append(int(name))
    return found


def below(ancestor: int, children: dict[int, list[int]]) -> list[int]:
    """Children of `ancestor`, their children and so on, among these."""
    found: list[int] = []
    level = [ancestor]
    while level:
        level = [child for pid in level for child in children.get(pid, ())]
        found += level
    return found


def limit_processes(crowd: str) -> None:
    """Let this process and its children be no more than the cgroup in the folder `crowd` allows; a number is the most
    that this user may run at all (RLIMIT_NPROC). OSError where the kernel refuses."""
    if crowd.isdigit():
        _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        most = int(crowd) if hard == resource.RLIM_INFINITY else min(int(crowd), hard)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    else:
        with open(os.path.join(crowd, "cgroup.procs"), "w") as file:
            file.write("0")


def refused_forks(crowd: str) -> int:
    """How often the cgroup has refused another process (v2 and v1 alike); 0 where there is none."""
    return _counted(os.path.join(crowd, "pids.events"), "max ") if crowd and not crowd.isdigit() else 0


def offer(score: int | None) -> int:
    """Let the kernel take this process, and what it starts from now on, the sooner for want of memory, the higher the
    score (0-1000; None: leave it). Returns what it was. Where /proc doesn't let us, nothing happens."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR)  # not by `open`: twice per attempt, that would be felt
        try:
            was = int(os.read(fd, 16))
            if score is not None:
                os.write(fd, b"%d" % score)
            return was
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return 0


def machine_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since the boot, on the whole machine."""
    return _counted("/proc/vmstat", "oom_kill ")


def limit_shm(kind: str, size_bytes: int) -> None:
    """Let the own /dev/shm hold no more than this; OSError where the kernel refuses."""
    if kind != "subreaper" and os.path.isdir("/dev/shm"):
        options = f"size={size_bytes}".encode()
        _call(_libc.mount, b"tmpfs", b"/dev/shm", b"tmpfs", _MS_REMOUNT | _MS_NOSUID | _MS_NODEV, options)


def _counted(path: str, name: str) -> int:
    try:
        with open(path) as file:
            for line in file:
                if line.startswith(name):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0


def oom_kills(cgroup: str) -> int:
    """How many processes of the cgroup the kernel has killed for want of memory (v2 and v1 alike)."""
    return max(_counted(os.path.join(cgroup, name), "oom_kill ") for name in ("memory.events", "memory.oom_control"))


def allow_files(count: int) -> None:
    """Let this process (and so its children) have so many descriptors, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def remove_trees(tops: Iterable[str]) -> None:
    """Remove all that is in these folders, following no link out of them, and end this process."""
    signal.set_wakeup_fd(-1)
    try:
        for top in tops:
            _empty(top)
    finally:
        os._exit(0)


def _empty(top: str) -> None:
    try:
        if os.geteuid() != 0:  # root needs no permission, and must not change one by way of a link
            os.chmod(top, 0o700)
            for _, folders, _, fd in os.fwalk(top):
                for name in folders:
                    if not stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        os.chmod(name, 0o700, dir_fd=fd)
        for _, folders, files, fd in os.fwalk(top, topdown=False):
            for name in [*files, *folders]:
                try:
                    os.unlink(name, dir_fd=fd)
                except IsADirectoryError:
                    os.rmdir(name, dir_fd=fd)
    except OSError:
        pass  # whoever finds the folder still there says why


class OuterProc:
    """The /proc of before the walls: how this process and its children are numbered outside."""

    def __init__(self) -> None:
        self._fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.pid = 0

    def locate(self) -> None:
        """Find out this process's own number outside; after the fork that made it."""
        self.pid = int(os.readlink("self", dir_fd=self._fd))

    def write_down(self, path: str, pids: tuple[int, ...]) -> None:
        """Write numbers and start times of these processes to a file, so that anyone can tell when they have ended."""
        lines = "".join(f"{pid} {started_ticks(pid, self._fd)}\n" for pid in pids)
        with open(f"{path}.new", "w") as file:
            file.write(lines)
        os.rename(f"{path}.new", path)

    def pid_of(self, child: int) -> int:
        """The number outside of an unreaped child of this process; 0 where the kernel doesn't tell (before 5.3)."""
        try:
            pidfd = os.pidfd_open(child)
        except OSError:
            return 0
        try:
            fd = os.open(f"{self.pid}/fdinfo/{pidfd}", os.O_RDONLY, dir_fd=self._fd)
            try:
                return int(os.read(fd, 4096).partition(b"Pid:")[2].split()[0])
            finally:
                os.close(fd)
        except (OSError, ValueError, IndexError):
            return 0
        finally:
            os.close(pidfd)


def started_ticks(pid: int | str, proc_fd: int | None = None) -> int:
    """When a process started, in clock ticks since the boot: with its number, its name for ever. 0 where there is none.

    A zombie counts as none: it has nothing left, and a PID 1 becomes one only when all in its namespace is dead.
    """
    try:
        fd = os.open(f"{pid}/stat" if proc_fd is not None else f"/proc/{pid}/stat", os.O_RDONLY, dir_fd=proc_fd)
    except OSError:
        return 0
    try:
        words = os.read(fd, 4096).rpartition(b")")[2].split()
    except OSError:  # it ended just now
        return 0
    finally:
        os.close(fd)
    return 0 if words[0] in (b"Z", b"X") else int(words[19])


class Leash:
    """A kernel timer that kills this very process at a moment of CLOCK_BOOTTIME, stopped or starved as it may be.

    A watchdog that has to run in order to act cannot hold a machine that was suspended or a worker that was stopped.
    The kernel can: it kills the process, the death signal then kills PID 1 behind the walls, and all goes with it.
    """

    def __init__(self) -> None:
        event = struct.pack("=qii48x", 0, _SIGKILL, 0)  # struct sigevent: value, signo, SIGEV_SIGNAL
        self._timer = ctypes.c_void_p()
        _call(_libc.timer_create, _CLOCK_BOOTTIME, event, ctypes.byref(self._timer))

    def set(self, until_ns: int) -> None:
        """Die at `until_ns` of CLOCK_BOOTTIME (at once where that is past); 0 takes the leash off."""
        spec = struct.pack("=qqqq", 0, 0, until_ns // 10**9, until_ns % 10**9)
        _call(_libc.timer_settime, self._timer, _TIMER_ABSTIME, spec, None)


def _mount_shm() -> None:
    _call(_libc.mount, b"tmpfs", b"/dev/shm", b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=1777")


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{getattr(function, '__name__', 'system call')}: {os.strerror(code)}")
