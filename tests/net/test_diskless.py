"""A machine without a disk, from power-on to a job's rank: by its firmware, a head's DHCP, iPXE, and an image.

It boots, joins, computes with a plain worker, writes to the tree, loses its power, is missed, and comes back by itself.
QEMU emulates it, on a cable to the head's network. What is built is kept in build/boot; the seconds are printed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
import pytest

from tests.cluster import wait_for
from tests.net import diskless
from tests.net.diskless import BOOT_S, MARKS, OVMF, Machine, Site

pytestmark = MARKS

WORK = (
    "PATH=$PATH:/usr/local/bin:/usr/bin python3 jobs/pi.py 100000 && echo $BEO_RANK on $BEO_NODE > /beo/rank$BEO_RANK"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with diskless.site(tmp_path_factory.mktemp("diskless"), "vm") as one:
        yield one


@pytest.fixture(scope="module")
def machine(site: Site) -> Machine:
    return site.machine(7)


def work(site: Site, *wanted: str) -> None:
    """A job over two nodes, an MPI program, whose ranks write to the tree."""
    done = site.head.beo("run", "-n", "2", "-N", "2", "--in", "jobs/pi.py", "sh", "-c", WORK)
    if done.returncode:
        site.tell()
    assert done.returncode == 0, done
    assert re.search(r"^pi 3\.14159", done.stdout, re.MULTILINE), done
    nodes = {site.said("cat", f"/rank{rank}").split()[-1] for rank in range(2)}
    assert nodes == set(wanted)


def test_a_machine_without_a_disk_boots_works_loses_its_power_and_comes_back(site: Site, machine: Machine) -> None:
    machine.turn_on()
    first_s = site.wait_for_up()
    assert "beo: root after" in site.said("console", "--all", "pc01")
    phases = ", ".join(f"{what} {at} s" for what, at in machine.phases().items())
    site.said("run", "-n", "2", "-N", "2", "--chdir", "/", "test", "!", "-e", "/run/beo/lease")  # a head's is for ever
    work(site, "pc01", "pc2")
    machine.lose_power()
    wait_for(lambda: site.state("pc01") == "lost", "it is missed")
    machine.turn_on()
    second_s = site.wait_for_up()
    work(site, "pc01", "pc2")
    print(f"up {first_s:.1f} s after power-on, {second_s:.1f} s the second time; since the kernel began: {phases}")


@pytest.mark.skipif(not OVMF.exists(), reason="no ovmf here: make boot-packages")
def test_two_machines_one_by_uefi_and_let_in_by_an_operator_run_a_job_without_any_other(
    site: Site, machine: Machine
) -> None:
    other = site.machine(8, is_uefi=True)
    machine.lose_power()
    wait_for(lambda: site.state("pc01") != "up", "the first is missed")
    machine.turn_on()
    other.turn_on()
    wait_for(lambda: "pc02" in site.said("node", "list"), "the other has asked for something to boot", BOOT_S)
    site.said("node", "set", "pc02", "--policy", "approve")
    wait_for(lambda: "pc02" in site.said("node", "pending"), "it asks to be let in", BOOT_S)
    (row,) = (row for row in msgspec.json.decode(site.said("node", "pending", "--json")) if row["name"] == "pc02")
    wait_for(lambda: row["words"] in other.screen, "the same words are on its screen")
    assert site.state("pc02") == "", "nobody is a node before"
    site.said("node", "approve", "pc02")
    site.wait_for_up("pc02")
    site.wait_for_up("pc01")
    site.said("drain", "pc2")
    work(site, "pc01", "pc02")
    site.said("resume", "pc2")
