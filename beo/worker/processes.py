"""The processes of attempts, as /proc shows them outside the walls, and signals that never hit another one.

A pid is a number that the kernel gives away again. So a signal goes through a pidfd, which names one process for good,
and only after a look at /proc with the pidfd in hand: who is below the attempt's PID 1 then belongs to the attempt.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack

from beo import messages as ms
from beo.worker import contain

COMMAND_MAX_BYTES = 200  # of a command line: enough to know it by, so that thousands fit into one message
GROUP_MAX = 1_000  # processes of a rank that one signal goes to: each costs a descriptor meanwhile

NO_PROCESS = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})  # no such number, none at all, or a thread's

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Inmates:
    """An attempt on this node: its PID 1, and which of its processes are ranks (pid -> rank)."""

    def __init__(self, job: int, attempt: int, root: int, ranks: Mapping[int, int]) -> None:
        self.job = job
        self.attempt = attempt
        self.root = root
        self.ranks = ranks


def look(attempts: Collection[Inmates], limit: int) -> tuple[list[ms.Process], int]:
    """Return up to `limit` processes of these attempts, and how many more there are. One walk of /proc for them all."""
    children = contain.children() if attempts else {}
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    rows: list[ms.Process] = []
    more = 0
    for inmates in attempts:
        for pid in contain.below(inmates.root, children):
            if len(rows) >= limit:
                more += 1
            elif row := _row(inmates, pid, now_s):
                rows.append(row)
    return rows, more


def _stat(pid: int) -> tuple[str, list[bytes]] | None:
    """The name in /proc/PID/stat, and the words behind it: state, parent, group, session and so on."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            data = file.read()
    except OSError:
        return None  # gone meanwhile
    head, _, rest = data.rpartition(b")")
    words = rest.split()
    return (head.partition(b"(")[2].decode(errors="replace"), words) if len(words) > 21 else None


def _row(inmates: Inmates, pid: int, now_s: float) -> ms.Process | None:
    found = _stat(pid)
    if not found:
        return None
    name, words = found
    return ms.Process(
        job=inmates.job,
        attempt=inmates.attempt,
        pid=pid,
        parent=int(words[1]),
        rank=inmates.ranks.get(pid, -1),
        state=words[0].decode(),
        cpu_s=(int(words[11]) + int(words[12])) / _TICKS,
        age_s=round(max(0.0, now_s - int(words[19]) / _TICKS), 2),
        memory_bytes=int(words[21]) * _PAGE_BYTES,
        threads=int(words[17]),
        command=_command(pid) or f"[{name}]",
    )


def _command(pid: int) -> str:
    """The command line, cut to COMMAND_MAX_BYTES; empty for a process that has none any more."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            data = file.read(COMMAND_MAX_BYTES + 1)
    except OSError:
        return ""
    text = data[:COMMAND_MAX_BYTES].rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    while len(text.encode()) > COMMAND_MAX_BYTES:  # a byte that is no UTF-8 became three
        text = text[:-1]
    return text


def machine() -> ms.Machine:
    """How busy this machine is."""
    sizes = {}
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                sizes[name] = int(rest.split()[0]) << 10
    load = os.getloadavg()[0]
    return ms.Machine(load, os.cpu_count() or 1, sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0))


def hit(inmates: Inmates | None, target: ms.Target, number: int) -> list[ms.Hit]:
    """Send signal `number` to what a target means in this attempt: one process, or a rank with its process group.

    A rank that isn't one of this node gives nothing. What was not hit says why.
    """
    if inmates is None:
        why = f"job {target.job} doesn't run here any more"
        return [] if target.rank >= 0 else [ms.Hit(target.job, target.pid, -1, why)]
    if target.rank < 0:
        return _strike(inmates, target, [target.pid], number)
    leaders = [pid for pid, rank in inmates.ranks.items() if rank == target.rank]
    if not leaders:
        return []
    group = [pid for pid in _inside(inmates) if pid != leaders[0] and _group(pid) == leaders[0]]
    return _strike(inmates, target, [leaders[0], *group[: GROUP_MAX - 1]], number)


def _inside(inmates: Inmates) -> list[int]:
    return contain.below(inmates.root, contain.children())


def _group(pid: int) -> int:
    found = _stat(pid)
    return int(found[1][2]) if found else 0


def _strike(inmates: Inmates, target: ms.Target, pids: list[int], number: int) -> list[ms.Hit]:
    with ExitStack() as files:
        fds = {}
        for pid in pids:
            try:
                fds[pid] = os.pidfd_open(pid)
            except OverflowError:
                continue
            except OSError as error:
                if error.errno in NO_PROCESS:
                    continue
                raise  # no descriptors left, say: then nothing is known of that process
            files.callback(os.close, fds[pid])
        inside = set(_inside(inmates))  # now, with the pidfds in hand
        return [_hit(inmates, target, pid, fds.get(pid) if pid in inside else None, number) for pid in pids]


def _hit(inmates: Inmates, target: ms.Target, pid: int, fd: int | None, number: int) -> ms.Hit:
    rank = inmates.ranks.get(pid, -1)
    command = _command(pid)
    trouble = f"no process {pid} of job {target.job} runs here"
    try:
        if fd is not None:
            signal.pidfd_send_signal(fd, number)
            return ms.Hit(target.job, pid, rank, "", command)
    except ProcessLookupError:
        pass  # it has ended, whoever has its number now
    except OSError as error:
        trouble = f"process {pid} can't be signalled: {error.strerror}"
    return ms.Hit(target.job, pid, rank, trouble)
