"""A worker that has booted gives its image to others that boot now. ``python -m beo.boot.peer SHA256 FILE HOST:PORT…``

It says to the head that it has the image, again and again, since a new head knows nothing of it; the head sends others
here while it is busy itself. They compare what they get with the hash on their kernel's command line, so they need not
trust this machine. It ends with whoever has started it.
"""

from __future__ import annotations

import http.client
import os
import random
import selectors
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from beo.boot import ether
from beo.boot.request import Response
from beo.boot.storm import PEER_SLOTS
from beo.boot.web import Exchange, Web
from beo.errors import BeoError, UsageError

SAY_EVERY_S = 240.0  # well within the time after which the head takes it for gone
SAY_AGAIN_S = 5.0  # where no head has heard it
WAIT_S = 3.0
TICK_S = 0.5
SLOTS = 2 * PEER_SLOTS  # the head may think that one has ended that hasn't


class Peer:
    """Serves one file by one path."""

    def __init__(self, sha256: str, path: str, host: str = "0.0.0.0", port: int = 0) -> None:
        """Listen; raises BeoError. port 0: a free one."""
        if not os.path.isfile(path):
            raise UsageError(f"no file {path}", "", "name the image that this machine has booted from")
        self._sha256, self._path, self._busy = sha256, path, 0
        self._selector = selectors.DefaultSelector()
        listener = ether.listener("", host, port)
        self.port: int = listener.getsockname()[1]
        self._web = Web(self._selector, [listener], self._route)

    def turn(self, timeout_s: float) -> None:
        """Serve for a moment."""
        self._web.tick(time.monotonic())
        for key, mask in self._selector.select(timeout_s):
            key.data(mask)

    def close(self) -> None:
        """Listen no more."""
        self._web.close()
        self._selector.close()

    def _route(self, ask: Exchange) -> None:
        assert ask.head
        if ask.head.path != f"/image/{self._sha256}.sqfs" or ask.head.method == "POST":
            ask.answer(Response(404, b"beo: this machine gives its image alone\n"))
        elif self._busy >= SLOTS:
            ask.answer(Response(503), {"Retry-After": "1"})
        else:
            self._busy += 1
            ask.answer(Response(200, kind="application/octet-stream", file=self._path), ended=self._over)

    def _over(self) -> None:
        self._busy -= 1


def tell(boots: Sequence[str], sha256: str, port: int) -> bool:
    """Say to the head that acts that this machine has the image; whether one has heard it."""
    for address in boots:
        host, _, to = address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(to), timeout=WAIT_S)
        with suppress(OSError, http.client.HTTPException):
            connection.request("POST", f"/have/{sha256}?port={port}", b"")
            if connection.getresponse().status < http.client.BAD_REQUEST:
                return True
        connection.close()
    return False


def _keep_telling(boots: Sequence[str], sha256: str, port: int) -> None:
    while True:
        heard = tell(boots, sha256, port)
        time.sleep(random.uniform(0.5, 1.0) * (SAY_EVERY_S if heard else SAY_AGAIN_S))


def main(argv: Sequence[str]) -> int:
    """Serve until whoever has started this ends."""
    parent = os.getppid()
    try:
        if len(argv) < 3:
            raise UsageError("what is to be given?", "", "python -m beo.boot.peer SHA256 FILE HOST:PORT...")
        sha256, path, *boots = argv
        peer = Peer(sha256, path)
    except BeoError as error:
        print(f"beo: {error}", file=sys.stderr)
        return error.exit_code
    threading.Thread(target=_keep_telling, args=(boots, sha256, peer.port), daemon=True).start()
    while os.getppid() == parent:
        peer.turn(TICK_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
