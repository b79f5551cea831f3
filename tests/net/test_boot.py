"""Machines that boot from two heads, on a network of their own: what each kind gets, and what happens to it when a head
dies, another DHCP server turns up, or somebody sends nonsense. The clients are programs that say what firmware says.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from beo.boot import solicit
from tests.boot_site import fill
from tests.cluster import wait_for
from tests.net.hosts import Host, network
from tests.net.site import SETTINGS, Site, said

pytestmark = [pytest.mark.root, pytest.mark.net, pytest.mark.slow]

MEMORY_MAX_KB = 40_000
MAC = "52:54:00:00:00:{:02x}"
FILES = {"bios": "undionly.kpxe", "uefi": "snponly.efi", "arm64": "snponly-arm64.efi"}
RANGE = "\n[boot]\nrange = '10.77.0.100-10.77.0.120'\nrouter = '10.77.0.254'\npolicy = 'lan'\n"


def furnish(host: Host) -> None:
    """Give a head images and firmware; the same on both."""
    fill(host.beo_dir)
    (host.beo_dir / "firmware").mkdir()
    for name in FILES.values():
        (host.beo_dir / "firmware" / name).write_bytes(name.encode() * 5_000)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("boot")
    with network(folder, 0) as net:
        yield Site(net, folder, 2, 1, settings=lambda _: SETTINGS + RANGE, before=furnish)


def boot(host: Host, *words: str) -> Any:
    """What a machine on that host got."""
    done = host.run(sys.executable, "-m", "tests.net.booter", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def status(host: Host) -> dict[str, Any]:
    found = json.loads(said(host, "boot", "status", "--json"))
    assert isinstance(found, dict)
    return found


def served(site: Site, state: str = "gives addresses") -> Host:
    """The head that serves boots, once one does."""
    return wait_for(lambda: [host for host in site.heads if status(host)["state"] == state], state)[0]


def test_before_anybody_said_so_no_machine_boots(site: Site) -> None:
    assert boot(site.client, "dhcp", "bios", MAC.format(1)) == []
    done = site.heads[0].beo("boot", "serve", "--interface", "eth9")
    assert done.returncode == 2 and "no interface 'eth9'" in done.stderr and "eth0" in done.stderr
    done = site.heads[0].beo("boot", "serve")
    assert done.returncode == 2 and "say --interface" in done.stderr
    done = site.client.beo("boot", "serve", "--interface", "eth0")
    assert done.returncode == 2 and "no head is on this machine" in done.stderr


def test_each_kind_of_client_boots_at_its_own_address_and_alone_on_the_wire(site: Site) -> None:
    assert "machines boot by eth0 from 10.77.0.1:7425" in said(site.heads[0], "boot", "serve", "--interface", "eth0")
    assert "once this head acts" in said(site.heads[1], "boot", "serve", "--interface", "eth0")
    assert served(site) is site.heads[0]
    for number, kind in enumerate((*FILES, "http", "ipxe", "plain")):
        offer, ack = boot(site.client, "dhcp", kind, MAC.format(number))
        assert (offer["kind"], ack["kind"]) == ("OFFER", "ACK")
        assert offer["yiaddr"] == ack["yiaddr"] == f"10.77.0.{100 + number}"
        assert offer["file"] == ack["file"] and offer["siaddr"] == ack["server"] == "10.77.0.1"
        assert ack["options"]["1"] == "ffffff00" and ack["options"]["3"] == "0a4d00fe"
        if kind in FILES:
            assert ack["file"] == FILES[kind]
            found = boot(site.client, "tftp", "10.77.0.1", ack["file"], "tsize", "0", "blksize", "1456")
            assert found["sha256"] == hashlib.sha256(FILES[kind].encode() * 5_000).hexdigest()
            assert int(found["agreed"]["tsize"]) == found["size"]
        elif kind == "http":
            assert boot(site.client, "http", ack["file"])["status"] == 200
        elif kind == "ipxe":
            assert "#!ipxe" in boot(site.client, "http", ack["file"])["text"]
            assert ack["options"]["175"] == "b00101"
        else:
            assert ack["file"] == ""
    assert boot(site.client, "dhcp", "bios", MAC.format(0))[1]["yiaddr"] == "10.77.0.100"  # again: the same


def test_the_script_leads_to_all_that_a_machine_needs(site: Site) -> None:
    mac = MAC.format(4)
    text = boot(site.client, "http", f"http://10.77.0.1:7425/boot.ipxe?mac={mac.replace(':', '-')}")["text"]
    words = dict(re.findall(r" beo\.(\w+)=(\S+)", text))
    assert words["mac"] == mac and words["ip"] == "${netX/ip}/24" and words["boot"] == "10.77.0.1:7425,10.77.0.2:7425"
    assert words["heads"].startswith("10.77.0.1:7420") and re.fullmatch("[0-9a-f]{64}", words["pin"])
    kernel, initrd = re.search(r"(http\S+/kernel/\w+)", text), re.search(r"(http\S+/initrd/\w+)", text)
    assert kernel and initrd
    for url in (kernel[1], initrd[1], f"http://10.77.0.1:7425/image/{words['image']}.sqfs"):
        assert boot(site.client, "http", url)["sha256"] in url
    rows = json.loads(said(site.heads[0], "node", "list", "--json"))
    assert {row["mac"]: row["address"] for row in rows}[mac] == "10.77.0.104"


def test_nothing_outside_of_the_folder_comes_by_tftp(site: Site) -> None:
    for name in ("../beo.toml", "/etc/passwd", "..\\keys\\admin.secret", "beo.toml", "x" * 250):
        assert "error" in boot(site.client, "tftp", "10.77.0.1", name), name
    window = boot(site.client, "tftp", "10.77.0.1", "undionly.kpxe", "windowsize", "4")
    assert window["sha256"] == hashlib.sha256(b"undionly.kpxe" * 5_000).hexdigest()


def test_who_looks_for_a_router_is_told_at_once_that_there_is_none(site: Site) -> None:
    found, *_ = boot(site.client, "router")
    data = bytes.fromhex(found["data"])
    assert found["hops"] == solicit.HOPS and data[6:8] == b"\0\0"


def test_an_address_of_another_network_or_machine_is_denied(site: Site) -> None:
    for wanted in ("192.168.7.7", "10.77.0.101"):
        [answer] = boot(site.client, "dhcp", "plain", MAC.format(0), "", wanted)
        assert answer["kind"] == "NAK"
    [answer] = boot(site.client, "dhcp", "plain", MAC.format(0), "", "10.77.0.100")
    assert (answer["kind"], answer["yiaddr"]) == ("ACK", "10.77.0.100")


def test_the_server_of_boots_is_small_and_nonsense_moves_it_not(site: Site) -> None:
    pid = json.loads((site.heads[0].beo_dir / "run" / "boot.json").read_text())["pid"]
    assert boot(site.client, "noise", "10.77.0.1") == 600
    assert boot(site.client, "dhcp", "bios", MAC.format(0))[1]["yiaddr"] == "10.77.0.100"
    [real] = _running(site.heads[0])
    rss = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{real}/status").read_text())
    assert rss
    assert int(rss[1]) < MEMORY_MAX_KB
    print(f"the server of boots has {rss[1]} kB resident")
    assert json.loads((site.heads[0].beo_dir / "run" / "boot.json").read_text())["pid"] == pid


def test_killed_it_is_back_at_once_and_gives_the_same_addresses(site: Site) -> None:
    [real] = _running(site.heads[0])
    os.kill(real, 9)
    wait_for(lambda: set(_running(site.heads[0])) - {real}, "another one")
    assert served(site) is site.heads[0]
    replies = wait_for(lambda: boot(site.client, "dhcp", "uefi", MAC.format(1)), "an answer")
    assert replies[-1]["yiaddr"] == "10.77.0.101"


def _running(host: Host, word: bytes = b"beo.boot.serve") -> list[int]:
    found = []
    for pid in host.pids:
        with suppress(OSError):
            if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_lines_for_a_dnsmasq_are_printed(site: Site) -> None:
    text = said(site.heads[0], "boot", "print-dnsmasq")
    assert "dhcp-boot=tag:ipxe,http://10.77.0.1:7425/boot.ipxe" in text


def test_after_a_take_over_the_other_head_serves_the_same_addresses(site: Site) -> None:
    site.await_step()
    before = site.primary
    assert before is site.heads[0]
    taken = {row["address"] for row in json.loads(said(before, "node", "list", "--json"))}
    before.crash()
    assert site.primary is site.heads[1]
    wait_for(lambda: status(site.heads[1])["state"] == "gives addresses", "it to be served")
    for number in (0, 2, 4):
        replies = wait_for(lambda n=number: boot(site.client, "dhcp", "bios", MAC.format(n)), "an answer")  # type: ignore[misc]
        assert (replies[-1]["yiaddr"], replies[-1]["server"]) == (f"10.77.0.{100 + number}", "10.77.0.2")
    new = wait_for(lambda: boot(site.client, "dhcp", "bios", MAC.format(99)), "an answer")
    assert new[-1]["yiaddr"].startswith("10.77.0.1") and new[-1]["yiaddr"] not in taken
    before.boot()
    site.up(before)
    site.await_step()
    wait_for(lambda: status(before)["state"] == "not served by this head now", "it to follow")


def test_with_another_server_on_the_wire_it_gives_no_addresses_and_says_so(site: Site) -> None:
    head = site.primary
    assert served(site) is head
    other = site.workers[0].start(
        sys.executable, "-m", "tests.net.booter", "serve", site.workers[0].address, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout and other.stdout.readline() == "ready\n"
        replies = boot(site.client, "dhcp", "uefi", MAC.format(50))  # both offer, the client chooses each
        assert site.workers[0].address in {reply["server"] for reply in replies}
        wait_for(lambda: status(head)["state"] == "leaves addresses to another server", "it to back off")
        assert status(head)["other"] == site.workers[0].address
        replies = boot(site.client, "dhcp", "uefi", MAC.format(51), head.address)
        own = [reply for reply in replies if reply["server"] == head.address]
        assert [reply["kind"] for reply in own] == ["OFFER", "ACK"]  # the ACK at port 4011
        assert {(reply["yiaddr"], reply["file"]) for reply in own} == {("0.0.0.0", "snponly.efi")}
        assert all("175" not in reply["options"] for reply in own)
        assert boot(site.client, "dhcp", "plain", MAC.format(52))[0]["server"] == site.workers[0].address
        # Begun anew beside it, it never gives one.
        said(head, "boot", "off")
        said(head, "boot", "serve", "--interface", "eth0")
        wait_for(lambda: status(head)["state"] == "leaves addresses to another server", "it to see the other one")
    finally:
        for pid in _running(site.workers[0], b"tests.net.booter"):
            os.kill(pid, 9)
        other.wait(10)


def test_switched_off_nothing_answers(site: Site) -> None:
    for head in site.heads:
        assert said(head, "boot", "off") == "off\n"
    deadline = time.monotonic() + 5
    while boot(site.client, "dhcp", "bios", MAC.format(0)) and time.monotonic() < deadline:
        pass
    assert boot(site.client, "dhcp", "bios", MAC.format(0)) == []
    assert status(site.primary)["state"] == "off"
