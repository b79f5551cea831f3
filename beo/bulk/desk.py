"""Where nodes ask for chunks, in the process that serves the tree: who serves whom, with tickets.

The process beside it that sends what the head itself has is started and kept running here, too.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
from collections.abc import Mapping

import msgspec

from beo.bulk import tickets
from beo.bulk.choice import Choice, Pick
from beo.bulk.serving import BACKLOG, listen_near
from beo.bulk.words import HEAD, ID_MAX_CHARS, WANTS_MAX, Source, SourcesAre, Who
from beo.child import Child
from beo.config import Home
from beo.errors import reason

ARGV = ("-P", "-m", "beo.bulk.head")
FD = 3  # of the listening socket in the process that serves there

log = logging.getLogger("beo.tree")


class Chunk(msgspec.Struct, frozen=True):
    """A chunk in the tree. whole: this head has all of it."""

    ino: int
    size: int
    whole: bool


class Desk:
    """For one thread. It begins to serve when somebody first asks."""

    def __init__(self, where: Home, secret: str, beside: str, plain: bool = True) -> None:
        """Nothing is started yet.

        beside: the tree's address, behind whose port chunks are served, or at another where that isn't free. plain:
        whether they may go over the wire as they are.
        """
        self._beside, self._plain = beside, plain
        self._master = tickets.master_key(secret)
        self._listener: socket.socket | None = None
        self._child = Child("the process that serves chunks", where, (*ARGV, str(FD)), log, self._spawn)
        self._choice = Choice(random.randrange, plain)
        self._failed = False

    def lead(self) -> None:
        """A new head leads: what it knows of the nodes begins anew."""
        self._choice = Choice(random.randrange, self._plain)

    def answer(self, who: Who, chunks: Mapping[bytes, Chunk], now_s: float, time_s: float) -> SourcesAre:
        """Answer a node. chunks: of what it wants, all that are in the tree; time_s: the head's clock."""
        if len(who.id) > ID_MAX_CHARS:
            return SourcesAre(wait_s=1.0)
        self.keep(now_s, wanted=True)
        picked = self._choice.handle(who, {name: chunk.whole for name, chunk in chunks.items()}, now_s)
        expires_s = int(time_s) + tickets.TICKET_S
        return SourcesAre(
            tuple(self._source(pick, chunks[pick.name], expires_s) for pick in picked.picks),
            picked.wait_s,
            tickets.server_key(self._master, who.id),
            time_s,
            picked.again,
            tuple(name for name in who.wants[:WANTS_MAX] if name not in chunks),
            picked.suspect,
        )

    def _source(self, pick: Pick, chunk: Chunk, expires_s: int) -> Source:
        is_head = pick.server == HEAD
        address = self._address if is_head else pick.address
        if not address:
            return Source(pick.name, pick.server, "", chunk.ino, chunk.size)
        shown = tickets.ticket(tickets.server_key(self._master, pick.server), pick.name, chunk.ino, expires_s)
        return Source(pick.name, pick.server, address, chunk.ino, chunk.size, expires_s, shown)

    @property
    def _address(self) -> str:
        return "{}:{}".format(*self._listener.getsockname()[:2]) if self._listener and self._plain else ""

    def keep(self, now_s: float, wanted: bool = False) -> None:
        """Keep the process running that serves, where it was ever wanted."""
        if not self._plain or self._failed or not (wanted or self._listener):
            return
        if self._listener is None:
            host, _, port = self._beside.rpartition(":")
            try:
                self._listener = listen_near(host, int(port) + 1)
                self._listener.listen(BACKLOG)
            except OSError as error:
                self._failed = True  # nodes read by their sessions
                log.warning("chunks can't be served at %s: %s", host, reason(error))
                return
        self._child.keep(now_s)

    def _spawn(self, argv: tuple[str, ...], env: dict[str, str]) -> int:
        assert self._listener
        actions = [(os.POSIX_SPAWN_DUP2, self._listener.fileno(), FD)]
        stop = [signal.SIGTERM, signal.SIGINT]
        return os.posix_spawn(argv[0], argv, env, file_actions=actions, setsigmask=[], setsigdef=stop)

    def close(self) -> None:
        """End that process."""
        self._child.close()
        if self._listener:
            self._listener.close()
