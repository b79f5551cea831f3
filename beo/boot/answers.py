"""Which answer a DHCP client gets. Pure: a packet, what is known of the site and the machine -> a packet, or none.

There are two parts to play. With `dhcp`, addresses are given too, each machine its own for ever. With `proxy` another
server does that, and a client is only told what to boot, by a second offer that has no address in it.

A machine that boots asks several times, as other programs: its firmware is given iPXE (by TFTP, or by HTTP where it can
do that), iPXE the URL of a script, and what it has booted none of it.
"""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv4Address, IPv4Interface
from typing import Literal

import msgspec

from beo.boot import dhcp
from beo.boot.book import Machine
from beo.boot.dhcp import NONE, Packet

Part = Literal["dhcp", "proxy"]

LEASE_S = 3_600  # an address is a machine's for ever: the time only says how soon a new setting reaches it
TALKS_MAX = 4_096  # clients remembered, as many as a cluster has nodes
TALK_S = 60.0  # a request so long after its discover is of another talk
TWIN_S = 600.0  # two machines with one MAC address that were heard within it are told of
GUID_MAX_BYTES = 32
SCRIPT_PATH = "/boot.ipxe"
FIRMWARE_PATH = "/firmware"

# What option 93 says of a client, and the name of the iPXE that it can run.
BIOS, UEFI, ARM64, HTTP, HTTP_ARM64, SCRIPT, NOTHING = "bios", "uefi", "arm64", "http", "http-arm64", "ipxe", ""
ARCHES = {0: BIOS, 7: UEFI, 9: UEFI, 11: ARM64, 16: HTTP, 19: HTTP_ARM64}
FIRMWARE = {
    BIOS: ("undionly.kpxe", "ipxe.pxe"),
    UEFI: ("snponly.efi", "ipxe.efi"),
    ARM64: ("snponly-arm64.efi", "ipxe-arm64.efi"),
    HTTP: ("snponly.efi", "ipxe.efi"),
    HTTP_ARM64: ("snponly-arm64.efi", "ipxe-arm64.efi"),
}
_ANY_PXE = bytes((6, 1, 8, 255))  # inside option 43: boot from the file that is named here, and ask nobody else


class Site(msgspec.Struct, frozen=True):
    """What is the same for all clients. interface: this head's address there, like 10.77.0.1/24; http: host:port.

    firmware: the kinds of client for which an iPXE is here -> its file's name.
    """

    interface: str
    http: str
    firmware: dict[str, str]
    router: str = ""
    dns: tuple[str, ...] = ()
    domain: str = ""

    @property
    def server(self) -> str:
        """This head's address."""
        return self.interface.partition("/")[0]


class Reply(msgspec.Struct, frozen=True):
    """A packet, and to which address and port it goes."""

    packet: Packet
    host: str
    port: int


def client_kind(packet: Packet) -> str:
    """What a client wants to boot with: one of the kinds above, "" where it doesn't boot."""
    said = packet.text(dhcp.CLASS)
    is_pxe, is_http = said.startswith("PXEClient"), said.startswith("HTTPClient")
    user = packet.options.get(dhcp.USER_CLASS, b"")
    if user in (b"iPXE", b"\x04iPXE"):  # as it is, or as RFC 3004 has it
        return SCRIPT
    arch = packet.options.get(dhcp.ARCH, b"")
    number = int.from_bytes(arch[:2], "big") if len(arch) >= 2 else _arch_said(said)
    kind = ARCHES.get(number, NOTHING) if is_pxe or is_http else NOTHING
    if is_http != (kind in (HTTP, HTTP_ARM64)):
        return NOTHING
    return kind


def _arch_said(said: str) -> int:
    """The number in "PXEClient:Arch:00007:UNDI:003016"."""
    words = said.split(":")
    number = words[2] if len(words) > 2 and words[1] == "Arch" else ""
    return int(number) if number.isascii() and number.isdigit() and len(number) < 6 else 0


class Talk(msgspec.Struct):
    """What a client said last."""

    kind: str
    xid: int
    guid: bytes
    heard_s: float
    twin_s: float = float("-inf")  # when another GUID was told of


