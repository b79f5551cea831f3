"""An agent's connections to the heads, one each, and its voice among the voters of a pair of heads.

Whatever a head asks a voter is answered at once, by the connection where it came: a primary's lease depends on it. The
vote is in memory alone, under a name that is new with each process: an agent that has forgotten is another voter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from beo import messages as ms
from beo import version, votes, wire
from beo.config import is_address
from beo.errors import BeoError
from beo.ha.register import Acceptor

HEADS_MAX = 8  # that an agent is connected to: a cluster has two, and what a faulty one tells is bounded

log = logging.getLogger("beo.agent")


class Heads:
    """All connections to heads, by their addresses; new ones are added while the agent runs."""

    def __init__(
        self,
        addresses: Iterable[str],
        connect: Callable[[str], wire.Connection],
        poller: wire.Poller,
        voter: votes.Present,
        acceptor: Acceptor | None = None,
        keep: Callable[[votes.HeadQuestion], None] = lambda _: None,
    ) -> None:
        """connect(address) makes a connection. voter: who votes here, as every head is told.

        A witness, whose vote outlives its process, gives its acceptor, and what makes it durable before an answer.
        """
        self._connect = connect
        self._poller = poller
        self._present = ms.encode(voter)
        self._acceptor = acceptor or Acceptor(voter.voter)
        self._keep = keep
        self._connections: dict[str, wire.Connection] = {}
        self._strangers: set[bytes] = set()  # greetings of other protocols, each told once
        self.learn(addresses)

    def __iter__(self) -> Iterator[str]:
        """Yield the heads' addresses."""
        return iter(self._connections)

    def learn(self, addresses: Iterable[str]) -> None:
        """Connect to heads that are new; what is known stays, be it that a head was replaced meanwhile."""
        for address in addresses:
            if address in self._connections or not is_address(address) or len(self._connections) >= HEADS_MAX:
                continue
            try:
                connection = self._connect(address)
            except BeoError as error:
                log.error("%s", error)
                continue
            connection.register(self._poller)
            self._connections[address] = connection

    def send(self, message: ms.ToHead, head: str = "") -> None:
        """Send to one head, or to all; who isn't there misses it."""
        body = ms.encode(message)
        for address, connection in self._connections.items():
            if head in ("", address):
                connection.send(0, body)

    def show(self) -> None:
        """Give every head a sign of life of this voter, whatever the head's role."""
        for connection in self._connections.values():
            connection.send(0, self._present)

    def renewed(self) -> bool:
        """Whether some connection was made anew, so that the head there has heard nothing of us yet."""
        return any(connection.renewed for connection in self._connections.values())

    def receive(self) -> Iterator[tuple[str, ms.ToAgent]]:
        """Yield (head, message). The voter's questions are answered here; an Accept or Lease is yielded if granted."""
        for head, connection in list(self._connections.items()):
            while received := connection.receive():
                if not received[1]:
                    self._meet_stranger(connection.stranger)
                    continue
                try:
                    message = ms.to_agent.decode(received[1])
                except msgspec.MsgspecError as error:
                    log.warning("the head says what this agent can't read: %s", error)
                    continue
                if isinstance(message, votes.Prepare | votes.Accept | votes.Lease):
                    answer = self._vote(message)
                    self._keep(message)
                    connection.send(0, ms.encode(answer))
                    if not isinstance(answer, votes.Accepted | votes.Granted):
                        continue
                yield head, message

    def _vote(self, message: votes.HeadQuestion) -> votes.Ballot:
        now_s = time.clock_gettime(time.CLOCK_BOOTTIME)  # anew for each: a lease may not end before its holder's count
        match message:
            case votes.Prepare():
                return self._acceptor.prepare(message, now_s)
            case votes.Accept():
                return self._acceptor.accept(message)
            case votes.Lease():
                return self._acceptor.lease(message, now_s)

    def _meet_stranger(self, greeting: bytes) -> None:
        if greeting not in self._strangers:
            self._strangers.add(greeting)
            log.error("%s", version.mismatch("the head", greeting))

    def close(self) -> None:
        """Close all of them."""
        for connection in self._connections.values():
            connection.close()
