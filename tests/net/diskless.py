"""Machines without a disk for the tests: QEMU emulates them, each on a cable to the network of a head.

    with site(folder, "vm") as one:
        one.machines[0].turn_on()
        one.wait_for_up("pc01")

They are named pc01, pc02, ... in the order in which they first ask. What is built for them is kept in build/boot.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from beo.boot import building
from beo.boot.images import Manifest, Store
from beo.config import Home
from tests.cluster import kill, wait_for
from tests.net.hosts import Host, network
from tests.test_boot_image import CACHE, missing

MISSING = [*missing, *(() if Path("/usr/lib/ipxe/undionly.kpxe").exists() else ("ipxe",))]
MARKS = [
    pytest.mark.root,
    pytest.mark.net,
    pytest.mark.boot,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(MISSING), reason=f"no {' '.join(MISSING)} here: make boot-packages"),
]
OVMF = Path("/usr/share/OVMF/OVMF_CODE.fd")
BOOT_S = 400.0  # from power-on to up; a twentieth of that on an idle machine
# Machines that are emulated side by side may stand still for seconds, and then be missed by a shorter lease.
SETTINGS = """[worker]
lease_s = 10.0
[boot]
range = "10.77.0.100-10.77.0.120"
policy = "lan"
[files.mounts]
"/beo" = "/"
"""
TAPS = (7, 8, 9)
# The machines' cables: taps beside the host's own network card, on a bridge.
CABLES = (
    "ip link add bridge0 type bridge && ip link set bridge0 up && ip link set eth0 master bridge0 && "
    f"for tap in {' '.join(f'tap{number}' for number in TAPS)}; do "
    "ip tuntap add $tap mode tap && ip link set $tap master bridge0 up; done"
)


class Machine:
    """One that QEMU emulates, on one of the cables. It has no disk."""

    def __init__(
        self, cable: Host, number: int, is_uefi: bool = False, card: str = "virtio-net-pci", board: str = "pc"
    ) -> None:
        """card, board: as QEMU names them."""
        self._cable, self._number, self._is_uefi = cable, number, is_uefi
        self._card, self._board = card, "q35" if is_uefi else board
        self._serial = cable.folder / f"serial{number}.log"
        self._power: subprocess.Popen[str] | None = None

    @property
    def mac(self) -> str:
        return f"52:54:00:00:00:{self._number:02x}"

    @property
    def screen(self) -> str:
        """What it has on its screen, as far as that is text."""
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    @property
    def came_bytes(self) -> int:
        """What has come to it over its cable."""
        done = self._cable.run("cat", f"/sys/class/net/tap{self._number}/statistics/tx_bytes")
        return int(done.stdout)

    def turn_on(self) -> None:
        """Press the button."""
        net = f"{self._card},netdev=n,mac={self.mac}"
        words = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024", "-no-reboot"]
        words += ["-display", "none", "-boot", "n", "-serial", f"file:{self._serial}", "-machine", self._board]
        words += ["-netdev", f"tap,id=n,ifname=tap{self._number},script=no,downscript=no"]
        if self._is_uefi:
            variables = self._cable.folder / f"variables{self._number}.fd"
            shutil.copy(OVMF.with_name("OVMF_VARS.fd"), variables)
            words += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}"]
            words += ["-drive", f"if=pflash,format=raw,file={variables}"]
            if self._card == "virtio-net-pci":  # which the firmware knows itself
                net += ",romfile="
        words += ["-device", net, "-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r"]
        self._power = self._cable.start(*words)

    def lose_power(self) -> None:
        """Pull the plug."""
        for pid in self._cable.pids:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if words.startswith(b"qemu-system") and self.mac.encode() in words:
                kill([pid])
        if self._power:
            self._power.wait()

    def phases(self) -> dict[str, float]:
        """When its kernel, its network, its image and its root were there, in seconds since the kernel began."""
        return {what: float(at) for what, at in re.findall(r"beo: (\w+).* after ([0-9.]+) s", self.screen)}

    def used_mb(self) -> int:
        """The memory that it uses once its root is there, its image included."""
        found = re.findall(r"beo: root after .* s, (\d+) of (\d+) MiB", self.screen)
        return int(found[-1][1]) - int(found[-1][0])


class Site:
    """A head, a plain worker, and machines without a disk."""

    def __init__(self, head: Host, plain: Host, cable: Host, image: Manifest) -> None:
        self.head, self.plain, self.cable, self.image = head, plain, cable, image
        self.machines: list[Machine] = []

    def machine(self, number: int, **kind: Any) -> Machine:
        """One more machine, on the cable of that number."""
        self.machines.append(Machine(self.cable, number, **kind))
        return self.machines[-1]

    def said(self, *words: str) -> str:
        """What a verb says, on the head."""
        done = self.head.beo(*words)
        assert done.returncode == 0, done
        return done.stdout

    def state(self, name: str) -> str:
        """A node's state, "" where there is none."""
        rows = msgspec.json.decode(self.said("nodes", "--json"))
        return next((row["state"] for row in rows if row["name"] == name), "")

    @property
    def log(self) -> str:
        """What the head has said by now, as JSON lines."""
        return (self.head.beo_dir / "log" / "head.log").read_text()

    def boots(self) -> dict[str, Any]:
        """What the server of boots says of itself."""
        found: dict[str, Any] = msgspec.json.decode(self.said("boot", "status", "--json"))
        return found

    def wait_for_up(self, name: str = "pc01") -> float:
        """Wait until a machine computes; how long that took, in seconds."""
        began_s = time.monotonic()

        def is_up() -> bool:  # its screen first: a verb without end takes from the machines what they run on
            return any(f"{name} has joined" in one.screen for one in self.machines) and self.state(name) == "up"

        try:
            wait_for(is_up, f"{name} is up", BOOT_S)
        except AssertionError:
            self.tell()
            raise
        return time.monotonic() - began_s

    def tell(self) -> None:
        """Print what a person would look at."""
        for words in (("node", "list"), ("nodes",), ("show", "all"), ("doctor",), ("boot", "status")):
            print(self.head.beo(*words).stdout)
        for number, machine in enumerate(self.machines, 1):
            console = self.head.beo("console", "--all", f"pc{number:02}").stdout
            print(console[-2_000:], machine.screen[-2_000:], sep="\n")


