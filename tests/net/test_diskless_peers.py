"""Machines without a disk that give their image to others, as in a boot storm: whoever asks a busy head gets it from
one that has booted, and boots in any case, though that one loses its power meanwhile, or sends something else.

A head is busy when it sends to four at a time; here slow downloads are those four. QEMU emulates the machines.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from beo.boot.storm import SLOTS
from tests.cluster import wait_for
from tests.net import diskless
from tests.net.diskless import BOOT_S, MARKS, TAPS, Site

pytestmark = MARKS

PART_BYTES = 20 << 20  # of an image that a machine has by then: it is in the middle of it
# A bit of the image's last block, which nothing of the running system reads.
TAMPER = """
import os
path = "/run/beo/image.sqfs"
if os.path.exists(path):
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    print("tampered with", flush=True)
"""


class Load:
    """As many slow downloads as the head sends images at a time."""

    def __init__(self, site: Site) -> None:
        url = f"http://{site.head.address}:7425/image/{site.image.sha256}.sqfs"
        words = [sys.executable, "-m", "tests.net.downloader", url, str(SLOTS)]
        self._process = site.plain.start(*words, stdin=subprocess.PIPE, stderr=None)
        assert self._process.stdout and self._process.stdout.readline() == "busy\n"

    def end_one(self) -> None:
        """One of them is cut, and its place at the head free."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """All are."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(20)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with diskless.site(tmp_path_factory.mktemp("peers"), "vm") as one:
        for tap in TAPS:
            one.machine(tap)
        yield one


def sent(site: Site) -> tuple[int, int]:
    """How many were sent the image by the head, and how many were sent to another machine for it."""
    return site.log.count("is sent the image"), site.log.count("is to get the image")


def first_said(site: Site, pattern: str) -> str:
    """Wait until the head's log has that; return its first group."""

    def found() -> list[str]:
        return re.findall(pattern, site.log)

    try:
        return wait_for(found, pattern, BOOT_S)[-1]
    except AssertionError:
        site.tell()
        raise


def address_of(number: int) -> str:
    """The address of the machine that asked first, or second, ..."""
    return f"10.77.0.{99 + number}"


def await_giver(site: Site, number: int) -> str:
    """Wait until the head knows that a machine gives its image; its host:port."""
    address = address_of(number)
    return f"{address}:{first_said(site, rf'{address} gives the image .* by port ([0-9]+)')}"


def test_a_machine_gets_its_image_from_one_that_has_booted_while_the_head_is_busy(site: Site) -> None:
    first, second, _ = site.machines
    first.turn_on()
    site.wait_for_up("pc01")
    assert f" from {site.head.address}:7425, " in first.screen
    giver = await_giver(site, 1)
    load = Load(site)
    assert sent(site) == (1 + SLOTS, 0)
    second.turn_on()
    took_s = site.wait_for_up("pc02")
    assert f" from {giver}, " in second.screen, "it says who has sent it"
    assert "WRONG" not in second.screen and "again in" not in second.screen
    await_giver(site, 2)
    assert sent(site) == (1 + SLOTS, 1), "the head has sent it none"

    def told() -> bool:
        row = site.boots()
        return (row["images"], row["referred"], row["givers"]) == (1 + SLOTS, 1, 2)

    wait_for(told, "'beo boot status' says so, too")
    print(f"up {took_s:.1f} s after power-on, by {giver}: {second.phases()}")
    load.end()


def test_where_the_sender_loses_its_power_in_the_middle_another_one_goes_on(site: Site) -> None:
    first, second, third = site.machines
    load = Load(site)
    third.turn_on()
    dying = first_said(site, rf"{address_of(3)} is to get the image \w+ from ([0-9.:]+)")
    before = third.came_bytes
    wait_for(lambda: third.came_bytes - before > PART_BYTES, "a part of the image has come", BOOT_S)
    victim, other = (first, 2) if dying.startswith(f"{address_of(1)}:") else (second, 1)
    victim.lose_power()
    site.wait_for_up("pc03")
    cut = re.search(rf"{dying} sent (\d+) of (\d+) bytes", third.screen)
    assert cut and PART_BYTES / 2 < int(cut[1]) < int(cut[2]) == site.image.size_bytes, third.screen
    assert f" from {await_giver(site, other)}, {dying}, " in third.screen, "what had come was gone on with"
    assert "WRONG" not in third.screen
    load.end()


def test_a_machine_to_which_others_send_something_else_says_so_and_has_it_from_the_head(site: Site) -> None:
    first, second, _ = site.machines
    lost = wait_for(lambda: [name for name in ("pc01", "pc02") if site.state(name) == "lost"], "one is missed")
    name = lost[0]
    victim = first if name == "pc01" else second
    await_giver(site, 3)
    nodes = 3  # all that are up: the plain one, which has no image, and two that give theirs
    done = site.head.beo("run", "-n", str(nodes), "-N", str(nodes), "--chdir", "/", "/usr/bin/python3", "-c", TAMPER)
    assert done.stdout.count("tampered with") == nodes - 1, done
    load = Load(site)
    images, referred = sent(site)
    victim.turn_on()
    wait_for(lambda: "WRONG IMAGE from 10.77.0.10" in victim.screen, "it refuses what it was sent", BOOT_S)
    wait_for(lambda: "10.77.0.1:7425 is busy" in victim.screen, "it asks the head alone", BOOT_S)
    load.end_one()
    site.wait_for_up(name)
    assert victim.screen.count("WRONG IMAGE") == 1
    assert f" from {site.head.address}:7425, " in victim.screen
    assert sent(site) == (images + 1, referred + 1)
    assert "WRONG IMAGE" in site.said("console", "--all", name), "the head keeps what it said"
    load.end()
