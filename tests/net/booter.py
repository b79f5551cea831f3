"""A machine that boots, as far as packets show it: run on a host of the network, it prints what it got as JSON.

python -m tests.net.booter dhcp KIND MAC [--ask-at-4011 SERVER]   DISCOVER and REQUEST: the replies
python -m tests.net.booter tftp SERVER NAME [OPTION VALUE]...     SHA-256 and size of a file, or the error
python -m tests.net.booter http URL                               status, SHA-256 and the beginning
python -m tests.net.booter router                                 who answers a solicitation, and its bytes
python -m tests.net.booter serve ADDRESS                          another DHCP server: until it is killed
python -m tests.net.booter all SERVER                             boots as each kind of client
python -m tests.net.booter noise                                  spoilt packets to every port
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

from beo.boot import dhcp, ether, solicit
from beo.boot.dhcp import Packet
from tests.clients import Client, samples

INTERFACE = "eth0"
ANSWER_S = 1.2
ADDRESS_S = 8.0  # for an interface to have found out that its IPv6 address is nobody else's
ASK_EVERY_S = 0.3
OTHERS = "10.77.0.77"  # what the other server offers


def _listen(port: int) -> socket.socket:
    link = ether.datagrams(INTERFACE, port, broadcast=True)
    link.setblocking(True)
    return link


def _exchange(link: socket.socket, packet: Packet, to: tuple[str, int], enough: int = 9) -> list[Packet]:
    """Send, and return what comes for this client within the time, as many as are enough."""
    link.sendto(dhcp.encode(packet), to)
    found: list[Packet] = []
    end_s = time.monotonic() + ANSWER_S
    while len(found) < enough and (left_s := end_s - time.monotonic()) > 0:
        link.settimeout(left_s)
        try:
            reply = dhcp.parse(link.recv(4_096))
        except TimeoutError:
            break
        if reply.op == dhcp.REPLY and (reply.xid, reply.mac) == (packet.xid, packet.mac):
            found.append(reply)
    return found


def _told(packet: Packet) -> dict[str, Any]:
    options = {str(code): value.hex() for code, value in packet.options.items()}
    names = {"file": packet.file.decode(), "siaddr": packet.siaddr, "server": packet.address(dhcp.SERVER)}
    return {"kind": dhcp.NAMES[packet.kind], "yiaddr": packet.yiaddr, "options": options, **names}


def boot(kind: str, mac: str, at: str = "", wanted: str = "", enough: int = 9) -> list[dict[str, Any]]:
    """Ask as a client of this kind; with `wanted`, for that address and no other, as after a restart."""
    client = Client(kind, mac, int.from_bytes(os.urandom(4), "big"))
    to = ("255.255.255.255", dhcp.SERVER_PORT)
    link = _listen(dhcp.CLIENT_PORT)
    if wanted:
        packed = bytes(map(int, wanted.split(".")))
        return [
            _told(p) for p in _exchange(link, client.packet(dhcp.ASK, options={dhcp.WANTED_ADDRESS: packed}), to, 1)
        ]
    offers = _exchange(link, client.discover(), to, enough)
    replies = list(offers)
    for offer in offers:
        if offer.yiaddr != dhcp.NONE:
            replies += _exchange(link, client.request(offer), to, 1)
    if at:
        own = _listen(0)
        replies += _exchange(own, client.packet(dhcp.ASK, ciaddr=dhcp.NONE), (at, dhcp.PXE_PORT), 1)
    return [_told(packet) for packet in replies]


def tftp(server: str, name: str, *options: str) -> dict[str, Any]:
    """Fetch a file as a ROM does, losing every 50th block."""
    link = _listen(0)
    link.settimeout(3.0)
    words = (name, "octet", *options)
    link.sendto(b"\0\1" + b"".join(word.encode() + b"\0" for word in words), (server, 69))
    said = dict(zip(options[::2], options[1::2], strict=True))
    block_bytes, window, expected, got, in_window, number = 512, 1, 1, b"", 0, 0
    agreed: dict[str, str] = {}
    while True:
        data, peer = link.recvfrom(65_536)
        op, block = struct.unpack_from("!HH", data)
        if op == 5:
            return {"error": data[4:-1].decode()}
        if op == 6:
            parts = data[2:-1].decode().split("\0")
            agreed = dict(zip(parts[::2], parts[1::2], strict=True))
            block_bytes, window = int(agreed.get("blksize", 512)), int(agreed.get("windowsize", 1))
            link.sendto(b"\0\4\0\0", peer)
            continue
        number += 1
        if number % 50 == 0:
            continue  # lost
        if block == expected & 0xFFFF:
            got += data[4:]
            expected, in_window = expected + 1, in_window + 1
            is_last = len(data) - 4 < block_bytes
            if is_last or in_window == window:
                link.sendto(struct.pack("!HH", 4, block), peer)
                in_window = 0
            if is_last:
                return {"sha256": hashlib.sha256(got).hexdigest(), "size": len(got), "agreed": agreed, "said": said}
        else:
            link.sendto(struct.pack("!HH", 4, (expected - 1) & 0xFFFF), peer)
            in_window = 0


def fetch(url: str) -> dict[str, Any]:
    """Fetch by HTTP."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/{path}")
    answer = connection.getresponse()
    data = answer.read()
    sha256, text = hashlib.sha256(data).hexdigest(), data[:8_192].decode(errors="replace")
    return {"status": answer.status, "sha256": sha256, "text": text}


