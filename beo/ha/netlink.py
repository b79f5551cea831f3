"""Addresses of interfaces, told to the kernel itself (rtnetlink(7)): no program to start, and each answer is an errno.

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
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _REPLACE, _CREATE, _DUMP = 0x1, 0x4, 0x100, 0x400, 0x300
_ADDRESS, _LOCAL, _CACHEINFO = 1, 2, 6
_header = struct.Struct("=IHHII")
_ifaddr = struct.Struct("=BBBBI")  # family, length of the prefix, flags, scope, interface
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