class Talks:
    """Who is being talked with, so that a REQUEST gets what its DISCOVER got, whatever it says of itself."""

    def __init__(self) -> None:
        """Nobody is known yet."""
        self._talks: OrderedDict[str, Talk] = OrderedDict()

    def hear(self, packet: Packet, now_s: float) -> tuple[str, str]:
        """Return the client's kind, and what a person should know ("" mostly)."""
        kind, guid = client_kind(packet), packet.options.get(dhcp.GUID, b"")[:GUID_MAX_BYTES]
        old = self._talks.pop(packet.mac, None)
        same = old and old.xid == packet.xid and now_s - old.heard_s <= TALK_S
        if old and same and packet.kind == dhcp.ASK:
            kind = old.kind or kind
        note, twin_s = "", old.twin_s if old else float("-inf")
        is_twin = old and guid and old.guid and guid != old.guid and now_s - old.heard_s <= TWIN_S
        if is_twin and now_s - twin_s > TWIN_S:
            note, twin_s = f"two machines have the MAC address {packet.mac}: change one, both can't be up", now_s
        known = guid or (old.guid if old else b"")
        self._talks[packet.mac] = Talk(kind, packet.xid, known, now_s, twin_s)
        while len(self._talks) > TALKS_MAX:
            self._talks.popitem(last=False)
        return kind, note


def is_other_server(packet: Packet, own: str) -> str:
    """Return the address of another server that this packet shows to give addresses here; "" where it shows none."""
    server = packet.address(dhcp.SERVER)
    if packet.op == dhcp.REPLY:
        gives = packet.kind in (dhcp.OFFER, dhcp.ACK) and packet.yiaddr != NONE
        return server if gives and server != own else ""
    chosen = packet.kind == dhcp.ASK and server not in ("", own)
    return server if chosen else ""


def wants_machine(packet: Packet, part: Part, own: str) -> bool:
    """Whether the answer depends on the machine's record, so that it has to be known first."""
    if part != "dhcp" or packet.op != dhcp.REQUEST:
        return False
    if packet.kind == dhcp.ASK:
        return packet.address(dhcp.SERVER) in ("", own)
    return packet.kind in (dhcp.DISCOVER, dhcp.INFORM)


def answer(packet: Packet, part: Part, site: Site, kind: str, machine: Machine | None, port: int) -> Reply | None:
    """Return what to send; None: nothing. kind: from `Talks.hear`. port: where the packet came, 67 or 4011."""
    if packet.op != dhcp.REQUEST:
        return None
    if part == "proxy" or port == dhcp.PXE_PORT:
        return _as_proxy(packet, site, kind, port)
    if machine is None or not machine.address:
        return None
    server, wanted = packet.address(dhcp.SERVER), packet.address(dhcp.WANTED_ADDRESS) or packet.ciaddr
    match packet.kind:
        case dhcp.DISCOVER:
            return _to_client(packet, _given(packet, dhcp.OFFER, site, kind, machine))
        case dhcp.ASK if server in ("", site.server):
            if wanted != machine.address:
                return _to_client(packet, _refusal(packet, site, f"your address is {machine.address}"))
            return _to_client(packet, _given(packet, dhcp.ACK, site, kind, machine))
        case dhcp.INFORM:
            return _to_client(packet, _informed(packet, site, kind, machine))
    return None  # a RELEASE changes nothing, since the address stays the machine's; of a DECLINE, the shell tells


def _as_proxy(packet: Packet, site: Site, kind: str, port: int) -> Reply | None:
    """Tell a client what to boot and nothing else; another server gives it an address."""
    if not kind or (kind != SCRIPT and kind not in site.firmware):
        return None
    server = packet.address(dhcp.SERVER)
    if packet.kind == dhcp.DISCOVER and port == dhcp.SERVER_PORT:
        said = dhcp.OFFER
    elif packet.kind in (dhcp.ASK, dhcp.INFORM) and (port == dhcp.PXE_PORT or server == site.server):
        said = dhcp.ACK
    else:
        return None
    options = {dhcp.KIND: bytes((said,)), dhcp.SERVER: _packed(site.server), **_echo(packet)}
    reply = _with_boot(_reply(packet, site, options), site, kind)
    # iPXE takes a proxy's offer for one only if it says so; firmware has it said already.
    if kind == SCRIPT:
        more = {dhcp.CLASS: b"PXEClient", dhcp.VENDOR: _ANY_PXE}
        reply = msgspec.structs.replace(reply, options=reply.options | more)
    if port == dhcp.PXE_PORT:
        reply = msgspec.structs.replace(reply, ciaddr=packet.ciaddr)
        return Reply(reply, packet.ciaddr if packet.ciaddr != NONE else "255.255.255.255", 0)
    return _to_client(packet, reply)


