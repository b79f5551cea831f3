"""The service address on real interfaces: who has it, how it leaves a machine that is stopped, and how others learn."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster import wait_for
from tests.net.hosts import Host, Network, network

pytestmark = [pytest.mark.root, pytest.mark.net]

ADDRESS = "10.77.0.50"
# A head's loop as far as the address is concerned: it renews at each turn; a line on stdin is an order, and what has
# changed is a line on stdout.
LOOP = """
    import logging, select, sys
    from beo.ha import standing
    from beo.ha.address import ServiceAddress
    standing.PROBE_S = 1.5  # the last holder's second is over
    logging.disable()
    address = ServiceAddress(sys.argv[1], sys.argv[2], sys.argv[3])
    acts, before = False, ""
    while True:
        if select.select([sys.stdin], [], [], 0.05)[0]:
            acts = {"have\\n": True, "release\\n": False}[sys.stdin.readline()]
            if not acts:
                address.release()
        if acts:
            address.renew()
        now = f"held {address.is_held} {' '.join(address.troubles)}"
        if now != before:
            print(now, flush=True)
        before = now
"""


class Head:
    """Such a loop on a host."""

    def __init__(
        self, host: Host, address: str = f"{ADDRESS}/24", interface: str = "", front: tuple[str, ...] = ()
    ) -> None:
        words = [sys.executable, "-c", textwrap.dedent(LOOP), address, interface, f"{host.address}:7420"]
        self.process = host.start(*front, *words, stdin=subprocess.PIPE)
        self.host = host

    def say(self, order: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()

    def hear(self, wanted: str) -> str:
        """The first line that has this."""
        assert self.process.stdout
        for line in self.process.stdout:
            if re.search(wanted, line):
                return line
        raise AssertionError(f"it ended without {wanted!r}: {self.process.stderr and self.process.stderr.read()}")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("address"), 3) as net:
        yield net


@pytest.fixture
def heads(net: Network) -> Iterator[tuple[Head, Head]]:
    one, two = Head(net.hosts[0]), Head(net.hosts[1])
    yield one, two
    for head in (one, two):
        with suppress(OSError):
            head.say("release")
    for head in (one, two):
        wait_for(lambda head=head: not has(head.host), "the end of the address")  # type: ignore[misc]
        head.process.kill()  # nsenter's child goes with the namespace at the latest
        for pid in head.host.pids:
            subprocess.run(["kill", "-KILL", str(pid)], check=False)


def has(host: Host) -> bool:
    return f"inet {ADDRESS}/24" in host.run("ip", "addr", "show", "dev", "eth0").stdout


def mac(host: Host) -> str:
    return host.run("cat", "/sys/class/net/eth0/address").stdout.strip()


def loop(head: Head) -> list[int]:
    """The process of the loop itself, which nsenter started."""
    return [pid for pid in head.host.pids if b"ServiceAddress" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def send(head: Head, number: int) -> None:
    for pid in loop(head):
        subprocess.run(["kill", f"-{number}", str(pid)], check=True)


def whom_the_client_asks(client: Host) -> str:
    """The hardware address to which the client sends what is for the service address."""
    found = re.search(r"lladdr (\S+)", client.run("ip", "neigh", "show", ADDRESS).stdout)
    return found[1] if found else ""


def reached(client: Host) -> bool:
    return client.run("bash", "-c", f"exec 3<>/dev/tcp/{ADDRESS}/9", timeout_s=3).stderr.endswith("refused\n")


def test_it_stands_without_a_gap_while_it_is_renewed_and_goes_at_once_when_released(heads: tuple[Head, Head]) -> None:
    one, _ = heads
    monitor = one.host.start("ip", "-o", "monitor", "address")
    one.say("have")
    one.hear("held True")
    assert has(one.host)
    time.sleep(1.5)  # more than the second after which the kernel would have taken it
    assert has(one.host)
    one.say("release")
    one.hear("held False")
    wait_for(lambda: not has(one.host), "its end")
    subprocess.run(
        ["kill", *[str(pid) for pid in one.host.pids if "monitor" in Path(f"/proc/{pid}/cmdline").read_text()]]
    )
    told = [line for line in monitor.communicate()[0].splitlines() if ADDRESS in line]
    assert len(told) >= 5 and [line.startswith("Deleted") for line in told] == [False] * (len(told) - 1) + [True]


def test_a_stopped_daemon_loses_it_and_clients_find_the_other_head(heads: tuple[Head, Head], net: Network) -> None:
    one, two = heads
    client = net.hosts[2]
    one.say("have")
    one.hear("held True")
    assert reached(client) and whom_the_client_asks(client) == mac(one.host)
    send(one, signal.SIGSTOP)
    two.say("have")  # at once, as a quick take-over would: while the kernel of the other still has it
    two.hear("held True")
    wait_for(lambda: whom_the_client_asks(client) == mac(two.host), "the client's new knowledge")
    wait_for(lambda: not has(one.host), "the kernel's end of it")
    assert reached(client) and whom_the_client_asks(client) == mac(two.host)


def test_two_machines_that_both_have_it_are_told(heads: tuple[Head, Head]) -> None:
    for head in heads:
        head.say("have")
    one, two = heads
    assert f"{ADDRESS} is also at {mac(two.host)}: take it from that machine" in one.hear("also at")
    assert f"{ADDRESS} is also at {mac(one.host)}: take it from that machine" in two.hear("also at")


@pytest.mark.slow
def test_a_second_interface_of_the_same_machine_is_no_other_machine(net: Network) -> None:
    host = net.hosts[0]  # its docker0 and docker1 are the two ends of one cable: both answer for all of its addresses
    head = Head(host, address="172.17.0.50")
    head.say("have")
    head.hear("held True")
    time.sleep(2.2)  # the look for others is over
    head.say("release")
    assert head.hear("held") == "held False \n"
    head.process.kill()


def test_an_address_that_is_the_machines_own_is_neither_given_nor_taken(net: Network) -> None:
    host = net.hosts[0]
    head = Head(host, address=host.address)
    head.say("have")
    assert "is an address of this machine itself (on eth0)" in head.hear("own|itself")
    head.say("release")
    time.sleep(0.2)
    assert f"inet {host.address}/24" in host.run("ip", "addr", "show", "dev", "eth0").stdout
    head.process.kill()


def test_who_may_not_change_addresses_is_told_to_be_root(net: Network) -> None:
    front = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")
    head = Head(net.hosts[0], front=front)
    head.say("have")
    assert "run the head as root" in head.hear("can't have")
    head.process.kill()
