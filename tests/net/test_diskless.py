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
from tests.cluster import kill, wait_for
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

OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")
BOOT_S = 240.0  # from power-on to up; a tenth of that on an idle machine
SETTINGS = """[worker]
lease_s = 3.0
[boot]
range = "10.77.0.100-10.77.0.120"
policy = "lan"
[files.mounts]
"/beo" = "/"
"""
# The machines' cables: taps beside the host's own network card, on a bridge.
CABLES = (
    "ip link add bridge0 type bridge && ip link set bridge0 up && ip link set eth0 master bridge0 && "
    "for tap in tap7 tap8; do ip tuntap add $tap mode tap && ip link set $tap master bridge0 up; done"
)
WORK = (
    "PATH=$PATH:/usr/local/bin:/usr/bin python3 jobs/pi.py 100000 && echo $BEO_RANK on $BEO_NODE > /beo/rank$BEO_RANK"
)


class Machine:
    """One that QEMU emulates, on one of the cables. It has no disk."""

    def __init__(self, cable: Host, number: int, is_uefi: bool = False) -> None:
        self._cable, self._number, self._is_uefi = cable, number, is_uefi
        self._serial = cable.folder / f"serial{number}.log"
        self._power: subprocess.Popen[str] | None = None

    @property
    def mac(self) -> str:
        return f"52:54:00:00:00:{self._number:02x}"

    @property
    def screen(self) -> str:
        """What it has on its screen, as far as that is text."""
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def turn_on(self) -> None:
        """Press the button."""
        net = f"virtio-net-pci,netdev=n,mac={self.mac}"
        words = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024", "-no-reboot"]
        words += ["-display", "none", "-boot", "n", "-serial", f"file:{self._serial}"]
        words += ["-netdev", f"tap,id=n,ifname=tap{self._number},script=no,downscript=no"]
        if self._is_uefi:  # whose firmware knows this card itself
            variables = self._cable.folder / f"variables{self._number}.fd"
            shutil.copy(OVMF.with_name("OVMF_VARS.fd"), variables)
            words += ["-machine", "q35", "-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}"]
            words += ["-drive", f"if=pflash,format=raw,file={variables}", "-device", f"{net},romfile="]
        else:
            words += ["-machine", "pc", "-device", net]
        words += ["-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r"]
        self._power = self._cable.start(*words)

    def lose_power(self) -> None:
        """Pull the plug."""
        for pid in self._cable.pids:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.startswith(b"qemu-system") and self.mac.encode() in words:
                kill([pid])
        if self._power:
            self._power.wait()


class Site:
    """A head, a plain worker, and two machines without a disk."""

    def __init__(self, head: Host, plain: Host, cable: Host) -> None:
        self.head, self.plain = head, plain
        self.one, self.other = Machine(cable, 7), Machine(cable, 8, is_uefi=True)

    def said(self, *words: str) -> str:
        """What a verb says, on the head."""
        done = self.head.beo(*words)
        assert done.returncode == 0, done
        return done.stdout

    def state(self, name: str) -> str:
        """A node's state, "" where there is none."""
        rows = msgspec.json.decode(self.said("nodes", "--json"))
        return next((row["state"] for row in rows if row["name"] == name), "")

    def wait_for_up(self, name: str = "pc01") -> float:
        """Wait until a machine computes; how long that took, in seconds."""
        began_s = time.monotonic()
        try:
            wait_for(lambda: self.state(name) == "up", f"{name} is up", BOOT_S)
        except AssertionError:
            self.tell()
            raise
        return time.monotonic() - began_s

    def tell(self) -> None:
        """Print what a person would look at."""
        for words in (("node", "list"), ("nodes",), ("show", "all"), ("doctor",)):
            print(self.head.beo(*words).stdout)
        for name, machine in (("pc01", self.one), ("pc02", self.other)):
            print(self.head.beo("console", "--all", name).stdout[-2_000:], machine.screen[-2_000:], sep="\n")


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
        done = cable.run("sh", "-c", CABLES)
        assert done.returncode == 0, done.stderr
        one.said("boot", "serve", "--interface", "eth0", "--mode", "dhcp")
        yield one
        for machine in (one.one, one.other):
            machine.lose_power()
        one.said("down")
        plain.beo("down")
    shutil.rmtree(folder)


def work(site: Site, *wanted: str) -> None:
    """A job over two nodes, an MPI program, whose ranks write to the tree."""
    done = site.head.beo("run", "-n", "2", "-N", "2", "--in", "jobs/pi.py", "sh", "-c", WORK)
    if done.returncode:
        site.tell()
    assert done.returncode == 0, done
    assert re.search(r"^pi 3\.14159", done.stdout, re.MULTILINE), done
    nodes = {site.said("cat", f"/rank{rank}").split()[-1] for rank in range(2)}
    assert nodes == set(wanted)


def test_a_machine_without_a_disk_boots_works_loses_its_power_and_comes_back(site: Site) -> None:
    site.one.turn_on()
    first_s = site.wait_for_up()
    console = site.said("console", "--all", "pc01")
    site.said("run", "-n", "2", "-N", "2", "--chdir", "/", "test", "!", "-e", "/run/beo/lease")  # a head's is for ever
    work(site, "pc01", "pc2")
    site.one.lose_power()
    wait_for(lambda: site.state("pc01") == "lost", "it is missed")
    site.one.turn_on()
    second_s = site.wait_for_up()
    work(site, "pc01", "pc2")
    phases = ", ".join(f"{what} {at} s" for what, at in re.findall(r"beo: (\w+).* after ([0-9.]+) s", console))
    print(f"up {first_s:.1f} s after power-on, {second_s:.1f} s the second time; since the kernel began: {phases}")


@pytest.mark.skipif(not OVMF.exists(), reason="no ovmf here: make boot-packages")
def test_two_machines_one_by_uefi_and_let_in_by_an_operator_run_a_job_without_any_other(site: Site) -> None:
    site.one.lose_power()
    wait_for(lambda: site.state("pc01") != "up", "the first is missed")
    site.one.turn_on()
    site.other.turn_on()
    wait_for(lambda: "pc02" in site.said("node", "list"), "the other has asked for something to boot", BOOT_S)
    site.said("node", "set", "pc02", "--policy", "approve")
    wait_for(lambda: "pc02" in site.said("node", "pending"), "it asks to be let in", BOOT_S)
    (row,) = (row for row in msgspec.json.decode(site.said("node", "pending", "--json")) if row["name"] == "pc02")
    wait_for(lambda: row["words"] in site.other.screen, "the same words are on its screen")
    assert site.state("pc02") == "", "nobody is a node before"
    site.said("node", "approve", "pc02")
    site.wait_for_up("pc02")
    site.wait_for_up("pc01")
    site.said("drain", "pc2")
    work(site, "pc01", "pc02")
    site.said("resume", "pc2")
