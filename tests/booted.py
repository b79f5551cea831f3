"""Machines that have booted from a head, as far as a process can be one: they join over HTTP and become workers.

    with serving(cluster.home) as desk, machine(tmp_path / "m", desk, mac) as one:
        one.boot()

Each has a folder of its own, which a power cut wipes: it is in the machine's memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from beo import local
from beo.boot.desk import Desk
from beo.boot.request import BODY_MAX_BYTES, Request, Response
from beo.config import Home, home
from beo.worker import remains
from tests.cluster import ROOT, kill, wait_for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    desk: Desk

    def _answer(self) -> None:
        length = min(int(self.headers.get("Content-Length") or 0), BODY_MAX_BYTES + 1)
        body = self.rfile.read(length)
        host, port = self.client_address[:2]
        request = Request(self.command, self.path, f"{host}:{port}", self.headers.get("Host", ""), body)
        response = self.desk.handle(request) or Response(404)
        data = Path(response.file).read_bytes() if response.file else response.body
        self.send_response(response.status)
        self.send_header("Content-Type", response.kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = _answer

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(home: Home, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    """A server with a desk of this cluster; gives its host:port."""
    desk = Desk(home)
    server = ThreadingHTTPServer((host, port), type("Handler", (_Handler,), {"desk": desk}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        desk.close()


class Machine:
    """One machine. Its boots end by `cut`, as those of a machine whose plug is pulled."""

    def __init__(self, cluster: Home, folder: Path, desk: str, mac: str) -> None:
        """Take its hardware: nothing runs."""
        self._cluster = cluster
        self.folder = folder
        self.home = Home(folder)
        self.desk = desk
        self.mac = mac
        self.boot_id = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder.with_name(f"{folder.name}.console")

    def boot(self, *words: str, patience_s: float = 30.0) -> None:
        """Switch it on, and return at once."""
        self.boot_id = str(uuid.uuid4())
        known = self._cluster.cluster()
        argv = [sys.executable, "-P", "-m", "beo.boot.join", "--heads", ",".join(known.heads)]
        argv += [f"--pin={known.key}"]  # joined: a key may begin with a "-"
        argv += ["--boot", self.desk, "--mac", self.mac, "--boot-id", self.boot_id, "--slots", "2", *words]
        argv += ["--cmdline", "quiet", "--patience", str(patience_s)]
        env = {name: value for name, value in os.environ.items() if not name.startswith("BEO_")}
        env |= {"BEO_DIR": str(self.folder), "PYTHONPATH": str(ROOT)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/")

    @property
    def said(self) -> str:
        """What its console has said in this boot."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def hear(self, words: str) -> None:
        """Wait until its console says this."""
        wait_for(lambda: words in self.said, f"{words!r} on the console, which says {self.said[-2_000:]!r}")

    def end(self) -> int:
        """Wait until what boots has given up; return its exit code."""
        assert self._process
        return self._process.wait(60)

    def processes(self) -> list[int]:
        """All that runs on it."""
        mark = b"BEO_DIR=" + os.fsencode(self.folder) + b"\0"
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdigit():
                with suppress(OSError):
                    environ = Path(entry.path, "environ").read_bytes() + b"\0"
                    line = Path(entry.path, "cmdline").read_bytes()
                    if mark in environ or os.fsencode(f"{self.folder}/") in line:
                        found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]

    def cut(self) -> None:
        """Pull its plug: all that runs is gone at once, and its memory with it."""
        kill(self.processes())
        if self._process:
            self._process.wait()
        self._clear()

    def shut_down(self) -> None:
        """End its worker in good order, if it has one."""
        with suppress(Exception):
            local.down(self.home, lambda _: None)
        self.cut()

    def _clear(self) -> None:
        with suppress(Exception):
            remains.remove(self._cluster.cluster().cluster, [path.name for path in self.home.nodes.iterdir()])
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def machine(cluster: Home, folder: Path, desk: str, mac: str) -> Iterator[Machine]:
    """A machine that is off, and is so again at the end."""
    one = Machine(cluster, folder, desk, mac)
    try:
        yield one
    finally:
        one.shut_down()


if __name__ == "__main__":  # on another host: HOST PORT, with BEO_DIR naming the cluster
    with serving(home(), sys.argv[1], int(sys.argv[2])):
        print("serving", flush=True)
        signal.pause()
