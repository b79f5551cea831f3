"""The tests' own machines: they are apart, they reach each other by the network alone, and nothing of them stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import kill, wait_for
from tests.net.hosts import Host, Network, network

pytestmark = [pytest.mark.root, pytest.mark.net]

DISK_BYTES = 4 << 20


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("net"), 2, links=2) as net:
        net.add(links=[0], disk_bytes=DISK_BYTES)
        yield net


@pytest.fixture(autouse=True)
def whole(net: Network) -> Iterator[None]:
    yield
    net.mend()


def _reaches(host: Host, other: Host, link: int = 0) -> bool:
    """Whether a host gets an answer of another's kernel: a refusal by a port where nobody listens."""
    program = (
        "import socket, sys\n"
        "try: socket.create_connection((sys.argv[1], 1), 0.15)\n"
        "except ConnectionRefusedError: sys.exit(0)\n"
        "except OSError: sys.exit(1)"
    )
    return host.run(sys.executable, "-c", program, other.addresses[link]).returncode == 0


def _arriving(source: Host, target: Host) -> int:
    """How many of 500 datagrams arrive."""
    program = (
        "import socket, sys\n"
        "ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "ear.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)\n"  # SO_RCVBUFFORCE: room for all, however slow this is
        "ear.bind(('', 7))\n"
        "print('ready', flush=True)\n"
        "count = 0\n"
        "ear.settimeout(5)\n"
        "while ear.recv(100) != b'end':\n"
        "    count += 1\n"
        "print(count)"
    )
    listener = target.start(sys.executable, "-c", program)
    assert listener.stdout and listener.stdout.readline() == "ready\n"
    program = (
        "import socket, sys\n"
        "mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "mouth.connect((sys.argv[1], 7))\n"
        "for _ in range(500): mouth.send(b'.')\n"
        "try:\n"
        "    for _ in range(50): mouth.send(b'end')\n"
        "except ConnectionRefusedError: pass"  # one was enough
    )
    assert source.run(sys.executable, "-c", program, target.address).returncode == 0
    return int(listener.communicate()[0])


def test_hosts_reach_each_other_and_a_cut_one_nobody(net: Network) -> None:
    one, two, _ = net.hosts
    assert _reaches(one, two) and _reaches(two, one)
    net.cut(two)
    assert not _reaches(one, two) and not _reaches(two, one) and not _reaches(one, two, link=1)
    assert "state UP" in two.run("ip", "link", "show", "eth0").stdout, "a host that is cut off sees it"
    net.mend(two)
    wait_for(lambda: _reaches(one, two), "the mended link carries")


def test_two_hosts_are_parted_and_both_reach_the_third(net: Network) -> None:
    one, two, three = net.hosts
    net.part(one, two)
    assert not _reaches(one, two) and not _reaches(two, one)
    assert _reaches(one, three) and _reaches(two, three) and _reaches(three, one)
    net.cut(three)
    net.mend(one)
    assert _reaches(one, two) and not _reaches(one, three), "what was done to another stays"


def test_a_cut_of_one_link_leaves_the_other(net: Network) -> None:
    one, two, _ = net.hosts
    wait_for(lambda: _reaches(one, two, link=1), "both know where the other is")
    net.part(one, two, link=0)
    assert not _reaches(one, two) and _reaches(one, two, link=1)
    net.mend()
    net.cut(two, link=1)
    assert _reaches(one, two) and not _reaches(one, two, link=1)


def test_a_one_way_cut_lets_the_other_way_through(net: Network) -> None:
    one, two, three = net.hosts
    assert _arriving(one, two) == _arriving(two, one) == 500
    net.deafen(two, one)
    assert _arriving(two, one) == 500 and _arriving(two, three) == 500 and _arriving(three, two) == 500
    assert not _reaches(one, two)
    net.mend()
    net.deafen(one)
    assert _arriving(one, three) == 500 and not _reaches(three, one)


def test_loss_takes_as_many_as_it_says_and_of_nobody_else(net: Network) -> None:
    one, two, three = net.hosts
    net.lose(one, two, 30)
    assert 280 < _arriving(one, two) < 420 and 280 < _arriving(two, one) < 420  # 350 +- 7 standard deviations
    assert _arriving(one, three) == 500


def test_a_stopped_host_does_nothing_and_goes_on_where_it_was(net: Network) -> None:
    one = net.hosts[0]
    counter = one.start("sh", "-c", "n=0; while echo $n; do n=$((n+1)); sleep 0.01; done")
    assert counter.stdout
    for _ in range(3):
        counter.stdout.readline()
    one.stop()
    states = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in one.pids}
    assert states == {"T"}
    one.go_on()
    last = int(counter.stdout.readline())
    assert [int(counter.stdout.readline()) for _ in range(20)] == list(range(last + 1, last + 21))
    kill(one.pids)


def is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    except OSError:
        return False


def test_daemons_are_killed_by_their_kind_and_others_live_on(net: Network) -> None:
    one, two, _ = net.hosts
    for host, word in ((one, "beo.headnode.server"), (one, "beo.worker.agent"), (two, "beo.headnode.server")):
        host.start("sh", "-c", "sleep 600; exit", word)  # a command line that has the word, as a daemon's has
    # Until its child has become another program, a shell that has just forked is there twice.
    wait_for(lambda: [sum(map(is_sleep, host.pids)) for host in (one, two)] == [2, 1], "they run")
    (head,), (agent,) = one.daemons("head"), one.daemons("agent")
    one.kill("head")
    assert (one.daemons("head"), one.daemons()) == ([], [agent]) and head != agent
    assert len(two.daemons("head")) == 1
    kill([*one.pids, *two.pids])


def test_a_small_disk_fills_and_empties_and_outlives_a_crash(net: Network) -> None:
    three = net.hosts[2]
    size = three.run("sh", "-c", "mkdir $BEO_DIR; df --output=size -B1 $BEO_DIR | tail -1").stdout
    assert int(size) == DISK_BYTES
    (three.beo_dir / "kept").write_text("word")
    three.fill_disk()
    full = three.run("sh", "-c", "cat /etc/hostname > $BEO_DIR/more")
    assert full.returncode != 0 and "No space left" in full.stderr
    three.crash()
    three.boot()
    assert three.run("sh", "-c", "cat $BEO_DIR/kept").stdout == "word"
    three.empty_disk()
    assert three.run("sh", "-c", "echo more > $BEO_DIR/more").returncode == 0
    assert str(three.beo_dir).startswith("/proc/") and not Path(three.env["BEO_DIR"]).exists()


def test_all_hosts_lose_their_power_at_once(net: Network) -> None:
    for host in net.hosts:
        host.start("sleep", "600")
        wait_for(lambda host=host: host.pids, "it runs")  # type: ignore[misc]
    pids = [pid for host in net.hosts for pid in host.pids]
    net.crash(*net.hosts)
    assert not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids)
    for host in net.hosts:
        host.boot()
    assert _reaches(net.hosts[0], net.hosts[2]) and [host.pids for host in net.hosts] == [[], [], []]


def test_each_host_has_names_processes_memory_and_a_boot_of_its_own(net: Network) -> None:
    one, two, _ = net.hosts
    mark = f"/dev/shm/net-{os.getpid()}"
    assert one.run("sh", "-c", f"touch {mark}; hostname").stdout == "pc1\n"
    assert two.run("ls", mark).returncode == 2
    assert not Path(mark).exists()
    boots = {host.run("cat", "/proc/sys/kernel/random/boot_id").stdout for host in net.hosts}
    assert len(boots) == 3 and Path("/proc/sys/kernel/random/boot_id").read_text() not in boots
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
