"""BOOTP and DHCP as bytes (RFC 951, 2131, 2132, 3396), and what a client says of itself in them (RFC 4578). Pure.

What comes from the wire is believed in nothing: each length is checked, and a packet that can't be read whole is
refused by a `UsageError` that says what is wrong with it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import msgspec

from beo.errors import UsageError

SERVER_PORT, CLIENT_PORT, PXE_PORT = 67, 68, 4011
REQUEST, REPLY = 1, 2
DISCOVER, OFFER, ASK, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
NAMES = ("", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE", "INFORM")

# Options, as RFC 2132 numbers them.
MASK, ROUTER, DNS, HOSTNAME, DOMAIN, BROADCAST, VENDOR = 1, 3, 6, 12, 15, 28, 43
WANTED_ADDRESS, LEASE, OVERLOAD, KIND, SERVER, PARAMETERS = 50, 51, 52, 53, 54, 55
RENEW, REBIND, CLASS, TFTP_SERVER, BOOT_FILE = 58, 59, 60, 66, 67
USER_CLASS, ARCH, GUID, IPXE = 77, 93, 97, 175
NO_PXEDHCP = 176  # inside option 175: don't wait for a proxy

PACKET_MIN_BYTES = 240  # up to the magic number
PACKET_MAX_BYTES = 4_096  # no client sends more than fits into one frame
PADDED_BYTES = 300  # a BOOTP packet's own size: some relays and ROMs drop shorter ones
FILE_BYTES, SNAME_BYTES = 128, 64
NONE = "0.0.0.0"
_MAGIC = b"\x63\x82\x53\x63"
_HEAD = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
_BROADCAST_FLAG = 0x8000
_ETHERNET, _MAC_BYTES = 1, 6


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """One packet. mac: "02:00:00:00:00:01"; addresses as text, "0.0.0.0" for none; options: code -> bytes."""

    op: int
    mac: str
    xid: int
    secs: int = 0
    broadcast: bool = False
    ciaddr: str = NONE
    yiaddr: str = NONE
    siaddr: str = NONE
    giaddr: str = NONE
    sname: bytes = b""
    file: bytes = b""
    options: dict[int, bytes] = {}

    @property
    def kind(self) -> int:
        """DISCOVER, OFFER, ...; 0 where it says none."""
        said = self.options.get(KIND, b"")
        return said[0] if len(said) == 1 else 0

    def address(self, code: int) -> str:
        """Return the address that an option has; "" where it has none."""
        said = self.options.get(code, b"")
        return str(IPv4Address(said)) if len(said) == 4 else ""

    def text(self, code: int) -> str:
        """Return what an option says, as far as it is plain text."""
        said = self.options.get(code, b"").rstrip(b"\0").decode("ascii", "replace")
        return said if said.isprintable() else ""


def parse(data: bytes) -> Packet:
    """Read a packet; raises UsageError for what is none."""
    if not PACKET_MIN_BYTES <= len(data) <= PACKET_MAX_BYTES:
        raise _bad(f"it has {len(data)} bytes, not {PACKET_MIN_BYTES} to {PACKET_MAX_BYTES}")
    op, kind, length, _, xid, secs, flags, *addresses, hardware, sname, file = _HEAD.unpack_from(data)
    if op not in (REQUEST, REPLY) or (kind, length) != (_ETHERNET, _MAC_BYTES):
        raise _bad(f"its op is {op}, its hardware {kind} with {length} bytes of address: only Ethernet is known")
    if data[_HEAD.size : PACKET_MIN_BYTES] != _MAGIC:
        raise _bad("it has no magic number of DHCP")
    options: dict[int, bytes] = {}
    _gather(options, data[PACKET_MIN_BYTES:])
    # A field that is used for further options is no name; RFC 3396 says in which order they are read.
    over = options.get(OVERLOAD, b"\0")
    if len(over) != 1 or over[0] > 3:
        raise _bad("its option 52 is none of 1, 2, 3")
    if over[0] & 1:
        _gather(options, file)
        file = b""
    if over[0] & 2:
        _gather(options, sname)
        sname = b""
    ciaddr, yiaddr, siaddr, giaddr = (str(IPv4Address(address)) for address in addresses)
    return Packet(
        op=op,
        mac=hardware[:_MAC_BYTES].hex(":"),
        xid=xid,
        secs=secs,
        broadcast=bool(flags & _BROADCAST_FLAG),
        ciaddr=ciaddr,
        yiaddr=yiaddr,
        siaddr=siaddr,
        giaddr=giaddr,
        sname=sname.partition(b"\0")[0],
        file=file.partition(b"\0")[0],
        options=options,
    )


def _gather(options: dict[int, bytes], data: bytes) -> None:
    for code, value in read_options(data):
        options[code] = options.get(code, b"") + value  # one that is longer than 255 bytes comes in parts


def read_options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (code, value) of a field of options: the packet's own, or those inside option 43 or 175."""
    at = 0
    while at < len(data):
        code = data[at]
        at += 1
        if code == 255:
            return
        if code == 0:
            continue
        if at == len(data) or at + 1 + data[at] > len(data):
            raise _bad(f"its option {code} is cut off")
        yield code, data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]


def write_options(options: dict[int, bytes]) -> bytes:
    """Return a field of options with its end; long ones in parts. The packet's kind comes first, as ROMs like it."""
    out = bytearray()
    for code in sorted(options, key=lambda code: (code != KIND, code)):
        value = options[code]
        for at in range(0, max(1, len(value)), 255):
            part = value[at : at + 255]
            out += bytes((code, len(part))) + part
    return bytes(out + b"\xff")


def encode(packet: Packet) -> bytes:
    """Return the bytes of a packet."""
    flags = _BROADCAST_FLAG if packet.broadcast else 0
    fields = (packet.ciaddr, packet.yiaddr, packet.siaddr, packet.giaddr)
    if len(packet.file) >= FILE_BYTES or len(packet.sname) >= SNAME_BYTES:
        raise UsageError("a name is too long for a DHCP packet", packet.file.decode(errors="replace"), "shorten it")
    head = _HEAD.pack(
        packet.op,
        _ETHERNET,
        _MAC_BYTES,
        0,
        packet.xid,
        packet.secs,
        flags,
        *(IPv4Address(field).packed for field in fields),
        bytes.fromhex(packet.mac.replace(":", "")),
        packet.sname,
        packet.file,
    )
    return (head + _MAGIC + write_options(packet.options)).ljust(PADDED_BYTES, b"\0")


def _bad(why: str) -> UsageError:
    return UsageError("this is no DHCP packet that can be read", why, "look at who sends it, or leave it")
