"""A machine without a disk whose address a router gave keeps its lease, by real clients and servers of DHCP.

The shortest lease that udhcpc believes in is of 16 seconds, and is renewed after half of them; so this takes a minute.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cluster import wait_for
from tests.net.hosts import Host, missing, network
from tests.test_boot_init import BUSYBOX, SCRIPTS, needs_busybox

pytestmark = [
    pytest.mark.root,
    pytest.mark.net,
    pytest.mark.slow,
    needs_busybox,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

LEASE_S = 16
GAP_MAX_S = 1.5  # two programs and two hosts share two cores with others
CONF = """start {first}
end {first}
interface eth0
option subnet 255.255.255.0
option lease 16
min_lease 10
auto_time 1
lease_file {folder}/leases
pidfile {folder}/pid
"""
# In the place of the worker: a connection that says a byte every 50 ms, hears it again, and notes the longest gap.
TALK = """
import os, socket, sys, time
with socket.create_connection(("10.77.0.1", 9000), 5) as link:
    link.settimeout(60)
    longest_s, heard_s = 0.0, time.monotonic()
    while True:
        link.sendall(b"x")
        assert link.recv(1) == b"x"
        now_s = time.monotonic()
        longest_s, heard_s = max(longest_s, now_s - heard_s), now_s
        said = f"{os.getpid()} {link.getsockname()[0]} {longest_s:.3f}"
        with open(sys.argv[1] + ".new", "w") as file:
            file.write(said)
        os.rename(sys.argv[1] + ".new", sys.argv[1])
        time.sleep(0.05)
"""
ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(99):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.daemon_threads = True
socketserver.ThreadingTCPServer(("10.77.0.1", 9000), Echo).serve_forever()
"""
# A server that takes an address back when it is asked to renew it; busybox's never does, and is silent then.
REFUSE = """
import socket
from beo.boot import dhcp
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    link.bind(("", dhcp.SERVER_PORT))
    while True:
        data, client = link.recvfrom(4096)
        packet = dhcp.parse(data)
        if packet.kind == dhcp.ASK and packet.ciaddr == client[0]:
            said = {dhcp.KIND: bytes((dhcp.NAK,)), dhcp.SERVER: bytes((10, 77, 0, 1)), 56: b"it is another's"}
            link.sendto(dhcp.encode(dhcp.Packet(op=dhcp.REPLY, mac=packet.mac, xid=packet.xid, options=said)), client)
            break
"""


