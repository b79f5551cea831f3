"""Slow machines that fetch a file, all from one host: ``python -m tests.net.downloader URL NUMBER``.

It says "busy" once each of them is being sent it. A line on stdin ends one of them. So a head's slots are taken as by
PCs with a bad cable: slow, but too fast to be taken for dead.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time

PIECE_BYTES, EVERY_S = 60_000, 0.5  # of each connection
HEAD_MAX_BYTES = 4096


def main(url: str, number: str) -> None:
    """Fetch until stdin ends."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    links = []
    for _ in range(int(number)):
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE_BYTES)
        link.connect((name, int(port)))
        link.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        status = link.recv(HEAD_MAX_BYTES).split(b"\r\n")[0]
        assert status == b"HTTP/1.1 200 OK", status
        links.append(link)
    print("busy", flush=True)
    while True:
        if select.select([0], [], [], 0)[0]:
            if not os.read(0, 1):
                return
            links.pop().close()
        for link in links:
            if not link.recv(PIECE_BYTES):
                sys.exit("it has come to its end")
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
