"""The tests' own machines: they are apart, they reach each other by the network alone, and nothing of them stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import wait_for
from tests.net.hosts import Host, Network, network

pytestmark = [pytest.mark.root, pytest.mark.net]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("net"), 2) as net:
        yield net


def _reaches(host: Host, other: Host) -> bool:
    """Whether a host gets an answer of another's kernel: a refusal by a port where nobody listens."""
    program = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 1), 0.3)\n"
        "except ConnectionRefusedError: sys.exit(0)\n"
        "except OSError: sys.exit(1)"
    )
    return host.run(sys.executable, "-c", program, other.address).returncode == 0


def test_hosts_reach_each_other_and_a_cut_one_nobody(net: Network) -> None:
    one, two = net.hosts
    assert _reaches(one, two) and _reaches(two, one)
    net.cut(two)
    assert not _reaches(one, two) and not _reaches(two, one)
    assert "state UP" in two.run("ip", "link", "show", "eth0").stdout, "a host that is cut off sees it"
    net.mend(two)
    wait_for(lambda: _reaches(one, two), "the mended link carries")


def test_each_host_has_names_processes_memory_and_a_boot_of_its_own(net: Network) -> None:
    one, two = net.hosts
    mark = f"/dev/shm/net-{os.getpid()}"
    assert one.run("sh", "-c", f"touch {mark}; hostname").stdout == "pc1\n"
    assert two.run("ls", mark).returncode == 2
    assert not Path(mark).exists()
    boots = {host.run("cat", "/proc/sys/kernel/random/boot_id").stdout for host in net.hosts}
    assert len(boots) == 2 and Path("/proc/sys/kernel/random/boot_id").read_text() not in boots
    assert int(one.run("sh", "-c", "echo $$").stdout) < 1000
    assert two.run("ls", "/sys/class/net/docker0", "/sys/fs/cgroup").returncode == 0


def test_a_crash_takes_all_processes_and_a_boot_brings_an_empty_host(net: Network) -> None:
    two = net.hosts[1]
    sleeper = two.start("setsid", "sleep", "600")
    wait_for(lambda: two.pids, "it runs")
    pids = two.pids
    before = two.run("cat", "/proc/sys/kernel/random/boot_id").stdout
    two.crash()
    assert sleeper.wait(10) != 0
    assert not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids)
    two.boot()
    assert two.pids == []
    assert two.run("cat", "/proc/sys/kernel/random/boot_id").stdout != before
    assert _reaches(net.hosts[0], two)


def test_nothing_of_a_network_is_left_on_this_machine(tmp_path: Path) -> None:
    links, mounts = socket.if_nameindex(), Path("/proc/self/mounts").read_text()
    with network(tmp_path, 1) as net:
        net.hosts[0].start("sleep", "600")
        wait_for(lambda: net.hosts[0].pids, "a process in it")
        pids = net.hosts[0].pids
        assert socket.if_nameindex() == links
    assert not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids)
    assert socket.if_nameindex() == links and Path("/proc/self/mounts").read_text() == mounts


def test_hosts_end_with_the_process_that_made_them(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from tests.net.hosts import Network\n"
        "net = Network(pathlib.Path(sys.argv[1]))\n"
        "print(net.add()._space.pid, flush=True)\n"
        "sys.stdin.read()"
    )
    maker = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout
    pid = int(maker.stdout.readline())
    assert Path(f"/proc/{pid}/ns/net").exists()
    maker.kill()
    maker.communicate()
    wait_for(lambda: not Path(f"/proc/{pid}/ns/net").exists(), "the end of its host")
