"""The image for real PCs, on machines with the network cards of real PCs: they boot by them, and a job runs there.

QEMU emulates cards of Intel's, Realtek's and VMware's, with the boot ROMs that such cards have, on a board with BIOS or
UEFI. The phases of each boot are printed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster import wait_for
from tests.net import diskless
from tests.net.diskless import BOOT_S, MARKS, OVMF, TAPS, Machine, Site
from tests.test_boot_image import SIZE_MAX_BYTES, USED_MAX_MB

pytestmark = MARKS

NEEDS_OVMF = pytest.mark.skipif(not OVMF.exists(), reason="no ovmf here: make boot-packages")
# The drivers of a machine's cards; a host of the tests has none.
DRIVERS = "for one in /sys/class/net/*/device/driver; do [ ! -e $one ] || basename $(readlink $one); done"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with diskless.site(tmp_path_factory.mktemp("lab"), "lab") as one:
        yield one


def after(began_s: float, condition: Callable[[], object], what: str) -> float:
    """Wait for that; when it came, in seconds since the beginning."""
    wait_for(condition, what, BOOT_S)
    return time.monotonic() - began_s


def boot(site: Site, machine: Machine, name: str) -> dict[str, float]:
    """Switch a machine on; when it had its script, its kernel and initrd, and so on, until it computes, in seconds."""
    began_s = time.monotonic()
    machine.turn_on()
    try:
        script_s = after(began_s, lambda: f"{machine.mac} has its script" in site.log, "it has its script")
        loaded_s = after(began_s, lambda: "beo: kernel " in machine.screen, "it has its kernel and initrd")
    except AssertionError:
        site.tell()
        raise
    since = machine.phases()
    loaded_s -= since["kernel"]
    site.wait_for_up(name)
    up_s = time.monotonic() - began_s
    phases = {what: loaded_s + at_s for what, at_s in machine.phases().items()}
    return {"script": script_s, "kernel and initrd": loaded_s, **phases, "up": up_s}


@pytest.mark.parametrize(
    ("number", "card", "driver", "is_uefi"),
    [
        (1, "e1000e", "e1000e", False),
        (2, "rtl8139", "8139cp", False),
        pytest.param(3, "vmxnet3", "vmxnet3", True, marks=NEEDS_OVMF),
    ],
)
def test_a_pc_with_a_real_card_boots_the_image_for_pcs(
    site: Site, number: int, card: str, driver: str, is_uefi: bool
) -> None:
    assert site.image.size_bytes <= SIZE_MAX_BYTES
    machine = site.machine(TAPS[number - 1], card=card, board="q35", is_uefi=is_uefi)
    name = f"pc{number:02}"
    phases = boot(site, machine, name)
    used_mb = machine.used_mb()
    told = ", ".join(f"{what} {at_s:.1f} s" for what, at_s in phases.items())
    print(f"\n{card}, {'UEFI' if is_uefi else 'BIOS'}: {told}; {used_mb} MB used")
    assert used_mb <= USED_MAX_MB
    done = site.head.beo("run", "-n", "2", "-N", "2", "--chdir", "/", "sh", "-c", DRIVERS)
    assert done.returncode == 0, done
    assert re.findall(r"\w+", done.stdout) == [driver]
    machine.lose_power()
    wait_for(lambda: site.state(name) == "lost", "it is missed")
