"""Interfaces and their addresses, told to the kernel itself (rtnetlink(7)): no program to start, and each answer is an
errno.

An address can be given for some seconds: when they have passed, the kernel takes it away, whatever became of who gave
it.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

FOREVER_S = 0xFFFFFFFF
ANSWER_S = 5.0  # the kernel answers within the call; this is for a kernel that doesn't
RECEIVE_BYTES = 64 << 10  # of a list of addresses at a time: the kernel sends at most 32 KiB

_NEW, _DELETE, _LIST = 20, 21, 22  # RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR
_NEW_LINK, _DELETE_LINK, _SET_LINK, _NEW_NEIGHBOUR = (
    16,
    17,
    19,
    28,
)  # RTM_NEWLINK, RTM_DELLINK, RTM_SETLINK, RTM_NEWNEIGH
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _REPLACE, _NEW_ONLY, _CREATE, _DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_ADDRESS, _LOCAL, _CACHEINFO = 1, 2, 6
_LINK_ADDRESS, _LINK_NAME, _LINK_MTU, _LINK_INFO, _LINK_INTO = 1, 3, 4, 18, 28  # IFLA_...; INTO: IFLA_NET_NS_FD
_KIND, _DATA = 1, 2  # IFLA_INFO_...
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_SHORT_CUT = 1, 4, 7, 15, 31  # IFLA_VXLAN_...
_IS_UP = 1  # IFF_UP
_AF_BRIDGE = 7
_NEAR_ADDRESS, _NEAR_MAC, _NEAR_PORT = 1, 2, 6  # NDA_...
_OWN, _FOREVER = 0x02, 0xC0  # NTF_SELF; NUD_NOARP and NUD_PERMANENT
_header = struct.Struct("=IHHII")
_ifaddr = struct.Struct("=BBBBI")  # family, length of the prefix, flags, scope, interface
_ifinfo = struct.Struct("=BxHiII")  # family, type, interface, flags, which of them
_near = struct.Struct("=BxxxiHBB")  # family, interface, state, flags, type
_attribute = struct.Struct("=HH")
_cacheinfo = struct.Struct("=IIII")  # preferred and valid for so many seconds, when made, when changed


@dataclass(frozen=True)
class Found:
    """An address that an interface (by its number) has, and for how long."""

    index: int
    address: IPv4Address
    prefix: int
    valid_s: int

    @property
    def network(self) -> IPv4Network:
        """The network that it is in."""
        return IPv4Interface((self.address, self.prefix)).network


class Netlink:
    """A line to the kernel. Every call raises OSError as the kernel says it."""

    def __init__(self) -> None:
        """Open it."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.settimeout(ANSWER_S)
        self._socket.bind((0, 0))
        self._number = 0

    def put(self, index: int, address: IPv4Address, prefix: int, valid_s: int) -> None:
        """Give an interface an address for so many seconds, or for so many more."""
        lifetime = _part(_CACHEINFO, _cacheinfo.pack(valid_s, valid_s, 0, 0))
        self._ask(_NEW, _ACK | _CREATE | _REPLACE, _about(index, address, prefix) + lifetime)

    def remove(self, index: int, address: IPv4Address, prefix: int) -> None:
        """Take an address from an interface."""
        self._ask(_DELETE, _ACK, _about(index, address, prefix))

    def addresses(self) -> list[Found]:
        """Return every IPv4 address of this machine."""
        return [
            found
            for body in self._ask(_LIST, _DUMP, _ifaddr.pack(socket.AF_INET, 0, 0, 0, 0))
            if (found := _read(body))
        ]

    def tunnel(self, name: str, number: int, port: int, local: IPv4Address, mtu: int, into: int) -> None:
        """Make a VXLAN interface in another network namespace (a descriptor); what it sends goes through this one's.

        number: of the VXLAN, the same at all its ends. port, local: where what comes for it comes to.
        """
        options = _part(_VXLAN_ID, struct.pack("=I", number)) + _part(_VXLAN_LOCAL, local.packed)
        options += _part(_VXLAN_PORT, struct.pack(">H", port)) + _part(_VXLAN_LEARNING, b"\0")
        # Between two ends on one machine the kernel's short cut loses what crosses network namespaces.
        options += _part(_VXLAN_SHORT_CUT, b"\0")
        body = _ifinfo.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _part(_LINK_NAME, name.encode() + b"\0")
        body += _part(_LINK_MTU, struct.pack("=I", mtu)) + _part(_LINK_INTO, struct.pack("=I", into))
        body += _part(_LINK_INFO, _part(_KIND, b"vxlan\0") + _part(_DATA, options))
        self._ask(_NEW_LINK, _ACK | _CREATE | _NEW_ONLY, body)

    def raise_up(self, index: int, mac: bytes = b"") -> None:
        """Set an interface up, with a MAC if one is given."""
        body = _ifinfo.pack(socket.AF_UNSPEC, 0, index, _IS_UP, _IS_UP)
        self._ask(_SET_LINK, _ACK, body + (_part(_LINK_ADDRESS, mac) if mac else b""))

    def drop(self, index: int) -> None:
        """Remove an interface."""
        self._ask(_DELETE_LINK, _ACK, _ifinfo.pack(socket.AF_UNSPEC, 0, index, 0, 0))

    def place(self, index: int, address: IPv4Address, mac: bytes) -> None:
        """Tell for good which MAC an address has."""
        body = _near.pack(socket.AF_INET, index, _FOREVER, 0, 0)
        self._ask(
            _NEW_NEIGHBOUR,
            _ACK | _CREATE | _REPLACE,
            body + _part(_NEAR_ADDRESS, address.packed) + _part(_NEAR_MAC, mac),
        )

    def lead(self, index: int, mac: bytes, host: IPv4Address, port: int) -> None:
        """Tell a VXLAN interface for good where what is for a MAC goes."""
        body = _near.pack(_AF_BRIDGE, index, _FOREVER, _OWN, 0) + _part(_NEAR_MAC, mac)
        body += _part(_NEAR_ADDRESS, host.packed) + _part(_NEAR_PORT, struct.pack(">H", port))
        self._ask(_NEW_NEIGHBOUR, _ACK | _CREATE | _REPLACE, body)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Send one request and return the answer's parts."""
        self._number += 1
        self._socket.send(_header.pack(_header.size + len(body), kind, _REQUEST | flags, self._number, 0) + body)
        parts: list[bytes] = []
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            while len(data) >= _header.size:
                length, what, _, number, _ = _header.unpack_from(data)
                part, data = data[_header.size : length], data[_padded(length) :]
                if number != self._number:
                    continue  # an answer that came too late for who asked
                if what == _DONE:
                    return parts
                if what == _ERROR:
                    (error,) = struct.unpack_from("=i", part)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return parts
                parts.append(part)


def _about(index: int, address: IPv4Address, prefix: int) -> bytes:
    who = _part(_LOCAL, address.packed) + _part(_ADDRESS, address.packed)
    return _ifaddr.pack(socket.AF_INET, prefix, 0, 0, index) + who


def _part(kind: int, value: bytes) -> bytes:
    length = _attribute.size + len(value)
    return _attribute.pack(length, kind) + value + bytes(_padded(length) - length)


def _padded(length: int) -> int:
    return (length + 3) & ~3


def _read(body: bytes) -> Found | None:
    family, prefix, _, _, index = _ifaddr.unpack_from(body)
    values, at = {}, _ifaddr.size
    while at + _attribute.size <= len(body):
        length, kind = _attribute.unpack_from(body, at)
        if length < _attribute.size:
            break
        values[kind] = body[at + _attribute.size : at + length]
        at += _padded(length)
    if family != socket.AF_INET or _LOCAL not in values:
        return None
    valid_s = _cacheinfo.unpack(values[_CACHEINFO])[1] if _CACHEINFO in values else FOREVER_S
    return Found(index, IPv4Address(values[_LOCAL]), prefix, valid_s)
