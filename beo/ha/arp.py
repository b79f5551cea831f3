"""Words of ARP (RFC 826, 5227): that an address is here from now on, whether another has it too, and who says so.

Without the first, the others of a network keep sending to the machine that had it, for as long as they remember.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

TYPE = 0x0806  # of an Ethernet frame: ETH_P_ARP
MAC_BYTES = 6

_ALL = b"\xff" * MAC_BYTES
_NOBODY = bytes(MAC_BYTES)
_REQUEST, _REPLY = 1, 2
_ethernet = struct.Struct("!6s6sH")
_arp = struct.Struct("!HHBBH6s4s6s4s")  # hardware and protocol: kind and length each; what; who says it; whom
_FIRST = (1, 0x0800, MAC_BYTES, 4)  # Ethernet and IPv4


def announcements(mac: bytes, address: IPv4Address) -> list[bytes]:
    """Return the frames that tell everybody where an address is: some kinds of machine heed only one of the two."""
    ip = address.packed
    return [_frame(mac, _REQUEST, ip, _NOBODY, ip), _frame(mac, _REPLY, ip, _ALL, ip)]


def probe(mac: bytes, address: IPv4Address) -> bytes:
    """Return the frame that asks who has an address without claiming it."""
    return _frame(mac, _REQUEST, bytes(4), _NOBODY, address.packed)


def claimant(frame: bytes, mac: bytes, address: IPv4Address) -> str:
    """Return who else says in a frame that he has the address, like "02:00:00:00:00:02"; "" where nobody does."""
    if len(frame) < _ethernet.size + _arp.size or _ethernet.unpack_from(frame)[2] != TYPE:
        return ""
    *first, _, who, ip, _, _ = _arp.unpack_from(frame, _ethernet.size)
    if tuple(first) != _FIRST or ip != address.packed or who == mac:
        return ""
    return str(who.hex(":"))


def _frame(mac: bytes, what: int, ip: bytes, whom: bytes, whom_ip: bytes) -> bytes:
    return _ethernet.pack(_ALL, mac, TYPE) + _arp.pack(*_FIRST, what, mac, ip, whom, whom_ip)