def router(enough: int = 9) -> list[dict[str, Any]]:
    """Look for an IPv6 router, as iPXE does."""
    link = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, INTERFACE.encode())
    link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
    target = (solicit.ALL_ROUTERS, 0, 0, socket.if_nametoindex(INTERFACE))
    found: list[dict[str, Any]] = []
    end_s = time.monotonic() + (ANSWER_S if enough > 1 else ADDRESS_S)
    link.settimeout(ASK_EVERY_S)
    while len(found) < enough and time.monotonic() < end_s:
        with suppress(OSError):  # an interface that has just come up has no address of its own yet
            link.sendto(bytes.fromhex("8500000000000000"), target)
        try:
            data, more, _, sender = link.recvmsg(2_048, 64)
        except TimeoutError:
            continue
        if data[0] == solicit.ADVERTISEMENT:
            found.append({"from": sender[0], "hops": more[0][2][0], "data": data.hex()})
    return found


def every(server: str) -> dict[str, Any]:
    """Boot as each kind of client, as far as the script, one after the other."""
    found: dict[str, Any] = {"router": router(enough=1)}
    for number, kind in enumerate((*Client.ARCHES, "plain")):
        replies = boot(kind, f"52:54:00:00:00:{number:02x}", enough=1)
        file = replies[-1]["file"]
        loads = fetch(file) if file.startswith("http") else tftp(server, file, "tsize", "0") if file else {}
        found[kind] = {"replies": replies, "loads": loads}
    found["script"] = fetch(f"http://{server}:7425/boot.ipxe?mac=52-54-00-00-00-04")
    return found


def serve(address: str) -> None:
    """Be the DHCP server that was there before."""
    link = _listen(dhcp.SERVER_PORT)
    print("ready", flush=True)
    while True:
        packet = dhcp.parse(link.recv(4_096))
        said = {dhcp.DISCOVER: dhcp.OFFER, dhcp.ASK: dhcp.ACK}.get(packet.kind)
        if packet.op == dhcp.REQUEST and said and packet.address(dhcp.SERVER) in ("", address):
            own = bytes(map(int, address.split(".")))
            options = {
                dhcp.KIND: bytes((said,)),
                dhcp.SERVER: own,
                dhcp.LEASE: b"\0\0\1\0",
                dhcp.MASK: b"\xff\xff\xff\0",
            }
            reply = Packet(op=dhcp.REPLY, mac=packet.mac, xid=packet.xid, yiaddr=OTHERS, options=options)
            link.sendto(dhcp.encode(reply), ("255.255.255.255", dhcp.CLIENT_PORT))


def noise(server: str) -> int:
    """Send what nobody should."""
    random, link = Random(1), _listen(0)
    good = [*samples(), b"\0\1undionly.kpxe\0octet\0", b"GET / HTTP/1.1\r\n\r\n"]
    for number in range(600):
        data = bytearray(random.choice(good))
        for _ in range(random.randrange(1, 20)):
            data[random.randrange(len(data))] = random.randrange(256)
        del data[random.choice((len(data), random.randrange(len(data)))) :]
        link.sendto(bytes(data), (server, (67, 69, 4011)[number % 3]))
    return 600


def main() -> None:
    """Do one thing."""
    what, *words = sys.argv[1:]
    if what == "serve":
        serve(*words)
    deeds: dict[str, Callable[..., Any]] = {
        "dhcp": boot,
        "tftp": tftp,
        "http": fetch,
        "router": router,
        "all": every,
        "noise": noise,
    }
    print(json.dumps(deeds[what](*words)))


if __name__ == "__main__":
    main()
