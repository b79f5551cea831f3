"""Clients as their firmware is: what a PXE ROM, UEFI, iPXE and a plain DHCP client put on the wire, as bytes."""

from __future__ import annotations

from typing import ClassVar

from beo.boot import dhcp
from beo.boot.dhcp import Packet

PXE_PARAMETERS = bytes((1, 2, 3, 4, 5, 6, 11, 12, 13, 15, 16, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59))
IPXE_OPTIONS = bytes.fromhex("b1050102 1af4 1000180101230101220101190101210101100102130101")
GUID = b"\0" + bytes(range(16))


class Client:
    """One machine's network card, as a program in it speaks. kind: bios, uefi, arm64, http, ipxe, or plain."""

    ARCHES: ClassVar = {"bios": 0, "uefi": 7, "arm64": 11, "http": 16, "ipxe": 0}

    def __init__(self, kind: str, mac: str = "52:54:00:00:00:01", xid: int = 0x12345678, guid: bytes = GUID) -> None:
        """Take what it is."""
        self.kind, self.mac, self.xid, self.guid = kind, mac, xid, guid

    def options(self) -> dict[int, bytes]:
        """What it says of itself."""
        if self.kind == "plain":
            return {dhcp.PARAMETERS: bytes((1, 3, 6)), dhcp.HOSTNAME: b"laptop"}
        arch = self.ARCHES[self.kind]
        name = "HTTPClient" if self.kind == "http" else "PXEClient"
        said = {
            dhcp.PARAMETERS: PXE_PARAMETERS,
            57: b"\x04\xec",
            dhcp.CLASS: f"{name}:Arch:{arch:05d}:UNDI:003016".encode(),
            dhcp.ARCH: arch.to_bytes(2, "big"),
            94: b"\1\3\x10",
            dhcp.GUID: self.guid,
        }
        if self.kind == "ipxe":
            said |= {dhcp.USER_CLASS: b"iPXE", dhcp.IPXE: IPXE_OPTIONS}
        return said

    def packet(self, kind: int, **more: object) -> Packet:
        """A packet of it; `options` are added to its own."""
        extra = more.pop("options", {})
        assert isinstance(extra, dict)
        options = {dhcp.KIND: bytes((kind,)), **self.options(), **extra}
        return Packet(op=dhcp.REQUEST, mac=self.mac, xid=self.xid, options=options, **more)  # type: ignore[arg-type]

    def discover(self) -> Packet:
        """It looks for servers."""
        return self.packet(dhcp.DISCOVER, broadcast=True)

    def request(self, offer: Packet) -> Packet:
        """It takes an offer."""
        wanted = bytes(map(int, offer.yiaddr.split(".")))
        options = {dhcp.SERVER: offer.options[dhcp.SERVER], dhcp.WANTED_ADDRESS: wanted}
        return self.packet(dhcp.ASK, broadcast=True, options=options)


def samples() -> list[bytes]:
    """Packets of all kinds of clients."""
    found = []
    for kind in (*Client.ARCHES, "plain"):
        client = Client(kind)
        offer = Packet(op=dhcp.REPLY, mac=client.mac, xid=1, yiaddr="10.0.0.9", options={dhcp.SERVER: bytes(4)})
        more = {dhcp.OVERLOAD: b"\3", 200: b"x" * 600}
        packets = (
            client.discover(),
            client.request(offer),
            client.packet(dhcp.INFORM, ciaddr="10.0.0.9", options=more),
        )
        found += [dhcp.encode(packet) for packet in packets]
    return found
