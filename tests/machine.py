"""A machine without a disk that QEMU emulates, and the server from which it fetches its image.

    with Server(folder) as server, Machine(store, manifest, server, tmp_path) as machine:
        machine.wait_for("beo: root after", 60)

Its network is QEMU's own, in which 10.0.2.2 is this machine's loopback: nothing of this machine's is touched.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from beo.boot.images import Manifest, Store

HOST = "10.0.2.2"
MAC = "52:54:00:12:34:56"
PIN = "0" * 64
CRAWL_S = 0.2  # between two bytes of who crawls


class Server:
    """Serves images like a head's server of boots, and keeps what consoles say. It can cut, redirect and spoil."""

    def __init__(self, store: Store) -> None:
        """Take the images."""
        self.store = store
        self.cut_after: list[int] = []  # bytes of each of the next answers
        self.spoil = 0  # so many answers have a wrong byte
        self.redirect = ""  # host:port where the image is, for whoever doesn't want it from here alone
        self.crawl_after = 0  # bytes of each answer, after which a byte comes now and then
        self.excess = 0  # bytes that come after the image
        self.asked: list[str] = []  # the range of each request, or ""
        self.consoles: dict[str, bytes] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                name = path.rpartition("/")[2]
                server.asked.append(self.headers.get("Range", ""))
                if server.redirect and query != "direct=1":
                    self.send_response(302)
                    self.send_header("Location", f"http://{server.redirect}{self.path}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                try:
                    data = (server.store.folder / name).read_bytes()
                except OSError:
                    self.send_error(404)
                    return
                start = int(re.sub(r"\D", "", server.asked[-1].partition("-")[0]) or 0)
                if server.spoil:
                    server.spoil -= 1
                    data = data[:-1] + bytes([data[-1] ^ 1])
                whole = len(data)
                data = data[start:] + bytes(server.excess)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(data)))
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
                self.end_headers()
                limit = server.cut_after.pop(0) if server.cut_after else len(data)
                if server.crawl_after:
                    limit = server.crawl_after
                with suppress(ConnectionError):
                    self.wfile.write(data[:limit])
                    while server.crawl_after and limit < len(data):
                        time.sleep(CRAWL_S)
                        self.wfile.write(data[limit : limit + 1])
                        limit += 1
                if limit < len(data):
                    self.close_connection = True

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                mac = self.path.rpartition("/")[2]
                server.consoles[mac] = server.consoles.get(mac, b"") + body
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """Where it listens, on loopback."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Server:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Machine:
    """One boot of a machine, whose kernel is loaded by QEMU."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        servers: tuple[Server, ...],
        folder: Path,
        memory_mb: int = 1024,
        words: dict[str, str] | None = None,
        more: str = "",
        card: str = "virtio-net-pci",
    ) -> None:
        """Take what it boots. words: other words of beo's on its command line; more: of anybody's. card: as QEMU
        names it.
        """
        boots = ",".join(f"{HOST}:{server.port}" for server in servers)
        said = {
            "heads": f"{HOST}:7420",
            "boot": boots,
            "pin": PIN,
            "image": manifest.sha256,
            "size": str(manifest.size_bytes),
            "mac": MAC,
            "ip": "10.0.2.15/24",
            "gateway": HOST,
            "name": "pc01",
        } | (words or {})
        line = " ".join(f"beo.{name}={value}" for name, value in said.items())
        self.log = folder / "console.log"
        self._argv = [
            "qemu-system-x86_64",
            *("-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", str(memory_mb), "-nodefaults", "-no-reboot"),
            *("-display", "none", "-serial", f"file:{self.log}"),
            *("-netdev", "user,id=n", "-device", f"{card},netdev=n,mac={MAC},romfile="),
            *("-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r"),
            *("-kernel", str(store.path("kernel", manifest.kernel))),
            *("-initrd", str(store.path("initrd", manifest.initrd))),
            *("-append", f"{line} console=ttyS0 quiet {more}"),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        """Turn it on."""
        self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Turn it off."""
        if self._process:
            self._process.kill()
            self._process.wait()

    @property
    def console(self) -> str:
        """What it has said."""
        try:
            return self.log.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(self, pattern: str, limit_s: float) -> re.Match[str]:
        """Wait until its console has said something; fails with the console where it doesn't."""
        end_s = time.monotonic() + limit_s
        while True:
            console = self.console
            if found := re.search(pattern, console):
                return found
            assert self._process and self._process.poll() is None, f"the machine is off:\n{console[-4000:]}"
            assert time.monotonic() < end_s, f"{pattern!r} wasn't said in {limit_s:.0f} s:\n{console[-4000:]}"
            time.sleep(0.1)
