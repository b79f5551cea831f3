"""A machine without a disk, from power-on to a job's rank: by its firmware, a head's DHCP, iPXE, and an image.

It boots, joins, computes with a plain worker, writes to the tree, loses its power, is missed, and comes back by itself.
QEMU emulates it, on a cable to the head's network. What is built is kept in build/boot; the seconds are printed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from beo.boot import building
from beo.boot.images import Store
from beo.config import Home
from tests.cluster import wait_for
from tests.net.hosts import Host, network
from tests.test_boot_image import CACHE, missing

MISSING = [*missing, *(() if Path("/usr/lib/ipxe/undionly.kpxe").exists() else ("ipxe",))]
pytestmark = [
    pytest.mark.root,
    pytest.mark.net,
    pytest.mark.boot,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING), reason=f"no {' '.join(MISSING)} here: make boot-packages"),
]

MAC = "52:54:00:00:00:07"
BOOT_S = 240.0  # from power-on to up; a tenth of that on an idle machine
SETTINGS = """[worker]
lease_s = 3.0
[boot]
range = "10.77.0.100-10.77.0.120"
policy = "lan"
[files.mounts]
"/beo" = "/"
"""
# The machine's cable: a tap beside the host's own network card, on a bridge.
CABLE = (
    "ip link add bridge0 type bridge && ip link set bridge0 up && ip link set eth0 master bridge0 && "
    "ip tuntap add tap0 mode tap && ip link set tap0 master bridge0 && ip link set tap0 up"
)
QEMU = (
    *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024", "-machine", "pc"),
    *("-display", "none", "-no-reboot", "-boot", "n"),
    *("-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", f"virtio-net-pci,netdev=n,mac={MAC}"),
    *("-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r"),
)
WORK = (
    "PATH=$PATH:/usr/local/bin:/usr/bin python3 jobs/pi.py 100000 && echo $BEO_RANK on $BEO_NODE > /beo/rank$BEO_RANK"
)


class Site:
    """A head, a plain worker, and the host with the machine's cable."""

    def __init__(self, head: Host, plain: Host, cable: Host) -> None:
        self.head, self.plain, self.cable = head, plain, cable
        self.power: subprocess.Popen[str] | None = None

    def said(self, *words: str) -> str:
        """What a verb says, on the head."""
        done = self.head.beo(*words)
        assert done.returncode == 0, done
        return done.stdout

    def turn_on(self) -> None:
        """Press the button."""
        serial = self.cable.folder / "serial.log"
        self.power = self.cable.start(*QEMU, "-serial", f"file:{serial}")

    def lose_power(self) -> None:
        """Pull the plug."""
        for pid in self.cable.pids:
            if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes():
                subprocess.run(["kill", "-9", str(pid)], check=True)
        assert self.power
        self.power.wait()

    def state(self, name: str) -> str:
        """A node's state, "" where there is none."""
        rows = msgspec.json.decode(self.said("nodes", "--json"))
        return next((row["state"] for row in rows if row["name"] == name), "")

    def wait_for_up(self) -> float:
        """Wait until the machine computes; how long that took, in seconds."""
        began_s = time.monotonic()
        try:
            wait_for(lambda: self.state("pc01") == "up", "the machine is up", BOOT_S)
        except AssertionError:
            self.tell()
            raise
        return time.monotonic() - began_s

    def tell(self) -> None:
        """Print what a person would look at."""
        for words in (("console", "--all", "pc01"), ("node", "list"), ("nodes",), ("show", "all"), ("doctor",)):
            print(self.head.beo(*words).stdout)
        print((self.cable.folder / "serial.log").read_text(errors="replace")[-4_000:])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("diskless")
    store = Store(Home(folder / "built"))
    began_s = time.monotonic()
    image = building.build(store, building.Wish("vm"), CACHE, print)
    store.use(image.sha256)
    print(f"\nimage {image.size_bytes / 1e6:.1f} MB, built in {time.monotonic() - began_s:.1f} s")
    (folder / "net").mkdir()
    with network(folder / "net", 3) as net:
        head, plain, cable = net.hosts
        head.beo_dir.mkdir(mode=0o700)
        (head.beo_dir / "beo.toml").write_text(SETTINGS)
        shutil.move(store.folder, head.beo_dir / "images")
        one = Site(head, plain, cable)
        line = next(line for line in one.said("head", "init").splitlines() if "beo worker" in line)
        plain.beo_dir.mkdir(mode=0o700)
        (plain.beo_dir / "beo.toml").write_text('[files.mounts]\n"/beo" = "/"\n')
        done = plain.beo(*line.split()[1:], "--slots", "1")
        assert done.returncode == 0, done
        done = cable.run("sh", "-c", CABLE)
        assert done.returncode == 0, done.stderr
        one.said("boot", "serve", "--interface", "eth0", "--mode", "dhcp")
        yield one
        one.said("down")
        plain.beo("down")
    shutil.rmtree(folder)


def work(site: Site) -> None:
    """A job over both nodes: an MPI program, whose ranks write to the tree."""
    done = site.head.beo("run", "-n", "2", "-N", "2", "--in", "jobs/pi.py", "sh", "-c", WORK)
    if done.returncode:
        site.tell()
    assert done.returncode == 0, done
    assert re.search(r"^pi 3\.14159", done.stdout, re.MULTILINE), done
    nodes = {site.said("cat", f"/rank{rank}").split()[-1] for rank in range(2)}
    assert "pc01" in nodes and len(nodes) == 2


def test_a_machine_without_a_disk_boots_works_loses_its_power_and_comes_back(site: Site) -> None:
    site.turn_on()
    first_s = site.wait_for_up()
    console = site.said("console", "--all", "pc01")
    work(site)
    site.lose_power()
    wait_for(lambda: site.state("pc01") == "lost", "it is missed")
    site.turn_on()
    second_s = site.wait_for_up()
    work(site)
    phases = ", ".join(f"{what} {at} s" for what, at in re.findall(r"beo: (\w+).* after ([0-9.]+) s", console))
    print(f"up {first_s:.1f} s after power-on, {second_s:.1f} s the second time; since the kernel began: {phases}")
