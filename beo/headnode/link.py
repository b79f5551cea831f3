"""The pair plane: what two heads say to each other, over one or more paths, on sockets of its own.

Everything goes over every path, so that a cut of one of them is not noticed; who hears something twice knows it
already. A head that isn't of this cluster, or writes entries which this beo can't read, is not listened to, and why is
told (`why`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence

import msgspec

from beo import votes, wire
from beo.votes import Hello, PairMessage

HELLO_S = 0.25  # between two introductions: before the first, nothing is heard

log = logging.getLogger("beo.pair")


class Link:
    """The sockets of one head's pair plane. For the control loop alone."""

    def __init__(self, addresses: Sequence[str], key: str, secret: str, hello: Callable[[], Hello]) -> None:
        """Listen on these addresses; key: the heads' public one; hello: how this head introduces itself now.

        Raises OSError where an address is taken.
        """
        self._hello = hello
        self._key = key
        self._secret = secret
        self._servers: list[wire.Server] = []
        self._context = wire.new_context()
        self._connections: dict[str, wire.Connection] = {}
        try:
            for address in addresses:
                self._servers.append(wire.Server(address, secret, lambda known: known == key))
        except OSError:
            self.close()
            raise
        self._hello_s = 0.0
        self.why = ""  # the other head is not listened to
        self._known = False  # it has introduced itself
        self.tree = ""  # where the other head's tree of files is served

    def register(self, poller: wire.Poller) -> None:
        """Add to a loop; call `receive` after each poll."""
        for server in self._servers:
            server.register(poller)

    def connect(self, addresses: Collection[str]) -> None:
        """Speak to the head that listens there from now on."""
        if self._connections.keys() == set(addresses):
            return
        for address in self._connections.keys() - set(addresses):
            self._connections.pop(address).close()
        for address in addresses:
            if address not in self._connections:
                self._connections[address] = wire.Connection(address, self._key, self._secret, self._context)
        self._known = False
        self._hello_s = 0.0

    def send(self, message: PairMessage) -> None:
        """Say something, with an introduction before it now and then. What can't be sent now is lost."""
        now_s = time.monotonic()
        bodies = [votes.encode(message)]
        if now_s - self._hello_s >= HELLO_S:
            self._hello_s = now_s
            bodies.insert(0, votes.encode(self._hello()))
        for connection in self._connections.values():
            for body in bodies:
                connection.send(0, body)

    def renew(self) -> None:
        """Introduce this head anew before the next thing that it says: it is another one than before."""
        self._hello_s = 0.0

    def greet(self) -> None:
        """Introduce this head, if that is due."""
        if self._connections and time.monotonic() - self._hello_s >= HELLO_S:
            self.send(self._hello())

    def receive(self) -> list[PairMessage]:
        """Return what the other head has said since the last call."""
        heard: list[PairMessage] = []
        for connection in self._connections.values():
            while connection.receive():
                pass  # nothing is answered on this side
        for server in self._servers:
            for _, _, _, body in server.receive():
                try:
                    message = votes.decode(body)
                except msgspec.MsgspecError as error:
                    self._shut(f"the other head says what this beo can't read ({str(error).lower()})")
                    continue
                if isinstance(message, Hello):
                    self._judge(message, self._hello())
                if self._known:
                    heard.append(message)
        return heard

    def _judge(self, theirs: Hello, ours: Hello) -> None:
        if theirs.head == ours.head:
            self._shut(f"another head calls itself {ours.head}, too: 'beo ha rejoin --wipe' on one of both")
        elif theirs.cluster != ours.cluster:
            self._shut(f"head {theirs.head} is of another cluster, {theirs.cluster[:8]}…: 'beo head join' there")
        elif theirs.role == "primary" and theirs.entry_format > ours.entry_format:
            # Only what the primary writes must be understood: a newer standby is listened to, and then upgraded to.
            why = f"head {theirs.head} writes entries of format {theirs.entry_format}, not {ours.entry_format}"
            self._shut(f"{why}: install beo {theirs.version} here")
        else:
            if self.why:
                log.info("head %s is listened to again", theirs.head)
            self.why, self._known = "", True
            self.tree = theirs.tree

    def _shut(self, why: str) -> None:
        if self.why != why:
            log.error("%s", why)
        self.why, self._known = why, False

    def close(self) -> None:
        """Close everything."""
        for server in self._servers:
            server.close()
        for connection in self._connections.values():
            connection.close()
        self._context.destroy(linger=0)