def _given(packet: Packet, said: int, site: Site, kind: str, machine: Machine) -> Packet:
    options = {dhcp.KIND: bytes((said,)), dhcp.LEASE: _seconds(LEASE_S)}
    options |= {dhcp.RENEW: _seconds(LEASE_S // 2), dhcp.REBIND: _seconds(LEASE_S * 7 // 8)}
    options |= {**_network(site, machine), **_echo(packet)}
    reply = _reply(packet, site, options)
    reply = msgspec.structs.replace(reply, yiaddr=machine.address, ciaddr=packet.ciaddr if said == dhcp.ACK else NONE)
    reply = _with_boot(reply, site, kind)
    if kind == SCRIPT:  # nobody else will say what to boot: don't wait for him
        inner = dhcp.write_options({dhcp.NO_PXEDHCP: b"\1"}).removesuffix(b"\xff")
        reply = msgspec.structs.replace(reply, options=reply.options | {dhcp.IPXE: inner})
    return reply


def _informed(packet: Packet, site: Site, kind: str, machine: Machine) -> Packet:
    options = {dhcp.KIND: bytes((dhcp.ACK,)), **_network(site, machine), **_echo(packet)}
    return _with_boot(msgspec.structs.replace(_reply(packet, site, options), ciaddr=packet.ciaddr), site, kind)


def _refusal(packet: Packet, site: Site, why: str) -> Packet:
    options = {dhcp.KIND: bytes((dhcp.NAK,)), dhcp.SERVER: _packed(site.server), 56: why.encode()}
    return msgspec.structs.replace(_reply(packet, site, options), siaddr=NONE)


def _network(site: Site, machine: Machine) -> dict[int, bytes]:
    network = IPv4Interface(site.interface).network
    options = {
        dhcp.SERVER: _packed(site.server),
        dhcp.MASK: network.netmask.packed,
        dhcp.BROADCAST: network.broadcast_address.packed,
        dhcp.HOSTNAME: machine.name.encode(),
    }
    if site.router:
        options[dhcp.ROUTER] = _packed(site.router)
    if site.dns:
        options[dhcp.DNS] = b"".join(map(_packed, site.dns))
    if site.domain:
        options[dhcp.DOMAIN] = site.domain.encode()
    return options


def _with_boot(packet: Packet, site: Site, kind: str) -> Packet:
    """Add what to boot, in the header and in options: each ROM looks at another of the two."""
    options = dict(packet.options)
    if kind == SCRIPT:
        file = f"http://{site.http}{SCRIPT_PATH}".encode()
    elif kind in (HTTP, HTTP_ARM64) and kind in site.firmware:
        file = f"http://{site.http}{FIRMWARE_PATH}/{site.firmware[kind]}".encode()
        options[dhcp.CLASS] = b"HTTPClient"
    elif kind in site.firmware:
        file = site.firmware[kind].encode()
        options |= {dhcp.CLASS: b"PXEClient", dhcp.VENDOR: _ANY_PXE, dhcp.TFTP_SERVER: site.server.encode()}
    else:
        return packet
    options[dhcp.BOOT_FILE] = file
    return msgspec.structs.replace(packet, siaddr=site.server, file=file, options=options)


def _reply(packet: Packet, site: Site, options: dict[int, bytes]) -> Packet:
    return Packet(
        op=dhcp.REPLY,
        mac=packet.mac,
        xid=packet.xid,
        broadcast=packet.broadcast,
        giaddr=packet.giaddr,
        siaddr=site.server,
        options=options,
    )


def _to_client(packet: Packet, reply: Packet) -> Reply:
    """Say where a reply goes: a relay, a client that has its address, or all, since the client has none yet."""
    if packet.giaddr != NONE:
        return Reply(reply, packet.giaddr, dhcp.SERVER_PORT)
    if packet.ciaddr != NONE and reply.options[dhcp.KIND] != bytes((dhcp.NAK,)):
        return Reply(reply, packet.ciaddr, dhcp.CLIENT_PORT)
    return Reply(reply, "255.255.255.255", dhcp.CLIENT_PORT)


def _echo(packet: Packet) -> dict[int, bytes]:
    """What a PXE client wants to hear again: its own GUID."""
    guid = packet.options.get(dhcp.GUID, b"")
    return {dhcp.GUID: guid} if 0 < len(guid) <= GUID_MAX_BYTES else {}


def _packed(address: str) -> bytes:
    return IPv4Address(address).packed


def _seconds(value: int) -> bytes:
    return value.to_bytes(4, "big")
