"""A raw client of a head or of the bare loop, as a process of its own. ``python -m tests.bench.load HOME``.

It reads one order per line, and answers each with a line: see `Rate` and `Batch`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import msgspec

from beo import client, contact, wire
from beo import messages as m
from beo.config import Home
from beo.spec import JobSpec

ANSWER_MAX_S = 30.0
SLICE_S = 5.0  # of one long poll
OTHERS = (65_534,)  # nobody, on every Linux
READY = "ready"  # the first line of a client
# A small environment, and one as a login shell with modules and a virtual environment has: 60 variables, 4 kB.
ENVIRONMENTS = {
    "small": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
    "login": {"PATH": "/usr/local/bin:/usr/bin:/bin", **{f"VARIABLE_{n:02d}": "/opt/x" * 9 for n in range(60)}},
}


class Rate(msgspec.Struct, tag=True, frozen=True):
    """Submit from `start_s` (CLOCK_MONOTONIC) on for `seconds`, with `window` submissions under way."""

    start_s: float
    seconds: float
    window: int
    environment: str


class Batch(msgspec.Struct, tag=True, frozen=True):
    """Submit so many jobs, with `window` submissions under way, and wait for the end of all.

    owners: jobs are for this user and for `OTHERS` in turn, so many in all; for others only root can run any.
    """

    jobs: int
    window: int
    environment: str
    owners: int = 1


class Rated(msgspec.Struct, frozen=True):
    """How many were acknowledged in the time, and the median from sending to answer."""

    count: int
    p50_ms: float


class Batched(msgspec.Struct, frozen=True):
    """From the first submission to the last end, and to the last acknowledgement."""

    seconds: float
    acknowledged_s: float


class Client:
    """One connection, and submissions under way on it."""

    def __init__(self, home: Home) -> None:
        """Connect, and return once somebody has answered."""
        cluster = home.cluster()
        self._connection = wire.Connection(cluster.heads[0], cluster.key, home.secret("admin"), wire.new_context())
        self._sent: dict[int, float] = {}
        self._request = 0
        self._ids = os.getuid(), os.getgid(), tuple(os.getgroups())
        self._send(m.Info())
        self.receive()

    def submit(self, job: JobSpec, owner: int = 0) -> None:
        """Send a submission; owner 0: ours, else for one of `OTHERS`."""
        ids = (OTHERS[owner - 1], OTHERS[owner - 1], ()) if owner else self._ids
        self._send(m.Submit(contact.new_key(), job, *ids))

    def _send(self, message: object) -> None:
        self._request += 1
        self._sent[self._request] = time.perf_counter()
        if not self._connection.send(self._request, m.encode(message), ANSWER_MAX_S):
            raise TimeoutError("nobody is there to send to")

    def receive(self, timeout_s: float = ANSWER_MAX_S) -> tuple[object, float]:
        """The next answer, and the seconds since its question."""
        received = self._connection.receive(timeout_s)
        if received is None:
            raise TimeoutError(f"no answer within {timeout_s:g} s")
        answer = m.to_client.decode(received[1])
        if isinstance(answer, m.Failed):
            raise RuntimeError(str(answer.error))
        return answer, time.perf_counter() - self._sent.pop(received[0])

    @property
    def under_way(self) -> int:
        """Questions without an answer so far."""
        return len(self._sent)

    def rate(self, order: Rate) -> Rated:
        """See `Rate`."""
        job = _job(order.environment)
        time.sleep(max(0.0, order.start_s - time.monotonic()))
        took_s = []
        end_s = order.start_s + order.seconds
        while time.monotonic() < end_s:
            while self.under_way < order.window:
                self.submit(job)
            took_s.append(self.receive()[1])
        while self.under_way:
            self.receive()
        return Rated(len(took_s), 1e3 * statistics.median(took_s))

    def batch(self, order: Batch) -> Batched:
        """See `Batch`."""
        job = _job(order.environment)
        numbers: list[int] = []
        began_s = time.perf_counter()
        sent = 0
        while len(numbers) < order.jobs:
            while sent < order.jobs and self.under_way < order.window:
                self.submit(job, sent % order.owners)
                sent += 1
            answer = self.receive()[0]
            assert isinstance(answer, m.SubmittedIs)
            numbers.append(answer.job)
        acknowledged_s = time.perf_counter() - began_s
        # The last ones alone: they end last or nearly so, and rows for all of them would be work for the head.
        last = tuple(numbers[-100:])
        while True:
            self._send(m.WaitJobs(last, SLICE_S))
            answer = self.receive(SLICE_S + ANSWER_MAX_S)[0]
            assert isinstance(answer, m.JobsAre)
            if all(job.state in client.ENDED for job in answer.jobs):
                return Batched(time.perf_counter() - began_s, acknowledged_s)


def _job(environment: str) -> JobSpec:
    return JobSpec(argv=("/bin/true",), cwd="/", env=ENVIRONMENTS[environment])


def main() -> None:
    """Obey orders until stdin ends."""
    own = Client(Home(Path(sys.argv[1])))
    print(READY, flush=True)
    orders = msgspec.json.Decoder(Rate | Batch)
    for line in sys.stdin:
        order = orders.decode(line)
        result = own.rate(order) if isinstance(order, Rate) else own.batch(order)
        print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
