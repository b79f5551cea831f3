"""The answer to who looks for an IPv6 router (RFC 4861): there is none. Pure.

iPXE waits 16 s for a router at every boot of a network that has none. An advertisement with a lifetime of 0 says that
its sender is no router, and gives no prefix: a machine that isn't iPXE changes nothing for it.
"""

from __future__ import annotations

import struct

SOLICITATION, ADVERTISEMENT = 133, 134
SOLICITATION_MIN_BYTES = 8
SOLICITATION_MAX_BYTES = 1_500
HOPS = 255  # what comes with less has passed a router, and is from elsewhere
ALL_ROUTERS, ALL_NODES = "ff02::2", "ff02::1"
_SOURCE_LINK = 1  # the option with the sender's own MAC address
_HEAD = struct.Struct("!BBHBBHII")


def is_solicitation(data: bytes, hops: int) -> bool:
    """Whether this ICMPv6 message is one, whole, and from this very network."""
    if hops != HOPS or not SOLICITATION_MIN_BYTES <= len(data) <= SOLICITATION_MAX_BYTES:
        return False
    if data[:2] != bytes((SOLICITATION, 0)):
        return False
    at = SOLICITATION_MIN_BYTES
    while at < len(data):  # options: kind, length in units of 8 bytes
        if at + 2 > len(data) or not data[at + 1] or at + 8 * data[at + 1] > len(data):
            return False
        at += 8 * data[at + 1]
    return True


def advertisement(mac: str = "") -> bytes:
    """Return one that offers nothing: lifetime 0, no prefix. Its checksum is 0: a raw socket's kernel fills it in."""
    head = _HEAD.pack(ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0)
    return head + (bytes((_SOURCE_LINK, 1)) + bytes.fromhex(mac.replace(":", "")) if mac else b"")
