"""What this machine is and allows: walls, memory limits, cores, memory, boot."""

from __future__ import annotations

import os
import sys
import time
from typing import Literal

from beo.worker.contain import KINDS

_WARDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "warden.py")
_REMOVE_S = 2.0  # the kernel lets go of a cgroup some milliseconds after its last process

MemoryLimit = Literal["cgroup2", "cgroup1", "poll"]
ProcessLimit = Literal["cgroup2", "cgroup1", "rlimit", "none"]


def contain_kind(python: str = sys.executable) -> str:
    """The best walls that the kernel allows here (pidns, userns or subreaper), by building them in a child process."""
    for kind in KINDS[:-1]:
        pid = os.posix_spawn(
            python,
            [python, "-I", "-S", _WARDEN, "--try", kind],
            {},
            file_actions=[(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)],
        )
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return kind
    return KINDS[-1]


def memory_limit() -> tuple[MemoryLimit, str]:
    """How a job's memory can be limited here, and the folder to make its cgroups in ("" for polling). Tries it out."""
    for kind, folder in _candidates("memory"):
        probe = os.path.join(folder, f"beo-probe-{os.getpid()}")
        try:
            if kind == "cgroup2":
                _delegate(folder, "memory")
            make_cgroup(probe, 1 << 30)
        except OSError:
            continue
        finally:
            remove_cgroup(probe)
        return kind, folder
    return "poll", ""


def process_limit() -> tuple[ProcessLimit, str]:
    """How the number of a job's processes can be limited here, and the folder to make cgroups in. Tries it out.

    rlimit: by RLIMIT_NPROC, which counts all that the user runs on the machine, and which root doesn't have.
    """
    for kind, folder in _candidates("pids"):
        probe = os.path.join(folder, f"beo-probe-{os.getpid()}")
        try:
            if kind == "cgroup2":
                _delegate(folder, "pids")
            make_crowd(probe, 1_000)
        except OSError:
            continue
        finally:
            remove_cgroup(probe)
        return kind, folder
    return ("none" if os.geteuid() == 0 else "rlimit"), ""


def make_crowd(path: str, processes_max: int) -> str:
    """Make the cgroup folder `path` with a limit on processes and threads; OSError, and no folder, if it can't be."""
    os.mkdir(path, 0o755)
    try:
        _write(os.path.join(path, "pids.max"), processes_max)
    except OSError:
        os.rmdir(path)
        raise
    return path


def make_cgroup(path: str, mem_bytes: int) -> str:
    """Make the cgroup folder `path` (named `beo-…`) with a limit on memory, swap included where the kernel counts it.

    OSError if that is not possible; no folder is left then.
    """
    os.mkdir(path, 0o755)
    try:
        v2 = os.path.exists(os.path.join(path, "memory.max"))
        _write(os.path.join(path, "memory.max" if v2 else "memory.limit_in_bytes"), mem_bytes)
        try:
            _write(
                os.path.join(path, "memory.swap.max" if v2 else "memory.memsw.limit_in_bytes"), 0 if v2 else mem_bytes
            )
        except OSError:
            pass  # a kernel that doesn't count swap has no such file
    except OSError:
        os.rmdir(path)
        raise
    return path


def remove_cgroup(path: str) -> bool:
    """Remove a cgroup folder whose processes have ended; whether it is gone. Waits two seconds at most."""
    deadline = time.monotonic() + _REMOVE_S
    while True:
        try:
            os.rmdir(path)
            return True
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def memory_bytes() -> int:
    """Memory of this machine, or of the cgroup that this process is in, whichever is less."""
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for _, folder in _candidates("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                with open(os.path.join(folder, name)) as file:
                    total_bytes = min(total_bytes, int(file.read()))
            except (OSError, ValueError):
                continue  # not there, or "max"
    return total_bytes


def boot_id() -> str:
    """The kernel's name for this boot: a machine that started anew has another one."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _candidates(controller: str) -> list[tuple[Literal["cgroup2", "cgroup1"], str]]:
    """Folders of the cgroup hierarchies in which this process may be allowed to make cgroups, the best first."""
    paths: dict[str, str] = {}  # controllers ("" for v2) -> this process's cgroup
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            paths[controllers] = path
    found: list[tuple[Literal["cgroup2", "cgroup1"], str]] = []
    with open("/proc/self/mounts") as file:
        for line in file:
            _, where, kind, options = line.split()[:4]
            if kind == "cgroup2":
                found += [("cgroup2", folder) for folder in _under(where, paths.get("", "/"))]
            elif kind == "cgroup" and controller in options.split(","):
                own = next((path for names, path in paths.items() if controller in names.split(",")), "/")
                found += [("cgroup1", folder) for folder in _under(where, own)]
    return sorted(found, key=lambda item: item[0] == "cgroup1")


def _under(mount: str, path: str) -> list[str]:
    """This process's folder in the hierarchy; inside a container its path may not be there, but the mount's root is.

    Ahead of both the one above, where systemd has left that to us and put our processes apart (DelegateSubgroup).
    """
    own = os.path.normpath(mount + path)
    above = os.path.dirname(own)
    ours = (above,) if own != mount and _is_delegated(above) else ()
    return [folder for folder in dict.fromkeys((*ours, own, mount)) if os.path.isdir(folder)]


def _is_delegated(folder: str) -> bool:
    try:
        return os.getxattr(folder, "user.delegate") == b"1"
    except OSError:
        return False


def _delegate(folder: str, controller: str) -> None:
    """Let cgroups inside `folder` have such limits (v2); OSError if it doesn't have that controller itself."""
    with open(os.path.join(folder, "cgroup.controllers")) as file:
        if controller not in file.read().split():
            raise OSError(f"{folder} has no {controller} controller")
    _write(os.path.join(folder, "cgroup.subtree_control"), f"+{controller}")


def _write(path: str, value: int | str) -> None:
    with open(path, "w") as file:
        file.write(str(value))
