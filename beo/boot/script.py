"""The script that iPXE runs, and the lines for a site's own dnsmasq. Pure.

iPXE never gives up: it tries each head in turn, sleeps a little more than the others, and begins anew. A reboot in its
place would only cost the firmware's minute again. It hands over the address that it got, so that nobody asks a second
time, and from whom: only a head's is for ever. And it says what the root image must be, so that nobody else's can take
its place.
"""

from __future__ import annotations

import re

from beo.boot.answers import FIRMWARE, FIRMWARE_PATH, SCRIPT_PATH, Site
from beo.boot.book import Image, Machine
from beo.errors import UsageError

SLEEP_S, SPREAD_S = 3, 8  # before the next try: so many seconds, and as many more at most, by the MAC address
HEADS_MAX = 8
_WORD = re.compile(r"[A-Za-z0-9._:,=/@%+\-]*")  # what neither iPXE nor a kernel's command line takes for something else
_SHA256 = re.compile(r"[0-9a-f]{64}")


def entry(address: str) -> str:
    """Return the script that a head serves to whoever doesn't say which machine it is: he is to say it."""
    return _checked(
        "#!ipxe\n"
        "# of beo: the next script depends on which machine this is\n"
        ":again\n"
        f"chain --autofree http://{_word(address)}{SCRIPT_PATH}?mac=${{netX/mac:hexhyp}} || "
        f"sleep {SLEEP_S}\n"
        "goto again\n"
    )


def boot(machine: Machine, image: Image, heads: tuple[str, ...], boots: tuple[str, ...], pin: str, prefix: int) -> str:
    """Return the script that boots a machine.

    heads, boots: host:port of the control planes and of the servers of boots, the one that answers first. pin: the
    heads' public key as 64 hex digits. prefix: of the network, where iPXE can't tell.
    """
    for name, value in (("image", image.sha256), ("kernel", image.kernel), ("initrd", image.initrd), ("pin", pin)):
        if not _SHA256.fullmatch(value):
            raise UsageError(f"{value[:80]!r} is no {name}", "it has 64 hex digits", "make the image anew")
    if not boots or not heads or len(heads) > HEADS_MAX or len(boots) > HEADS_MAX:
        raise UsageError(f"{len(heads)} heads and {len(boots)} servers of boots", f"1 to {HEADS_MAX} each", "")
    words = " ".join(
        (
            "initrd=initrd",
            f"beo.heads={_word(','.join(heads))}",
            f"beo.boot={_word(','.join(boots))}",
            f"beo.pin={pin}",
            f"beo.image={image.sha256}",
            f"beo.size={image.size_bytes}",
            f"beo.mac={_word(machine.mac)}",
            f"beo.ip=${{netX/ip}}/{prefix}",
            "beo.gateway=${netX/gateway}",
            "beo.dhcp=${netX/dhcp-server}",
            f"beo.name={_word(machine.name)}",
            *map(_word, image.words.split()),
        )
    )
    wait_s = SLEEP_S + sum(machine.mac.encode()) % (SPREAD_S + 1)
    lines = ["#!ipxe", f"# of beo, for {_word(machine.name)}"]
    for number, address in enumerate(boots):
        other = f"head{number + 1}" if number + 1 < len(boots) else "retry"
        base = f"http://{address}"
        lines += [f":head{number}", f"echo beo: {address}"]
        lines += [f"kernel --name kernel {base}/kernel/{image.kernel} {words} || goto {other}"]
        lines += [f"initrd --name initrd {base}/initrd/{image.initrd} || goto {other}"]
        lines += [f"boot || goto {other}"]
    lines += [":retry", "imgfree", f"echo beo: no head has booted this machine, again in {wait_s} s", f"sleep {wait_s}"]
    lines += ["goto head0"]
    return _checked("\n".join(lines) + "\n")


def wait(why: str) -> str:
    """Return the script of a machine that can't boot now: it says why, and asks again."""
    told = re.sub(r"[^A-Za-z0-9 .,:()'/\-]", "?", why)[:200]
    return _checked(f"#!ipxe\necho beo: {told}\nsleep {SLEEP_S + 2}\nexit 1\n")


def dnsmasq(site: Site, pool: str) -> str:
    """Return what a site's own dnsmasq has to say, so that machines boot from these heads. pool: FIRST-LAST, or ""."""
    lines = ["# for dnsmasq: machines boot from beo's heads; 'beo boot off' on them, or --mode proxy, goes with it"]
    if pool:
        first, _, last = pool.partition("-")
        lines += [f"dhcp-range={first.strip()},{last.strip()},1h"]
    lines += ["dhcp-userclass=set:ipxe,iPXE", "dhcp-option-force=tag:ipxe,encap:175,176,1b"]
    lines += [f"dhcp-boot=tag:ipxe,http://{site.http}{SCRIPT_PATH}"]
    for arch, kind in ((0, "bios"), (7, "uefi"), (9, "uefi"), (11, "arm64")):
        if name := site.firmware.get(kind, FIRMWARE[kind][0]):
            lines += [f"dhcp-match=set:arch{arch},option:client-arch,{arch}"]
            lines += [f"dhcp-boot=tag:!ipxe,tag:arch{arch},{name},,{site.server}"]
    url = f"http://{site.http}{FIRMWARE_PATH}/{site.firmware.get('http', FIRMWARE['http'][0])}"
    lines += ["dhcp-match=set:http,option:client-arch,16", "dhcp-option-force=tag:!ipxe,tag:http,60,HTTPClient"]
    lines += [f"dhcp-boot=tag:!ipxe,tag:http,{url}"]
    return "\n".join(lines) + "\n"


def _word(text: str) -> str:
    """Return a text as it is, if it is one word and nothing that would be understood otherwise; else UsageError."""
    if not _WORD.fullmatch(text):
        raise UsageError(
            f"{text[:80]!r} can't stand in a boot script", "only plain letters and digits can", "rename it"
        )
    return text


def _checked(text: str) -> str:
    assert text.isascii() and all(line.isprintable() for line in text.splitlines())
    return text
