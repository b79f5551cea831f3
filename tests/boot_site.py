"""A head's records and images as far as the server of boots asks for them, in memory; and a small HTTP client."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from pathlib import Path

from beo.boot.book import Image, Machine
from beo.boot.images import Manifest
from beo.boot.request import Request, Response
from beo.errors import BeoError, Conflict, NotFound


class Book:
    """Records of machines, with an address for each. trouble: what the heads say instead, for a while."""

    def __init__(self, prefix: str = "10.77.0.") -> None:
        self.machines: dict[str, Machine] = {}
        self.opened: list[str] = []
        self.prefix = prefix
        self.trouble: BeoError | None = None
        self.lock = threading.Lock()

    def lease(self, mac: str, hostname: str = "") -> Machine:
        """Put it on record."""
        with self.lock:
            if self.trouble:
                raise self.trouble
            number = len(self.machines)
            made = Machine(mac, f"pc{number + 1:02d}", f"{self.prefix}{100 + number}")
            return self.machines.setdefault(mac, made)

    def open(self, mac: str, address: str) -> Machine:
        """It fetches its script."""
        if mac not in self.machines:
            raise NotFound(f"no machine {mac}")
        self.opened.append(mac)
        return self.machines[mac]


class Desk:
    """Answers POST /echo with what was posted, and is slow for /slow."""

    def handle(self, request: Request) -> Response | None:
        """Answer."""
        if request.path == "/slow":
            time.sleep(0.5)
        if request.path == "/refuse":
            raise Conflict("not now")
        if request.path in ("/echo", "/slow"):
            return Response(200, request.body + request.peer.encode())
        return None


def fill(folder: Path, size: int = 3_000_000) -> Image:
    """Make the files of an image in a cluster's folder; return it."""
    import msgspec

    images = folder / "images"
    images.mkdir(parents=True)
    names = {}
    for number, (kind, suffix) in enumerate((("image", "sqfs"), ("kernel", "kernel"), ("initrd", "initrd"))):
        data = bytes((number + at) % 251 for at in range(1_000)) * (size // 1_000 if kind == "image" else 200)
        names[kind] = hashlib.sha256(data).hexdigest()
        (images / f"{names[kind]}.{suffix}").write_bytes(data)
    size_bytes = size // 1_000 * 1_000
    hashes = names["image"], size_bytes, names["kernel"], names["initrd"], 200_000, 200_000
    words = "console=ttyS0,115200"
    made = Manifest(*hashes, "trixie", "vm", "6.12", "3.13", "0.1.0", "2026-11-26T20:15:00Z", {}, {}, words)
    (images / f"{made.sha256}.json").write_bytes(msgspec.json.encode(made))
    (images / "current.json").symlink_to(f"{made.sha256}.json")
    return Image(made.sha256, size_bytes, made.kernel, made.initrd, words)


def ask(address: str, text: str, timeout_s: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """Send a request as it stands, and return (status, headers, body); status 0 where the connection just ends."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout_s) as link:
        link.sendall(text.encode())
        return read_answer(link, text.startswith("HEAD"))


def read_answer(link: socket.socket, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Read one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            part = link.recv(65_536)
        except ConnectionResetError:
            part = b""
        if not part:
            return 0, {}, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    wanted = 0 if is_head else int(headers.get("content-length", "0"))
    while len(body) < wanted and (part := link.recv(1 << 20)):
        body += part
    return int(first.split()[1]), headers, body


def get(address: str, path: str, *lines: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Ask for one thing."""
    return ask(
        address, f"{method} {path} HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in ("Host: x", *lines)) + "\r\n"
    )
