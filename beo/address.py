"""Addresses of this machine: which one the cluster's network has, who carries it, and what a head may listen on."""

from __future__ import annotations

import array
import errno
import fcntl
import ipaddress
import socket
import struct

from beo.errors import NoHead, UsageError

HEAD_PORT = 7420  # where a head of several machines listens, unless told otherwise
SOMEWHERE = "198.51.100.1"  # an address that no machine has (TEST-NET-2): the way there is the default route
_SIOCGIFCONF = 0x8912
_INTERFACES_MAX = 1024


def split(text: str, default_port: int) -> tuple[str, int]:
    """Divide "HOST:PORT" or "HOST"; raises UsageError for a port that is none."""
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, str(default_port)
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"{text!r} is no address", "", "write it as HOST:PORT, like 192.168.1.10:7420")
    return host, int(port)


def resolve(host: str) -> str:
    """Return a host's IPv4 address; raises UsageError for a name that nobody knows."""
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"no address of {host!r} is known here", why, "give the address in numbers") from None


def check_own(host: str) -> str:
    """Return the address of a host if this machine has it and others can use it; raises UsageError."""
    found = resolve(host)
    if ipaddress.ip_address(found).is_unspecified:
        raise UsageError(
            f"a head can't listen on {found}",
            "every machine must reach it by one address",
            f"name this machine's address in the cluster's network: {_listed()}",
        )
    if interface_of(found) is None:
        raise UsageError(f"{found} is no address of this machine", "", f"it has {_listed()}")
    return found


def _listed() -> str:
    return ", ".join(f"{found} ({name})" for name, found in _addresses4()) or "none"


def chosen() -> str:
    """Return the address that others most likely reach this machine by.

    It is the one on the default route, else the only one that is not the loopback's; UsageError where that isn't clear.
    """
    try:
        return own(SOMEWHERE)
    except NoHead:
        pass
    found = [str(one) for _, one in _addresses4() if not one.is_loopback]
    if len(found) == 1:
        return found[0]
    why = "there is no default route" if found else "it has none but the loopback"
    raise UsageError("which address of this machine others use isn't clear", why, f"--listen one of {_listed()}")


def own(head: str) -> str:
    """Return this machine's address on the way to a host (in numbers); raises NoHead where there is no way."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            any_socket.connect((resolve(head), 9))  # nothing is sent: the kernel looks for a route
            return str(any_socket.getsockname()[0])
    except OSError as error:
        why = errno.errorcode.get(error.errno or 0, "") and (error.strerror or "").lower()
        raise NoHead(f"there is no way to {head} from here", why, "see 'ip route'") from None


def interface_of(address: str) -> str | None:
    """The network interface that carries `address` (IPv4 or IPv6, second addresses too); None if none does."""
    wanted = ipaddress.ip_address(address.partition("%")[0])
    if wanted.version == 6:
        return next((name for name, found in _addresses6() if found == wanted), None)
    carriers = list(_addresses4())
    exact = next((name for name, found in carriers if found == wanted), None)
    if exact is None and wanted.is_loopback:  # the whole of 127.0.0.0/8 is the loopback's
        return next((name for name, found in carriers if found.is_loopback), None)
    return exact


def mtu_of(interface: str) -> int:
    """The largest packet of an interface in bytes; 0 where that isn't known."""
    try:
        with open(f"/sys/class/net/{interface}/mtu") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _addresses4() -> list[tuple[str, ipaddress.IPv4Address]]:
    record_bytes = 16 + struct.calcsize("P") * 3  # struct ifreq: the name and a union of 24 bytes (16 on 32 bits)
    buffer = array.array("B", bytes(record_bytes * _INTERFACES_MAX))
    where, _ = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFCONF, struct.pack("iP", len(buffer), where))
    length = struct.unpack("iP", answer)[0]
    found = []
    for at in range(0, length, record_bytes):
        record = buffer[at : at + record_bytes].tobytes()
        name = record[:16].partition(b"\0")[0].decode()
        found.append((name.partition(":")[0], ipaddress.IPv4Address(record[20:24])))
    return found


def _addresses6() -> list[tuple[str, ipaddress.IPv6Address]]:
    try:
        with open("/proc/net/if_inet6") as file:
            rows = [line.split() for line in file]
    except OSError:
        return []
    return [(row[5], ipaddress.IPv6Address(bytes.fromhex(row[0]))) for row in rows]
