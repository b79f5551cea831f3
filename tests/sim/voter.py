"""Voters: a worker's acceptor lives in its agent's memory, a witness's on a disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beo.ha.register import RHO, Acceptor
from beo.votes import Accept, Accepted, Ballot, Cfg, HeadQuestion, Lease, Prepare, Present
from tests.sim.clock import BootTime

if TYPE_CHECKING:
    from tests.sim.head import HeadHost
    from tests.sim.world import Simulation

PRESENT_S = 0.4
WITNESS_START_S = 0.5


def answer(acceptor: Acceptor, message: HeadQuestion, now_s: float) -> Ballot:
    """What an acceptor answers a head."""
    match message:
        case Prepare():
            return acceptor.prepare(message, now_s)
        case Accept():
            return acceptor.accept(message)
        case Lease():
            return acceptor.lease(message, now_s)


class Witness:
    """A third machine with a file. It answers when its file is durable, and its name stays the same."""

    NAME = "w1"
    VOTER = "witness:w1/1"

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.time = BootTime(sim.clock, sim.rate())
        self.file: tuple[int, Cfg | None] = (0, None)
        self.acceptor: Acceptor | None = None
        self.lives = 0
        self.start()

    @property
    def peer(self) -> bytes:
        """Its connection to a head."""
        return f"{self.NAME} {self.lives}".encode()

    def start(self) -> None:
        """Start; it has forgotten whom it gave a lease."""
        if self.acceptor:
            return
        self.lives += 1
        self.acceptor = Acceptor(self.VOTER, *self.file)
        self.acceptor.hold("whoever had one", self.time.s + self.sim.lease_s * (1 + RHO))
        self._beat(self.lives)

    def stop(self) -> None:
        """Die; what wasn't written is lost."""
        self.acceptor = None

    def _beat(self, life: int) -> None:
        if self.acceptor and life == self.lives:
            for head in self.sim.heads.values():
                self._say(head, Present(self.VOTER, ""))
            self.sim.clock.after(PRESENT_S, lambda: self._beat(life))

    def _say(self, head: HeadHost, message: Present | Ballot) -> None:
        peer = self.peer
        self.sim.net.send(self.NAME, head.name, lambda: head.asked(peer, "witness", message))

    def hear(self, head: HeadHost, message: HeadQuestion) -> None:
        """Answer a head, when what it promises is durable."""
        if not self.acceptor:
            return
        before = self.acceptor.durable
        ballot = answer(self.acceptor, message, self.time.s)
        durable, life = self.acceptor.durable, self.lives

        def written() -> None:
            if self.acceptor and life == self.lives:
                self.file = max(self.file, durable, key=lambda kept: (kept[0], kept[1].order if kept[1] else (0, 0)))
                if isinstance(ballot, Accepted) and isinstance(message, Accept):
                    self.sim.truth.accepted(message.cfg, self.VOTER)
                self._say(head, ballot)

        self.sim.clock.after(self.sim.random.uniform(0.0005, 0.005) if durable != before else 0.0, written)
