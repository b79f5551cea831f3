"""The server of boots where its network is broken, or somebody in it is: it goes on, or ends and says why."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.boot_site import fill
from tests.cluster import wait_for
from tests.net.hosts import Host, network

pytestmark = [pytest.mark.root, pytest.mark.net]

# A wish to read by TFTP whose sender says that he is everybody in the network.
FROM_EVERYBODY = """
import socket, struct
from beo.boot import ether
words = b"\\0\\1undionly.kpxe\\0octet\\0"
words = struct.pack("!HHHH", 777, 69, 8 + len(words), 0) + words
ends = socket.inet_aton("10.77.0.255") + socket.inet_aton("10.77.0.1")
head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(words), 1, 0, 64, 17, 0) + ends
total = sum(struct.unpack("!10H", head))
head = head[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[12:]
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind(("eth0", 0))
link.send(b"\\xff" * 6 + bytes.fromhex(ether.mac("eth0").replace(":", "")) + b"\\x08\\0" + head + words)
"""
WAKE = "from beo.cli import power; from tests.test_node import view; print(power.turn(view(), 'on', ''))"
OUTSIDE = """
ip link add out type veth peer name far
ip addr add 192.0.2.2/24 brd + dev out
ip link set out up
ip link set far up
ip route replace default via 192.0.2.1
"""
ASLEEP = """
import socket
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
link.settimeout(10)
print("asleep", flush=True)
while bytes.fromhex("525400006601") * 16 not in link.recv(2_048):
    pass
"""


@contextmanager
def serving(
    folder: Path, mode: str = "dhcp", pool: str = "10.77.0.100-10.77.0.120"
) -> Iterator[tuple[Host, Host, subprocess.Popen[str], Path]]:
    """A head that lets machines boot, another host in its network, the server, and its log."""
    (folder / "net").mkdir()
    with network(folder / "net", 2) as net:
        head, machine = net.hosts
        where = head.folder / "beo"
        fill(where)
        (where / "firmware").mkdir()
        (where / "beo.toml").write_text(f"[boot]\nrange = '{pool}'\n")
        (where / "firmware" / "undionly.kpxe").write_bytes(b"k" * 1_000)
        log = folder / "server.log"
        with log.open("wb") as out:
            argv = sys.executable, "-m", "tests.net.boot_server", str(where), mode
            server = head.start(*argv, stdout=out, stderr=out)
        status = where / "run" / "boot.json"
        wait_for(lambda: server.poll() is not None or status.exists(), "the server of boots")
        assert server.poll() is None, log.read_text()
        yield head, machine, server, log


def test_a_head_without_addresses_to_give_says_so_where_nobody_gives_any(tmp_path: Path) -> None:
    with serving(tmp_path, "auto", "") as (head, _, server, log):
        status = head.folder / "beo" / "run" / "boot.json"
        wait_for(lambda: server.poll() is not None or "nobody gives addresses" in status.read_text(), "it is told")
        assert server.poll() is None, log.read_text()


def test_who_says_that_he_is_everybody_ends_no_server(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, machine, server, log):
        done = machine.run(sys.executable, "-c", FROM_EVERYBODY)
        assert done.returncode == 0, done.stderr
        refused = "nothing can be sent to 10.77.0.255"
        wait_for(lambda: server.poll() is not None or refused in log.read_text(), "it is heard")
        done = machine.run(sys.executable, "-m", "tests.net.booter", "tftp", "10.77.0.1", "undionly.kpxe")
        assert server.poll() is None, log.read_text()
        assert json.loads(done.stdout)["size"] == 1_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ip link delete eth0", "no interface 'eth0'"),
        ("ip addr flush dev eth0; ip addr add 10.77.0.9/24 dev eth0", "has 10.77.0.9/24 now, and had 10.77.0.1/24"),
    ],
)
def test_a_server_whose_interface_is_another_now_ends_so_that_a_new_one_hears(
    tmp_path: Path, change: str, said: str
) -> None:
    with serving(tmp_path) as (head, _, server, log):
        done = head.run("sh", "-c", change)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: server.poll() is not None, "its end")
        assert said in log.read_text()


def test_an_interface_that_is_down_is_told_and_serves_again_when_it_is_up(tmp_path: Path) -> None:
    with serving(tmp_path) as (head, machine, server, log):
        status = head.folder / "beo" / "run" / "boot.json"
        assert head.run("ip", "link", "set", "eth0", "down").returncode == 0
        wait_for(lambda: "eth0 is down" in status.read_text(), "it is told")
        assert head.run("ip", "link", "set", "eth0", "up").returncode == 0
        wait_for(lambda: "eth0 is down" not in status.read_text(), "it is well again")
        done = machine.run(sys.executable, "-m", "tests.net.booter", "tftp", "10.77.0.1", "undionly.kpxe")
        assert server.poll() is None and json.loads(done.stdout)["size"] == 1_000, log.read_text()


def test_a_machine_is_waked_in_the_network_of_the_machines_not_by_the_default_route(tmp_path: Path) -> None:
    with network(tmp_path, 2) as net:
        head, machine = net.hosts
        assert head.run("sh", "-ec", OUTSIDE).returncode == 0
        with machine.start(sys.executable, "-c", ASLEEP, stdout=subprocess.PIPE) as card:
            assert card.stdout and card.stdout.readline() == "asleep\n"
            done = head.run(sys.executable, "-c", WAKE)
            assert done.returncode == 0 and "10.77.0.255" in done.stdout, done
            assert card.wait(20) == 0
