"""The bare loop: what a head costs without a core. ``python -m tests.bench.bare HOME SLOTS``.

A ROUTER with CURVE, zmq.Poller, and the real journal with its group commit. Every submission becomes an entry of 200
bytes and is answered when that is durable. With SLOTS, each is then run like a job, which makes three entries in all:
when a slot is free, a second entry; when that is durable, a `true` in one of two spawners; at its end, a third entry.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import zmq

from beo import messages as m
from beo import wire
from beo.config import Home
from beo.journal import Journal
from beo.version import GREETING

ENTRY_BYTES = 200
BATCH = 256  # messages in one go, as in the real head
SPAWNERS = 2
SWITCH_S = 0.0005  # as in the head; imported from there, the whole head would come along
SPAWNER = Path(__file__).with_name("spawner.py")


class Loop:
    """One bare loop over a cluster's folder, of which it uses the address, the keys and the head's place."""

    def __init__(self, home: Home, slots: int) -> None:
        """Open the journal, listen, start the spawners."""
        self._waker = wire.Waker()
        self._journal = Journal(home.head, lambda _: self._waker.wake(), self._failed)
        self._free = slots
        self._runs = slots > 0
        self._queued = 0
        self._open = 0
        self._jobs = 0
        # What waits for an entry to be durable: (its index, answer to send | None for a start).
        self._pending: deque[tuple[int, list[bytes] | None]] = deque()
        self._waiting: list[tuple[bytes, bytes]] = []
        self._router = zmq.Context().socket(zmq.ROUTER)
        self._router.linger = 0
        self._router.curve_server = True
        self._router.curve_secretkey = home.secret("head").encode()
        self._router.bind(f"tcp://{home.cluster().heads[0]}")
        self._spawners = [_spawner() for _ in range(SPAWNERS if self._runs else 0)]
        self._turn = 0

    def _failed(self, error: BaseException) -> None:
        raise error

    def run(self) -> None:
        """Serve until killed."""
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._waker.fileno(), zmq.POLLIN)
        for spawner in self._spawners:
            poller.register(spawner, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            self._waker.clear()
            self._receive()
            for spawner in self._spawners:
                if spawner.fileno() in ready:
                    self._ended(len(spawner.recv(4096)))
            self._release()
            while self._free and self._queued:
                self._free -= 1
                self._queued -= 1
                self._pending.append((self._append(), None))

    def _append(self, body: bytes = bytes(ENTRY_BYTES)) -> int:
        return self._journal.append(1, body[:ENTRY_BYTES])

    def _receive(self) -> None:
        for _ in range(BATCH):
            try:
                peer, protocol, request, body = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if b"WaitJobs" in body[:16]:
                self._waiting.append((peer, request))
                continue
            self._jobs += 1
            answer = [peer, protocol, request, m.encode(m.SubmittedIs(self._jobs))]
            self._pending.append((self._append(body), answer))
            if self._runs:
                self._open += 1
                self._queued += 1

    def _ended(self, count: int) -> None:
        for _ in range(count):
            self._append()
        self._free += count
        self._open -= count

    def _release(self) -> None:
        durable = self._journal.durable_index
        while self._pending and self._pending[0][0] <= durable:
            answer = self._pending.popleft()[1]
            if answer:
                self._router.send_multipart(answer, zmq.NOBLOCK)
            else:
                self._turn += 1
                self._spawners[self._turn % SPAWNERS].send(b".")
        if self._waiting and not self._open and durable == self._journal.last_index:
            for peer, request in self._waiting:
                self._router.send_multipart([peer, GREETING, request, m.encode(m.JobsAre(()))], zmq.NOBLOCK)
            self._waiting.clear()


def _spawner() -> socket.socket:
    ours, its = socket.socketpair()
    subprocess.Popen([sys.executable, "-I", "-S", str(SPAWNER)], stdin=its.fileno(), stdout=its.fileno())
    its.close()
    return ours


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH_S)
    Loop(Home(Path(sys.argv[1])), int(sys.argv[2])).run()