class Router:
    """A host that gives one address, by busybox's server of DHCP."""

    def __init__(self, host: Host) -> None:
        self._host, self._folder = host, host.folder
        self._log = host.folder / "udhcpd.log"
        host.start(sys.executable, "-c", ECHO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def serve(self, address: str) -> None:
        """Give the machine that address from now on, and take every other one back."""
        (self._folder / "conf").write_text(CONF.format(first=address, folder=self._folder))
        (self._folder / "leases").touch()
        with self._log.open("ab") as log:
            self._host.start("busybox", "udhcpd", "-f", str(self._folder / "conf"), stdout=log, stderr=log)

    def be_silent(self) -> None:
        """Answer nobody any more; what was given is remembered."""
        done = self._host.run("sh", "-c", f"kill $(cat {self._folder}/pid)")
        assert done.returncode == 0, done

    def refuse(self) -> None:
        """Take the address back, at the next renewal; return when that is done."""
        done = self._host.run(sys.executable, "-P", "-c", REFUSE, timeout_s=2 * LEASE_S)
        assert done.returncode == 0, done

    @property
    def given(self) -> int:
        """How often it has given an address, renewals included."""
        return self._log.read_text(errors="replace").count("sending ACK")


class Machine:
    """A host with the scripts of a machine without a disk. Its worker is a program that talks with the router."""

    def __init__(self, host: Host) -> None:
        self._host, self._folder = host, host.folder
        self._changes = host.folder / "changes"
        (host.folder / "busybox").symlink_to(str(BUSYBOX))
        (host.folder / "run").mkdir()
        for name in ("lease", "renew", "worker"):
            text = (SCRIPTS / name).read_text().replace("#!/bin/busybox", "#!/usr/lib/beo/boot/busybox")
            text = text.replace("/usr/lib/beo/boot", str(host.folder)).replace("/run/beo", f"{host.folder}/run")
            text = text.replace("/dev/kmsg", f"{host.folder}/console").replace("/usr/bin/beo down", "")
            talk = f'{sys.executable} -c "$TALK" {host.folder}/talk 2>/dev/null'
            text = re.sub(r"/usr/bin/python3 .*", talk, text)
            (host.folder / name).write_text(text)
            (host.folder / name).chmod(0o755)

    def boot(self) -> None:
        """Get an address as init does, and go on as busybox's init does."""
        done = self._host.run("busybox", "udhcpc", "-n", "-q", "-i", "eth0", "-s", str(self._folder / "lease"))
        assert done.returncode == 0, done
        (self._folder / "run" / "lease").write_text("eth0\n")
        with self._changes.open("wb") as log:
            self._host.start("ip", "-4", "monitor", "address", stdout=log, stderr=log)
        self._host.start(str(self._folder / "renew"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = f"export TALK; while :; do {self._folder}/worker; sleep 0.1; done"
        self._host.start("env", f"TALK={TALK}", "sh", "-c", loop, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @property
    def is_talking(self) -> bool:
        """Whether its worker has said something."""
        return (self._folder / "talk").exists()

    @property
    def has_worker(self) -> bool:
        """Whether its worker runs."""
        for pid in self._host.pids:
            with suppress(OSError):
                if b"create_connection" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return True
        return False

    @property
    def talk(self) -> tuple[int, str, float]:
        """The worker's process, its address, and the longest gap in its connection until now."""
        words = (self._folder / "talk").read_text().split()
        return int(words[0]), words[1], float(words[2])

    @property
    def has_lost_its_address(self) -> bool:
        """Whether it was without the address that it has booted with, be it for a moment."""
        return "Deleted" in self._changes.read_text()

    @property
    def console(self) -> str:
        """What was said."""
        path = self._folder / "console"
        return path.read_text().replace("<3>beo: ", "") if path.exists() else ""

    def heard(self, text: str, limit_s: float) -> None:
        """Wait until the console has said something."""
        try:
            wait_for(lambda: text in self.console, text, limit_s)
        except AssertionError:
            print(self.console)
            raise


def test_an_address_stays_through_renewals_and_silence_and_another_one_is_told(tmp_path: Path) -> None:
    with network(tmp_path, 2) as net:
        router, machine = Router(net.hosts[0]), Machine(net.hosts[1])
        router.serve("10.77.0.200")
        machine.boot()
        began_s = time.monotonic()
        wait_for(lambda: machine.is_talking, "its worker talks")
        worker, address, _ = machine.talk
        assert address == "10.77.0.200"
        wait_for(lambda: router.given == 2, "its address was given to init, and again to who renews it")
        wait_for(lambda: router.given >= 4, "two renewals", 3 * LEASE_S)
        assert time.monotonic() - began_s > LEASE_S, "a lease has passed"
        assert machine.console == ""
        router.be_silent()
        machine.heard("no DHCP server renews the lease of 10.77.0.200: it is kept until one answers", 2 * LEASE_S)
        router.serve("10.77.0.200")
        machine.heard("the lease of 10.77.0.200 is renewed again", 2 * LEASE_S)
        again, address, gap_s = machine.talk
        assert (again, address) == (worker, "10.77.0.200"), "one connection through all of it"
        print(f"longest gap {gap_s:.3f} s")
        assert gap_s < GAP_MAX_S and not machine.has_lost_its_address
        router.be_silent()
        router.refuse()
        machine.heard("the DHCP server takes 10.77.0.200 back (it is another's)", 30)
        wait_for(lambda: not machine.has_worker, "its worker has ended")
        router.serve("10.77.0.210")
        machine.heard("this machine's address is 10.77.0.210 now", 2 * LEASE_S)
        wait_for(lambda: machine.talk[:2] != (worker, "10.77.0.200"), "its worker has begun anew")
        assert machine.talk[1] == "10.77.0.210" and machine.has_lost_its_address
