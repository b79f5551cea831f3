"""The sockets of one network interface: what comes by another one never reaches them, and what is sent leaves by it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface

from beo.boot.solicit import ALL_ROUTERS, HOPS
from beo.errors import BeoError, Conflict, NotFound, Refused, reason

_ADDRESS, _MASK, _MAC, _FLAGS = 0x8915, 0x891B, 0x8927, 0x8913  # SIOCGIF…
_IS_UP, _HAS_BROADCAST = 1, 2
_ICMP6_FILTER, _SOLICITATION = 1, 133


def _ask(interface: str, question: int) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
        return fcntl.ioctl(link.fileno(), question, struct.pack("256s", interface.encode()[:15]))


def check(interface: str) -> None:
    """Raise the error that an unknown interface is, or one that is down."""
    if interface not in (known := [name for _, name in socket.if_nameindex()]):
        raise NotFound.among("interface", interface, known, "'ip link' lists them")
    (flags,) = struct.unpack_from("H", _ask(interface, _FLAGS), 16)
    if not flags & _IS_UP:
        raise Conflict(f"{interface} is down", "nothing comes by it", f"'ip link set {interface} up'")


def address(interface: str) -> str:
    """Return the first IPv4 address of an interface, like 10.77.0.1/24; raises BeoError where there is none."""
    check(interface)
    try:
        own, mask = (str(IPv4Address(_ask(interface, question)[20:24])) for question in (_ADDRESS, _MASK))
    except OSError:
        cure = f"'ip addr add 10.77.0.1/24 dev {interface}', or set one up for good"
        raise Conflict(f"{interface} has no IPv4 address", "machines must reach this head there", cure) from None
    return str(IPv4Interface(f"{own}/{mask}"))


def mac(interface: str) -> str:
    """Return an interface's MAC address; raises BeoError where it is no more."""
    try:
        return _ask(interface, _MAC)[18:24].hex(":")
    except OSError as error:
        raise NotFound(f"no interface {interface!r}", reason(error), "'ip link' lists them") from None


def number(interface: str) -> int:
    """Return an interface's number: one that is made anew by the same name has another. 0: there is none."""
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return 0


def broadcasts() -> list[str]:
    """Return the broadcast address of each network of this machine that has one."""
    found = set()
    for _, name in socket.if_nameindex():
        with suppress(OSError, BeoError):  # it is down, or without an address
            (flags,) = struct.unpack_from("H", _ask(name, _FLAGS), 16)
            network = IPv4Interface(address(name)).network  # as an interface need not say it itself
            if flags & _HAS_BROADCAST and network.prefixlen < 31:
                found.add(network.broadcast_address)
    return [str(one) for one in sorted(found)]


def datagrams(interface: str, port: int, host: str = "", broadcast: bool = False) -> socket.socket:
    """Return a UDP socket at a port of this interface alone; raises BeoError with what is wrong."""
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(broadcast))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, int(broadcast))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        link.bind((host, port))
    except OSError as error:
        link.close()
        raise _trouble(error, f"UDP port {port} of {interface}") from None
    return link


def listener(interface: str, host: str, port: int) -> socket.socket:
    """Return a TCP socket at a port of this interface alone."""
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if interface:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        link.bind((host, port))
    except OSError as error:
        link.close()
        raise _trouble(error, f"TCP port {port} of {interface or host}") from None
    return link


def solicitations(interface: str) -> socket.socket:
    """Return a raw ICMPv6 socket that hears those who look for a router on this interface; raises BeoError."""
    try:
        link = socket.socket(
            socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6
        )
    except OSError as error:
        raise _trouble(error, f"ICMPv6 of {interface}") from None
    try:
        number = socket.if_nametoindex(interface)
        blocked = bytearray(b"\xff" * 32)
        blocked[4 * (_SOLICITATION // 32) : 4 * (_SOLICITATION // 32) + 4] = struct.pack(
            "=I", 0xFFFFFFFF & ~(1 << _SOLICITATION % 32)
        )
        link.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOPS)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, number)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        group = socket.inet_pton(socket.AF_INET6, ALL_ROUTERS) + struct.pack("@I", number)
        link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
    except OSError as error:
        link.close()
        raise _trouble(error, f"ICMPv6 of {interface}") from None
    return link


def _trouble(error: OSError, what: str) -> BeoError:
    if error.errno in (errno.EPERM, errno.EACCES):
        cure = "run this head as root, or serve no boots ('beo boot off')"
        return Refused(f"can't listen at {what}", f"only root may, and this is uid {os.geteuid()}", cure)
    if error.errno == errno.EADDRINUSE:
        cure = "'ss -lnp' tells who it is: end that, or let it serve and use --mode proxy"
        return Conflict(f"can't listen at {what}", "another program does", cure)
    return Conflict(f"can't listen at {what}", reason(error), "look at 'ip addr'")
