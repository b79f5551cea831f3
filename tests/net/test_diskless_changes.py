"""Machines without a disk, and what changes meanwhile: the head that they boot from, the image, who gives addresses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from beo.boot import building
from beo.boot.images import Manifest, Store
from beo.config import Home
from tests.cluster import wait_for
from tests.net.diskless import BOOT_S, CABLES, MARKS, Machine
from tests.net.hosts import Host, network
from tests.net.site import SETTINGS, Site, said
from tests.test_boot_image import CACHE

pytestmark = MARKS

RANGE = "\n[boot]\nrange = '10.77.0.100-10.77.0.120'\npolicy = 'lan'\n"
DISK_BYTES = 2 << 30  # of a head: an image, and the same in the tree
LEASE_S = 16  # the shortest that udhcpc believes in; its boot alone takes longer
UDHCPD = """start 10.77.0.{2}0
end 10.77.0.{2}9
interface eth0
option subnet 255.255.255.0
option lease {1}
min_lease 10
auto_time 1
lease_file {0}/leases
pidfile {0}/pid
"""


class Place:
    """Two heads, a worker, and a host with the machines' cables."""

    def __init__(self, site: Site, cable: Host, image: Manifest) -> None:
        self.site, self.image = site, image
        self.one, self.other = Machine(cable, 7), Machine(cable, 8)

    def name(self, machine: Machine) -> str:
        """What a machine is called, once it has asked for something to boot."""

        def found() -> str:
            rows = msgspec.json.decode(said(self.site.primary, "node", "list", "--json"))
            return next((row["name"] for row in rows if row["mac"] == machine.mac), "")

        return wait_for(found, f"{machine.mac} is on record", BOOT_S)

    def _nodes(self) -> list[dict[str, Any]]:
        done = self.site.client.beo("nodes", "--json")
        return msgspec.json.decode(done.stdout) if done.returncode == 0 else []

    def state(self, name: str) -> str:
        """A node's state, "" where there is none."""
        return next((row["state"] for row in self._nodes() if row["name"] == name), "")

    def address(self, name: str) -> str:
        """Where a node is, "" where there is none."""
        return next((row["address"].partition(":")[0] for row in self._nodes() if row["name"] == name), "")

    @property
    def up(self) -> int:
        """How many nodes are up."""
        return sum(row["state"] == "up" for row in self._nodes())

    def wait_for_up(self, machine: Machine) -> None:
        """Wait until a machine computes."""
        name = self.name(machine)
        try:
            wait_for(lambda: self.state(name) == "up", f"{name} is up", BOOT_S)
        except AssertionError:
            print(machine.screen[-3_000:], said(self.site.primary, "boot", "status"), sep="\n")
            raise


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("changes")
    store = Store(Home(folder / "built"))
    image = building.build(store, building.Wish("vm"), CACHE, print)
    store.use(image.sha256)
    (folder / "net").mkdir()
    with network(folder / "net", 0) as net:
        site = Site(net, folder / "net", 2, 1, settings=lambda _: SETTINGS + RANGE, disk_bytes=DISK_BYTES)
        cable = net.add()
        done = cable.run("sh", "-c", CABLES)
        assert done.returncode == 0, done.stderr
        site.await_step()
        first = site.heads[0]
        shutil.copytree(store.folder, first.beo_dir / "images", symlinks=True)
        said(first, "image", "use", "current")
        for head in site.heads:
            said(head, "boot", "serve", "--interface", "eth0", "--mode", "dhcp")
        here = Place(site, cable, image)
        yield here
        for machine in (here.one, here.other):
            machine.lose_power()
    shutil.rmtree(folder)


