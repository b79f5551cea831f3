"""Asks a head, from its own host, again and again who it is; what only a primary answers is written down.

    python -m tests.net.prober ADDRESS LOG

It is on the same host, so that nothing on the network keeps a head that thinks itself the primary from saying so.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from beo import config, wire
from beo import messages as m
from beo.errors import BeoError
from tests.history import now_ns
from tests.sim.check import Acted

PACE_S = 0.02
ANSWER_S = 5.0


def read(path: Path) -> list[Acted]:
    """What was written down so far."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=Acted) for line in lines]


def probe(address: str, log: Path) -> None:
    """Go on until the host goes off."""
    home = config.home()
    connection = wire.Connection(address, home.cluster().key, home.secret("admin"), wire.new_context())
    number = 0
    with log.open("ab", buffering=0) as file:
        while True:
            time.sleep(PACE_S)
            number += 1
            from_ns = now_ns()
            if not connection.send(number, m.encode(m.Info()), ANSWER_S):
                continue
            while received := connection.receive(ANSWER_S):
                if received[0] == number:
                    try:
                        answer = m.to_client.decode(received[1])
                    except (msgspec.DecodeError, BeoError):
                        break
                    if isinstance(answer, m.InfoIs):
                        file.write(msgspec.json.encode(Acted(answer.head, answer.epoch, from_ns, now_ns())) + b"\n")
                    break


if __name__ == "__main__":
    probe(sys.argv[1], Path(sys.argv[2]))
