"""What machines that boot fetch over HTTP, and who is asked for it.

GET  /boot.ipxe            a script that asks again and says which machine it is
GET  /boot.ipxe?mac=MAC    that machine's script
GET  /kernel/SHA           when it is one's turn; and /initrd/SHA
GET  /firmware/NAME
GET  /image/SHA.sqfs       by the head itself, or 302 to a machine that has it, or 503 until there is one;
                           ?direct=1: by the head alone, for whoever got something else elsewhere
POST /have/SHA?port=PORT   a machine says that it serves that image
else                       what desk.py knows
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from beo.boot import script
from beo.boot.answers import FIRMWARE_PATH, SCRIPT_PATH
from beo.boot.book import Book, Machine, Shelf
from beo.boot.clerk import Clerk
from beo.boot.request import Request, Response
from beo.boot.storm import TURN_S, TURNS, Here, Later, Storm, There
from beo.boot.web import Exchange
from beo.errors import BeoError, NotFound
from beo.proof import HEX, mac_of

RETRY_S = 2  # for who finds the heads too busy to answer
SCRIPT_KIND = "text/plain; charset=us-ascii"
SHA256_LENGTH = 64

log = logging.getLogger("beo.boot")


class Desk(Protocol):
    """Answers what is asked besides: joins, consoles, boot.sh."""

    def handle(self, request: Request) -> Response | None:
        """Return the answer; None: nothing is known by that path. May take seconds."""
        ...


class Pages:
    """The routes."""

    def __init__(
        self,
        asking: tuple[Clerk, Clerk],
        book: Book,
        shelf: Shelf,
        desk: Desk,
        storm: Storm,
        firmware: Mapping[str, str],
        http: str,
        write: Callable[[Machine], str],
    ) -> None:
        """asking: of whom boots ask, and everybody else. http: this server's host:port. write: a machine's script."""
        self._boots, self._others = asking
        self._book, self._shelf, self._desk, self._storm = book, shelf, desk, storm
        self._firmware, self._http, self._write = firmware, http, write
        self._waiting: deque[tuple[Exchange, Response]] = deque()
        self._turns = 0
        self.sent = 0  # images, by this head
        self.referred = 0  # machines that were sent to another one for it

    def route(self, ask: Exchange) -> None:
        """Answer, now or later."""
        assert ask.head
        path, method = ask.head.path, ask.head.method
        first, _, rest = path.lstrip("/").partition("/")
        reads = method in ("GET", "HEAD")
        try:
            if reads and path == SCRIPT_PATH:
                self._script(ask)
            elif reads and first in ("kernel", "initrd"):
                self._in_turn(ask, self._file(first, rest))
            elif reads and path.startswith(f"{FIRMWARE_PATH}/"):
                ask.answer(self._ipxe(rest))
            elif reads and first == "image" and rest.endswith(".sqfs"):
                self._image(ask, rest.removesuffix(".sqfs"))
            elif method == "POST" and first == "have":
                self._have(ask, rest)
            else:
                self._ask_desk(ask)
        except BeoError as error:
            ask.answer(Response(404 if isinstance(error, NotFound) else 400, f"beo: {error}\n".encode()))

    def _ipxe(self, name: str) -> Response:
        if name not in self._firmware:
            raise NotFound(f"no firmware {name[:80]!r}", "", "apt-get install ipxe")
        return Response(200, kind="application/efi", file=self._firmware[name])

    def _file(self, kind: str, sha256: str) -> Response:
        return Response(200, kind="application/octet-stream", file=self._shelf.path(kind, sha256))

    def _in_turn(self, ask: Exchange, response: Response) -> None:
        """Send a few at a time, in the order in which they came: firmware waits, and 200 at once would all be late."""
        assert ask.head
        if ask.head.method == "HEAD":
            ask.answer(response)
            return
        log.info("%s asks for %s", ask.peer[0], ask.head.path)
        ask.due_s = time.monotonic() + TURN_S
        self._waiting.append((ask, response))
        self._next_turns()

    def _next_turns(self) -> None:
        while self._waiting and self._turns < TURNS:
            ask, response = self._waiting.popleft()
            if not ask.closed:
                self._turns += 1
                ask.answer(response, ended=self._turn_over)

    def _turn_over(self) -> None:
        self._turns -= 1
        self._next_turns()

    def _script(self, ask: Exchange) -> None:
        assert ask.head
        said = ask.head.query.get("mac", "")
        if not said:
            ask.answer(Response(200, script.entry(self._http).encode(), SCRIPT_KIND))
            return
        mac = mac_of(said)
        self._storm.gone(ask.peer[0])

        def find() -> str:
            self._book.lease(mac)
            return self._write(self._book.open(mac, ask.peer[0]))

        def told(found: str | BeoError) -> None:
            if isinstance(found, BeoError):
                log.warning("%s can't boot: %s", mac, found)
                found = script.wait(str(found))
            else:
                log.info("%s has its script", mac)
            ask.answer(Response(200, found.encode(), SCRIPT_KIND))

        self._boots.ask(find, told)

    def _image(self, ask: Exchange, sha256: str) -> None:
        assert ask.head
        response = self._file("image", sha256)
        if ask.head.method == "HEAD":
            ask.answer(response)
            return
        host, direct = ask.peer[0], ask.head.query.get("direct") == "1"
        match self._storm.choose(host, sha256, time.monotonic(), direct):
            case Here():
                ask.answer(response, ended=self._storm.over)
                self.sent += 1
                log.info("%s is sent the image %s", host, sha256[:12])
            case There(address):
                self.referred += 1
                log.info("%s is to get the image %s from %s", host, sha256[:12], address)
                location = f"http://{address}/image/{sha256}.sqfs"
                ask.answer(Response(302), {"Location": location})
            case Later(wait_s):
                ask.answer(Response(503), {"Retry-After": str(wait_s)})

    def _have(self, ask: Exchange, sha256: str) -> None:
        assert ask.head
        port = ask.head.query.get("port", "")
        if len(sha256) != SHA256_LENGTH or not HEX.issuperset(sha256):
            raise NotFound(f"{sha256[:80]!r} is no image", "", "name it by its SHA-256")
        self._shelf.path("image", sha256)
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 1 << 16):
            raise NotFound(f"{port[:20]!r} is no port", "", "say ?port=PORT")
        host = ask.peer[0]  # and nobody else: who asks can't send others elsewhere
        self._storm.have(host, f"{host}:{int(port)}", sha256, time.monotonic())
        log.info("%s gives the image %s to others, by port %s", host, sha256[:12], port)
        ask.answer(Response(204))

    def _ask_desk(self, ask: Exchange) -> None:
        head = ask.head
        assert head
        host, port = ask.peer
        request = Request(head.method, head.path, f"{host}:{port}", head.headers.get("host", ""), ask.body)

        def told(found: Response | BeoError | None) -> None:
            if isinstance(found, BeoError):
                ask.answer(Response(503, f"beo: {found}\n".encode()), {"Retry-After": str(RETRY_S)})
            else:
                ask.answer(found or Response(404, b"beo: there is nothing here\n"))

        self._others.ask(lambda: self._desk.handle(request), told)
