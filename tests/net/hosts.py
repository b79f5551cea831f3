"""Machines for the tests: hosts of one kernel, each with a network, processes, IPC, mounts and a boot id of its own.

    with network(3) as net:
        head, one, two = net.hosts
        head.beo("head", "init")
        net.cut(one)

A host is a process that waits in namespaces of its own, connected by a veth pair to a bridge that stands in a
namespace, too. So nothing of it has a name on the real machine that could collide with another test's, and nothing
needs to be cleaned up: when the waiting processes end, and they do so when the test's process does, the kernel removes
it all.

Every host has a second interface, `docker0`, with the same address on each, as the machines of a lab may have: it is
a trap for MPI.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.cluster import BEO, PATIENCE_S, ROOT, is_alive, wait_for

NETWORK = "10.77.0"
DECOY = "172.17.0.1/16"
INSTALL = "apt-get install -y iproute2 util-linux"

# PID 1 of a host: nobody need reap its children, and it ends with whoever holds the other end of its stdin.
_WAIT = "trap '' CHLD; echo ready; exec cat"
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


def missing() -> str:
    """What is missing here to make hosts, in one line with the cure; "" where nothing is."""
    absent = [program for program in ("ip", "unshare", "nsenter") if not shutil.which(program)]
    return f"no {' and no '.join(absent)} here: {INSTALL}" if absent else ""


class _Space:
    """A process that waits in namespaces of its own."""

    def __init__(self, kinds: tuple[str, ...], script: str, env: dict[str, str]) -> None:
        words = ["unshare", *(f"--{kind}" for kind in kinds), "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._outer = subprocess.Popen(
            [*words, "sh", "-c", script + _WAIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **env},
            text=True,
        )
        assert self._outer.stdout and self._outer.stderr
        line = self._outer.stdout.readline()
        assert line == "ready\n", f"no namespaces: {line}{self._outer.stderr.read()}"
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self.pid = int(children[0])
        self.own = {self._outer.pid, self.pid}

    def enter(self, *kinds: str) -> list[str]:
        """The words in front of a command that is to run in there."""
        return ["nsenter", "--target", str(self.pid), *(f"--{kind}" for kind in kinds)]

    def end(self) -> None:
        """SIGKILL to its first process, and so to all of them at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for stream in (self._outer.stdin, self._outer.stdout, self._outer.stderr):
            if stream:
                stream.close()
        self._outer.wait()
        wait_for(lambda: not is_alive(self.pid), "the end of a host")


def _do(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


class Host:
    """One machine: `name`, `address`, and `folder`, which outlives its crashes, with the BEO_DIR `beo` in it."""

    def __init__(self, net: Network, number: int, folder: Path) -> None:
        """Switch it on."""
        self._net = net
        self.name = f"pc{number}"
        self.address = f"{NETWORK}.{number}"
        self.mac = f"02:00:00:00:00:{number:02x}"  # the same after each boot, as that of a real one
        self.folder = folder
        self.beo_dir = folder / "beo"
        folder.mkdir(mode=0o700)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("BEO_", "PMI_"))}
        self.env |= {
            "BEO_DIR": str(self.beo_dir),
            "BEO_RESIDENT": "0",  # hosts share /tmp, and one host's resident process is not another's
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self.boot()

    def boot(self) -> None:
        """Switch it on: nothing runs, and the kernel's boot id is another than before."""
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        words = {"NAME": self.name, "FOLDER": str(self.folder)}
        self._space = _Space(("net", "mount", "uts", "ipc"), _FURNISH, words)
        self._net.plug(self, self._space.pid)
        for line in (
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {NETWORK}.254",
            "link add docker0 type veth peer name docker1",
            f"addr add {DECOY} dev docker0",
            "link set docker0 up",
            "link set docker1 up",
        ):
            _do([*self._space.enter("net"), "ip", *line.split()])

    def crash(self) -> None:
        """Cut its power: everything in it ends at once, and its folder stays."""
        self._space.end()

    @property
    def pids(self) -> list[int]:
        """Every process that runs in it, by the numbers of the real machine."""
        mine = os.stat(f"/proc/{self._space.pid}/ns/net").st_ino
        found = []
        for entry in os.scandir("/proc"):
            with suppress(OSError):
                if entry.name.isdigit() and os.stat(f"{entry.path}/ns/net").st_ino == mine:
                    found.append(int(entry.name))
        return [pid for pid in found if pid not in self._space.own and is_alive(pid)]

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
    """A switch, and hosts pc1, pc2, ... at 10.77.0.1, 10.77.0.2, ..."""

    def __init__(self, folder: Path) -> None:
        """Make the switch."""
        self._folder = folder
        self.hosts: list[Host] = []
        self.commands: list[subprocess.Popen[str]] = []
        self._switch = _Space(("net",), "", {})
        self._ip("link add switch type bridge")
        self._ip("link set switch up")

    def _ip(self, line: str) -> None:
        _do([*self._switch.enter("net"), "ip", *line.split()])

    def add(self) -> Host:
        """Switch on one more host."""
        number = len(self.hosts) + 1
        host = Host(self, number, self._folder / f"pc{number}")
        self.hosts.append(host)
        return host

    def plug(self, host: Host, pid: int) -> None:
        """Connect the namespace of a process to the switch, as the eth0 of a host."""
        with suppress(AssertionError):  # the other end of a cable went with its host, a moment ago or just now
            self._ip(f"link del {host.name}")
        self._ip(f"link add {host.name} type veth peer name eth0 address {host.mac} netns {pid}")
        self._ip(f"link set {host.name} master switch up")

    def cut(self, host: Host) -> None:
        """Cut a host off without a word: its link stays up, and nothing arrives on either side."""
        self._ip(f"link set {host.name} nomaster")

    def mend(self, host: Host) -> None:
        """Connect a host again."""
        self._ip(f"link set {host.name} master switch")

    def close(self) -> None:
        """End everything."""
        for host in self.hosts:
            host.crash()
        self._switch.end()
        for process in self.commands:
            process.wait(PATIENCE_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()


@contextmanager
def network(folder: Path, hosts: int) -> Iterator[Network]:
    """A network with so many hosts, each with a folder below `folder`; at the end nothing of it is left.

    Where the test fails, the last lines of every log are printed.
    """
    net = Network(folder)
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
