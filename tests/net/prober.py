"""Asks heads who they are.

    python -m tests.net.prober ADDRESS LOG

From its own host, again and again; what only a primary answers is written down. It is on the same host, so that nothing
on the network keeps a head that thinks itself the primary from saying so.

    python -m tests.net.prober --pair ADDRESS ...

Once, each of them: what they know of the pair, as JSON, null for one that is silent.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from beo import config, wire
from beo import messages as m
from tests.history import now_ns
from tests.sim.check import Acted

PACE_S = 0.02
ANSWER_S = 5.0
PAIR_S = 0.5


def read(path: Path) -> list[Acted]:
    """What was written down so far."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=Acted) for line in lines]


class Asking:
    """A connection to one head, for one question at a time."""

    def __init__(self, address: str) -> None:
        """Connect, by the admin's key of this host."""
        home = config.home()
        self._connection = wire.Connection(address, home.cluster().key, home.secret("admin"), wire.new_context())
        self._number = 0

    def ask(self, message: object, timeout_s: float) -> object | None:
        """What it answers; None where it doesn't."""
        self._number += 1
        if self._connection.send(self._number, m.encode(message), timeout_s):
            while received := self._connection.receive(timeout_s):
                if received[0] == self._number:
                    answer: object = m.to_client.decode(received[1])
                    return answer
        return None


def probe(address: str, log: Path) -> None:
    """Go on until the host goes off."""
    head = Asking(address)
    with log.open("ab", buffering=0) as file:
        while True:
            time.sleep(PACE_S)
            from_ns = now_ns()
            answer = head.ask(m.Info(), ANSWER_S)
            if isinstance(answer, m.InfoIs):
                file.write(msgspec.json.encode(Acted(answer.head, answer.epoch, from_ns, now_ns())) + b"\n")


def pairs(addresses: list[str]) -> list[m.PairIs | None]:
    """What each of these heads says of the pair."""
    answers = [Asking(address).ask(m.AskPair(), PAIR_S) for address in addresses]
    return [answer if isinstance(answer, m.PairIs) else None for answer in answers]


if __name__ == "__main__":
    match sys.argv[1:]:
        case "--pair", *heads:
            print(msgspec.json.encode(pairs(heads)).decode())
        case head, path:
            probe(head, Path(path))
