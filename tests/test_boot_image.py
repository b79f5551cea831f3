"""An image as `beo image build` makes it, on machines that QEMU emulates: they come up, and refuse what is wrong.

What is brought is kept in build/boot. The figures are printed: make test-boot shows them.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.boot import building, debian
from beo.boot.images import Manifest, Store
from beo.config import Home
from tests.machine import MAC, Machine, Server

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "boot"
PROGRAMS = ("qemu-system-x86_64", "mmdebstrap", "mksquashfs", "unsquashfs", "zstd", "depmod", "cpio")
SIZE_MAX_BYTES = 100_000_000
USED_MAX_MB = 250
UP_S = 150  # on a loaded machine; alone it takes about 13

missing = [name for name in PROGRAMS if not shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")]
pytestmark = [
    pytest.mark.boot,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing), reason=f"no {' '.join(missing)} here: make boot-packages"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store, which goes with all that is in it: images are large."""
    folder = tmp_path_factory.mktemp("home")
    yield Store(Home(folder))
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def image(store: Store) -> Manifest:
    """An image for virtual machines."""
    return building.build(store, building.Wish("vm"), CACHE, print)


def seconds(console: str, what: str) -> float:
    """When a machine has said that, after it was turned on."""
    found = re.search(rf"{what}.* after ([0-9.]+) s", console)
    assert found, console
    return float(found[1])


def test_a_machine_comes_up_from_its_image(store: Store, image: Manifest, tmp_path: Path) -> None:
    with Server(store) as server, Machine(store, image, (server,), tmp_path) as machine:
        found = machine.wait_for(r"beo: root after .* s, (\d+) of (\d+) MiB", UP_S)
        machine.wait_for(r"(?s)root after.*(beo|python3): ", 60)  # and what is to join was started
        console = machine.console
    used_mb = int(found[2]) - int(found[1])
    print(
        f"\nimage {image.size_bytes / 1e6:.1f} MB, initrd {image.initrd_size_bytes / 1e6:.1f} MB; kernel "
        f"{seconds(console, 'kernel')} s, network {seconds(console, 'network')} s, "
        f"image {seconds(console, 'image')} s, root {seconds(console, 'root')} s; {used_mb} MB used"
    )
    assert used_mb <= USED_MAX_MB
    assert image.size_bytes <= SIZE_MAX_BYTES


def test_a_wrong_image_is_refused_and_a_cut_one_gone_on_with(store: Store, image: Manifest, tmp_path: Path) -> None:
    with Server(store) as bad, Server(store) as good, Machine(store, image, (bad, good), tmp_path) as machine:
        bad.spoil = 99
        good.cut_after = [30_000_000]
        machine.wait_for(r"WRONG IMAGE from", UP_S)
        machine.wait_for(r"sent 30000000 of", UP_S)
        bad.redirect = f"10.0.2.2:{good.port}"  # a head that is busy sends machines to whoever has it
        machine.wait_for(r"beo: root after", UP_S)
        assert "bytes=30000000-" in good.asked
        assert "WRONG IMAGE" in bad.consoles[MAC].decode()


def test_a_machine_with_too_little_memory_says_so(store: Store, image: Manifest, tmp_path: Path) -> None:
    with Server(store) as server, Machine(store, image, (server,), tmp_path, memory_mb=192) as machine:
        machine.wait_for(r"too little memory", UP_S)
        assert server.asked == []


def test_a_machine_without_its_card_says_so(store: Store, image: Manifest, tmp_path: Path) -> None:
    words = {"mac": "52:54:00:99:99:99"}
    with Server(store) as server, Machine(store, image, (server,), tmp_path, words=words) as machine:
        machine.wait_for(rf"no network: no card has the address 52:54:00:99:99:99 \(there are: eth0={MAC}", UP_S)


def test_a_card_that_needs_firmware_has_it_from_a_package_that_was_added(store: Store, tmp_path: Path) -> None:
    """Intel's 82551 is such a card: its driver doesn't begin without."""
    bare, added = (
        building.build(store, building.Wish("lab", packages), CACHE, print)
        for packages in ((), ("firmware-intel-misc", "firmware-realtek"))
    )
    assert added.size_bytes < bare.size_bytes + 2_000_000, "of a package only what the drivers ask for is kept"
    raw = debian.run(["unsquashfs", "-l", str(store.path("image", added.sha256))], "list it", 120)
    packed = f"zstd -dcq {store.path('initrd', added.initrd)} | cpio -t --quiet"
    early = debian.run(["sh", "-c", packed], "list the initrd", 120).splitlines()
    for name in ("e100/d102e_ucode.bin", "rtl_nic/rtl8168h-2.fw"):
        assert f"usr/lib/firmware/{name}\n" in raw and f"lib/firmware/{name}" in early
    assert "rtw88" not in raw and "rtl_bt" not in raw, "it has no drivers for radio"
    for image, told in (
        (bare, r"a driver lacks its firmware: e100/d102e_ucode\.bin; 'beo image build --add'"),
        (added, r"beo: image after"),
    ):
        (folder := tmp_path / image.sha256).mkdir()
        with Server(store) as server, Machine(store, image, (server,), folder, card="i82551") as machine:
            machine.wait_for(told, 2 * UP_S)


def test_the_same_packages_make_the_same_image_and_no_mirror_is_in_it(
    store: Store, image: Manifest, tmp_path: Path
) -> None:
    again = building.build(Store(Home(tmp_path / "again")), building.Wish("vm"), CACHE, print)
    assert (again.sha256, again.kernel, again.initrd) == (image.sha256, image.kernel, image.initrd)
    folder = tmp_path / "files"
    words = ["unsquashfs", "-q", "-n", "-d", str(folder), str(store.path("image", image.sha256)), "etc", "usr/lib/beo"]
    debian.run(words, "unpack it", 120)
    mirror = debian.mirror().split("/")[2].encode()
    assert not [
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and mirror in path.read_bytes()
    ]
    assert (folder / "usr/lib/beo/boot/start").exists() and not (folder / "etc/machine-id").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chroot")
def test_what_a_worker_imports_is_in_the_image(store: Store, image: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    words = ["unsquashfs", "-q", "-n", "-d", str(folder), str(store.path("image", image.sha256))]
    debian.run(words, "unpack it", 120)
    code = (
        "import zmq, msgspec, numpy, click, cloudpickle, xxhash, mpi4py.MPI, beo.worker.agent, beo.client, sqlite3, ssl"
    )
    # In namespaces of its own, so that nothing stays mounted; MPI looks into /proc.
    inside = [
        "unshare",
        "-mpf",
        "sh",
        "-c",
        'mount -t proc proc "$0"/proc && mount --rbind /dev "$0"/dev && exec chroot "$0" "$@"',
        str(folder),
    ]
    debian.run([*inside, "/usr/bin/python3", "-P", "-c", code], "import", 120)
    assert "beo" in debian.run([*inside, "/usr/bin/beo", "--help"], "run beo", 60)


def test_a_base_of_a_container_makes_an_image(store: Store, image: Manifest, tmp_path: Path) -> None:
    from tests.test_assembly import layout

    base = next(CACHE.glob("base-*.tar"))
    with tarfile.open(base) as archive:
        assert archive.getmembers()
    oci = layout(tmp_path / "oci", base.read_bytes())
    made = building.build(store, building.Wish("vm", oci=str(oci)), CACHE, print)
    assert made.suite.startswith("oci:sha256:")
    assert made.sha256 == image.sha256, "the same files make the same image, wherever they come from"