def test_a_machine_whose_head_dies_in_the_middle_of_its_boot_goes_on_at_the_other_one(place: Place) -> None:
    site = place.site
    before = site.primary
    assert before is site.heads[0]
    place.one.turn_on()
    wait_for(lambda: "beo: network after" in place.one.screen, "it fetches its image", BOOT_S)
    before.crash()
    place.wait_for_up(place.one)
    assert "from 10.77.0.2:7425" in place.one.screen, "an image that was only in the tree"
    name = place.name(place.one)
    assert "root after" in said(site.primary, "console", "--all", name), "and whoever acts has its console from then on"
    before.boot()
    site.up(before)
    site.await_step()


def test_another_image_reaches_machines_one_after_the_other_and_is_taken_back(place: Place) -> None:
    head = place.site.primary
    new = building.build(Store(Home(head.beo_dir)), building.Wish("vm", ("hello",)), CACHE, print)
    assert new.sha256 != place.image.sha256
    for image, words in ((new, ("use", new.sha256[:12])), (place.image, ("revert",))):
        said(head, "image", *words)
        said(head, "drain", "pc01")
        place.one.lose_power()
        wait_for(lambda: place.state("pc01") == "lost", "it is off")
        place.one.turn_on()
        told = f"image: {image.sha256[:12]}"
        wait_for(lambda told=told: told in place.one.screen, "it has that image", BOOT_S)  # type: ignore[misc]
        wait_for(lambda: place.state("pc01") == "drained", "it is back", BOOT_S)
        said(head, "resume", "pc01")
        place.wait_for_up(place.one)


class Router:
    """A host that gives addresses as a site's router does, in a range that it may forget for another."""

    def __init__(self, host: Host, folder: Path) -> None:
        self._host, self._folder, self._log = host, folder, folder / "log"

    def serve(self, tens: int) -> None:
        """Give 10.77.0.200 and so on for 20, and know of no other address."""
        (self._folder / "conf").write_text(UDHCPD.format(self._folder, LEASE_S, tens))
        (self._folder / "leases").write_bytes(b"")
        with self._log.open("ab") as log:
            words = ("busybox", "udhcpd", "-f", str(self._folder / "conf"))
            self._host.start(*words, stdout=log, stderr=log)

    def end(self) -> None:
        """Serve no more."""
        self._host.run("sh", "-c", f"kill $(cat {self._folder}/pid)")

    def given(self, address: str) -> int:
        """How often it has given an address, renewals included."""
        return self._log.read_text(errors="replace").count(f"sending ACK to {address}")


def test_where_another_server_gives_the_addresses_machines_boot_by_a_proxy_and_keep_their_lease(
    place: Place, tmp_path: Path
) -> None:
    head, plain = place.site.primary, place.site.workers[0]
    router = Router(plain, tmp_path)
    router.serve(20)
    said(head, "boot", "serve", "--interface", "eth0", "--mode", "auto")
    wait_for(lambda: plain.address in said(head, "boot", "status"), "it sees the other server", 30)
    place.other.turn_on()
    place.wait_for_up(place.other)
    name = place.name(place.other)
    address = place.address(name)
    assert address.startswith("10.77.0.20") and address in place.other.screen
    booted = router.given(address)
    assert booted >= 2, "iPXE was given it, and who renews it"
    wait_for(lambda: router.given(address) >= booted + 3, "it is renewed, past its lease", 3 * LEASE_S)
    assert place.state(name) == "up" and "beo: this machine's address" not in place.other.screen
    router.end()
    router.serve(21)
    wait_for(lambda: "address is 10.77.0.21" in place.other.screen, "it is told that it has another address", BOOT_S)
    wait_for(lambda: place.address(name).startswith("10.77.0.21"), "its worker has begun anew", BOOT_S)
    wait_for(lambda: "address is 10.77.0.21" in said(head, "console", "--all", name), "the head has it, too")
    place.wait_for_up(place.other)
    every = str(place.up)
    done = place.site.client.beo("run", "-n", every, "-N", every, "--chdir", "/", "hostname")
    assert done.returncode == 0 and name in done.stdout.split(), done
    router.end()