@contextmanager
def site(folder: Path, profile: str) -> Iterator[Site]:
    """A head with an image of that profile, a plain worker, and cables; all is gone at the end."""
    store = Store(Home(folder / "built"))
    began_s = time.monotonic()
    image = building.build(store, building.Wish(profile), CACHE, print)
    store.use(image.sha256)
    print(f"\nimage {image.size_bytes / 1e6:.1f} MB, built in {time.monotonic() - began_s:.1f} s")
    (folder / "net").mkdir()
    with network(folder / "net", 3) as net:
        head, plain, cable = net.hosts
        head.beo_dir.mkdir(mode=0o700)
        (head.beo_dir / "beo.toml").write_text(SETTINGS)
        shutil.move(store.folder, head.beo_dir / "images")
        one = Site(head, plain, cable, image)
        line = next(line for line in one.said("head", "init").splitlines() if "beo worker" in line)
        plain.beo_dir.mkdir(mode=0o700)
        (plain.beo_dir / "beo.toml").write_text('[files.mounts]\n"/beo" = "/"\n')
        done = plain.beo(*line.split()[1:], "--slots", "1")
        assert done.returncode == 0, done
        done = cable.run("sh", "-c", CABLES)
        assert done.returncode == 0, done.stderr
        one.said("boot", "serve", "--interface", "eth0", "--mode", "dhcp")
        yield one
        for machine in one.machines:
            machine.lose_power()
        one.said("down")
        plain.beo("down")
    shutil.rmtree(folder)
