"""Machines for the tests: hosts of one kernel, each with a network, processes, IPC, mounts and a boot id of its own.

    with network(folder, 3) as net:
        head, one, two = net.hosts
        head.beo("head", "init")
        net.cut(one)
        two.stop()

A host is a process that waits in namespaces of its own (space.py), connected by veth pairs to bridges that stand in a
namespace, too (switch.py). So nothing of it has a name on the real machine that could collide with another test's, and
nothing needs to be cleaned up: when the waiting processes end, and they do so when the test's process does, the kernel
removes it all.

Every host has one more interface, `docker0`, with the same address on each, as the machines of a lab may have: it is
a trap for MPI.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from beo import config
from beo.errors import NoHead
from beo.worker import remains
from tests.cluster import BEO, PATIENCE_S, ROOT, is_alive, kill, send, wait_for
from tests.net.space import Space, do, missing
from tests.net.switch import ANY, NOT_ARP, Switch, Way, some

__all__ = ["ANY", "DECOY", "NETWORKS", "Host", "Network", "missing", "network"]

NETWORKS = ("10.77.0", "10.78.0")  # of eth0 and eth1
DECOY = "172.17.0.1/16"

# What a container would have: a /sys with its own network devices and the machine's cgroups, a /dev/shm, a name.
_FURNISH = """
set -e
mount --make-rprivate /
mkdir -p "$FOLDER/cgroup"
mount --rbind /sys/fs/cgroup "$FOLDER/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$FOLDER/cgroup" /sys/fs/cgroup
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount --bind "$FOLDER/boot_id" /proc/sys/kernel/random/boot_id
hostname "$NAME"
ip link set lo up
"""
# A word of their command lines.
_DAEMONS = {"head": b"beo.headnode.server", "agent": b"beo.worker.agent", "supervisor": b"supervise"}


class Host:
    """One machine: `name`, `address`, and `folder`, which outlives its crashes, with the BEO_DIR `beo` in it.

    Where it has a disk of its own, its processes see that folder as `inside`.
    """

    def __init__(self, net: Network, number: int, folder: Path, links: Collection[int], disk_bytes: int) -> None:
        """Switch it on. links: the networks that it is in. disk_bytes: of a file system of its own; 0 for none."""
        self._net = net
        self.name = f"pc{number}"
        self.addresses = {link: f"{NETWORKS[link]}.{number}" for link in links}
        self.address = next(iter(self.addresses.values()))
        self._macs = {link: f"02:00:00:00:{link:02x}:{number:02x}" for link in links}  # the same after each boot
        folder.mkdir(mode=0o700)
        self.inside = folder
        self.folder = net.switch.make_disk(folder, disk_bytes) if disk_bytes else folder
        self.beo_dir = self.folder / "beo"
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("BEO_", "PMI_"))}
        self.env |= {
            "BEO_DIR": str(folder / "beo"),
            "BEO_RESIDENT": "0",  # hosts share /tmp, and one host's resident process is not another's
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.boot()

    def boot(self) -> None:
        """Switch it on: nothing runs, and the kernel's boot id is another than before."""
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        words = {"NAME": self.name, "FOLDER": str(self.inside)}
        self._space = Space(("net", "mount", "uts", "ipc"), _FURNISH, words, self._net.switch.space)
        self._ns = os.stat(f"/proc/{self._space.pid}/ns/net").st_ino
        self._net.switch.plug(self.name, self._space.pid, self._macs)
        lines = [
            *(f"addr add {address}/24 dev eth{link}" for link, address in self.addresses.items()),
            *(f"link set eth{link} up" for link in self.addresses),
            f"route add default via {self.address.rpartition('.')[0]}.254",
            "link add docker0 type veth peer name docker1",
            f"addr add {DECOY} dev docker0",
            "link set docker0 up",
            "link set docker1 up",
        ]
        do([*self._space.enter("net"), "ip", "-batch", "-"], "\n".join(lines) + "\n")

    def crash(self) -> None:
        """Cut its power: everything in it ends at once, and its folder stays."""
        self.lose_power()
        self._space.end()

    def sweep(self) -> None:
        """Remove what jobs had in /tmp when it lost its power: a worker's own is in its memory, hosts share one."""
        with suppress(NoHead):
            remains.remove(config.Home(self.beo_dir).cluster().cluster, [self.name])

    def lose_power(self) -> None:
        """The first half of a crash, which is to be called afterwards: so several hosts fall at one moment."""
        self._space.kill()
        send(self._waiting, signal.SIGCONT)  # one that is stopped never reaps its child, without which no end is whole

    @property
    def pids(self) -> list[int]:
        """Every process that runs in it, by the numbers of the real machine."""
        return [pid for pid in self._all() if _world(pid) != _world(os.getpid())]

    @property
    def _waiting(self) -> list[int]:
        """The processes outside that wait for a command in it, and do as it does: nsenter stops where that stops."""
        return [pid for pid in self._all() if _world(pid) == _world(os.getpid())]

    def _all(self) -> list[int]:
        found = []
        for entry in os.scandir("/proc"):
            with suppress(OSError):
                if entry.name.isdigit() and os.stat(f"{entry.path}/ns/net").st_ino == self._ns:
                    found.append(int(entry.name))
        return [pid for pid in found if pid not in self._space.own and is_alive(pid)]

    def stop(self, *kinds: str) -> None:
        """Pause it: SIGSTOP to every process, or its daemons of these kinds. Its kernel still takes what arrives."""
        if kinds:
            send(self.daemons(*kinds), signal.SIGSTOP)
            return
        wait_for(self._halt, f"{self.name} is stopped")

    def _halt(self) -> bool:
        """Send SIGSTOP to what still runs in it; say whether nothing does, and nobody outside waits for more."""
        moving = [pid for pid in self.pids if not _is_stopped(pid)]
        for pid in moving:
            if _state(pid) == "D":  # within a vfork it stops only when its child, stopped just before, has begun
                send(_children(pid), signal.SIGCONT)
            else:
                send([pid], signal.SIGSTOP)
        return not moving and all(map(_is_stopped, self._waiting))

    def go_on(self) -> None:
        """Let it go on."""
        send([*self.pids, *self._waiting], signal.SIGCONT)

    def daemons(self, *kinds: str) -> list[int]:
        """The processes of its `head`, `agent` and `supervisor`, by the numbers of the real machine; all without words.

        A warden is none: it lives on when an agent is killed.
        """
        marks = [_DAEMONS[kind] for kind in kinds or _DAEMONS]
        found = []
        for pid in self.pids:
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(mark in words for mark in marks):
                    found.append(pid)
        return found

    def kill(self, *kinds: str) -> None:
        """SIGKILL to its daemons of these kinds, and wait for their end."""
        kill(self.daemons(*kinds))

    def fill_disk(self) -> None:
        """Leave not one byte free on its disk, which has to be one of its own."""
        assert self.folder != self.inside, f"{self.name} has no disk of its own: fill no other"
        with suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
            for size_bytes in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while file.write(bytes(size_bytes)):
                        pass

    def empty_disk(self) -> None:
        """Free what was filled."""
        (self.folder / "filler").unlink(missing_ok=True)

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in it, in a shell's usual surroundings; its streams are pipes unless `options` say else."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        enter = self._space.enter("net", "mount", "uts", "ipc", "pid", f"wd={ROOT}")
        process = subprocess.Popen([*enter, "--", *words], env=self.env, text=True, **{**pipes, **options})
        self._net.commands.append(process)
        return process

    def run(self, *words: str, timeout_s: float = 2 * PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a command in it to its end; what hangs is ended in there by timeout(1): exit 124."""
        process = self.start("timeout", "--kill-after=5", str(timeout_s), *words)
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def beo(self, *words: str, timeout_s: float = 2 * PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run `beo WORDS` in it to its end."""
        return self.run(*BEO, *words, timeout_s=timeout_s)


class Network:
    """A switch, or two, and hosts pc1, pc2, ... at 10.77.0.1, 10.77.0.2, ... and 10.78.0.1, 10.78.0.2, ..."""

    def __init__(self, folder: Path, links: int = 1) -> None:
        """Make the switches."""
        self._folder = folder
        self._links = range(links)
        self.hosts: list[Host] = []
        self.commands: list[subprocess.Popen[str]] = []
        self.switch = Switch(links)

    def add(self, links: Collection[int] = (), disk_bytes: int = 0) -> Host:
        """Switch on one more host, connected to these switches (default: all)."""
        number = len(self.hosts) + 1
        host = Host(self, number, self._folder / f"pc{number}", links or self._links, disk_bytes)
        self.hosts.append(host)
        return host

    # ---- what goes wrong between hosts: nobody is told, links stay up

    def cut(self, host: Host, link: int = ANY) -> None:
        """Cut a host off: nothing arrives on either side, on this link or on any."""
        self.switch.lose([(host.name, "", link), ("", host.name, link)])

    def part(self, one: Host, other: Host, link: int = ANY) -> None:
        """Nothing arrives between these two, in neither way."""
        self.switch.lose(_ways(one, other, link))

    def deafen(self, host: Host, source: Host | None = None, link: int = ANY) -> None:
        """Nothing arrives at `host` from `source`, or from anybody; what it says itself arrives."""
        self.switch.lose([(source.name if source else "", host.name, link)], NOT_ARP)

    def lose(self, one: Host, other: Host, percent: int, link: int = ANY) -> None:
        """So many of 100 frames between these two get lost, at random."""
        self.switch.lose(_ways(one, other, link), some(percent))

    def mend(self, host: Host | None = None) -> None:
        """End all that was done to the cables of a host, or of all."""
        self.switch.mend(host.name if host else "")

    def crash(self, *hosts: Host) -> None:
        """Cut the power of several hosts in one moment."""
        for host in hosts:
            host.lose_power()
        for host in hosts:
            host.crash()

    def close(self) -> None:
        """End everything."""
        self.crash(*self.hosts)
        for host in self.hosts:
            host.sweep()
        self.switch.space.end()
        for process in self.commands:
            process.wait(PATIENCE_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()


def _world(pid: int) -> str:
    """The PID namespace of a process, "" where it has gone."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _is_stopped(pid: int) -> bool:
    return _state(pid) in "TZX"


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _ways(one: Host, other: Host, link: int) -> list[Way]:
    return [(one.name, other.name, link), (other.name, one.name, link)]


@contextmanager
def network(folder: Path, hosts: int, links: int = 1) -> Iterator[Network]:
    """So many networks with so many hosts, each with a folder below `folder`; at the end nothing of it is left.

    Where the test fails, the last lines of every log are printed.
    """
    net = Network(folder, links)
    try:
        for _ in range(hosts):
            net.add()
        yield net
    except BaseException:
        for host in net.hosts:
            for log in sorted(host.beo_dir.glob("log/*.log")):
                lines = log.read_text(errors="replace").splitlines()[-30:]
                print(f"--- {host.name} {log.name}", *lines, sep="\n", file=sys.stderr)
        raise
    finally:
        net.close()
