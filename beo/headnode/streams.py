"""The head's bulk plane: takes output in, gives it out, and passes stdin on. A thread and a socket of its own, so that
a gigabyte of output never delays a heartbeat.

Each turn of the loop: take what has come, append it, make it durable in one go, tell the exports, acknowledge, answer
the readers. Nothing is acknowledged or shown before it is durable. Everything is by offset and may be repeated: agents
repeat what was not acknowledged, clients ask again from their cursor, so any message may get lost, and this process
die, at any point.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from beo import messages, records, wire
from beo.errors import EXIT_INTERNAL, BeoError, Conflict, Internal, NotFound, UsageError, reason
from beo.headnode import permissions
from beo.headnode.decide import User
from beo.headnode.export import Exports, Jobs
from beo.headnode.output import Full, Output
from beo.spec import TERMINAL_SIDE_MAX

__all__ = ["Streams", "View"]

QUEUE_LENGTH_MAX = 64  # messages of up to a chunk for one peer that doesn't read: 16 MiB
POLLS_MAX = 10_000  # readers that wait at once, at about 0.5 kB each
POLLS_PER_PEER_MAX = 64  # attempts that one connection may follow
FEEDERS_MAX = 10_000  # attempts whose client's stdin acknowledgements are to be passed back
AGENTS_MAX = 16_384  # nodes whose connection is remembered; twice as many as a cluster has
OFFSET_MAX = 1 << 62  # of a byte in a stream: with what is added to it, it still fits into 63 bits
IDLE_S = 1.0  # a turn at least so often, though nothing came

log = logging.getLogger("beo.streams")


class View(Jobs, Protocol):
    """What the bulk plane asks the head's state; answered from any thread, from committed entries."""

    def user_of_key(self, key: str) -> User | None:
        """Return who holds a public key, None for an unknown one."""

    def speaks_for(self, user: User, node: str) -> bool:
        """Whether a worker's key may speak for a node."""

    def owner(self, job: int) -> str | None:
        """Return whose job it is, None for an unknown (or forgotten) one."""

    def rank0_node(self, job: int, attempt: int) -> tuple[str, str] | None:
        """Return (node, incarnation) where rank 0 of an attempt runs, None where it doesn't."""


@dataclass(frozen=True)
class _Poll:
    """A reader that waits for output."""

    request: int
    fetch: messages.Fetch
    deadline: float


class Streams:
    """The thread. `started`, `wake`, `forget`, `output_error` and `stop` are for any thread."""

    def __init__(self, address: str, secret: str, folder: Path, view: View) -> None:
        """Bind `address` and open the store in `folder`; raises OSError. Nothing is answered before `start`."""
        self._view = view
        self._output = Output(folder)
        self._server = wire.Server(address, secret, lambda key: view.user_of_key(key) is not None, QUEUE_LENGTH_MAX)
        self.address = self._server.address
        self._exports = Exports(folder, self._output.path, view)
        self._waker = wire.Waker()
        self._orders: queue.SimpleQueue[tuple[int, int] | frozenset[int]] = queue.SimpleQueue()
        self._over = False  # some attempt may have ended: look at all polls
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="beo-streams", daemon=True)
        self._polls: dict[tuple[int, int], dict[bytes, _Poll]] = {}
        self._poll_counts: Counter[bytes] = Counter()
        self._acks: dict[tuple[bytes, int, int], int] = {}
        self._agents: OrderedDict[str, bytes] = OrderedDict()
        self._feeders: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._full = ""

    def start(self) -> None:
        """Start the thread, and that of the -o and -e files."""
        for key in self._exports.active():
            self._exports.grown(*key, self._output.end(*key))
        self._exports.start()
        self._thread.start()

    def stop(self) -> None:
        """End both and close everything; what was not acknowledged comes again another time."""
        self._stopping = True
        self._waker.wake()
        self._thread.join()
        self._exports.stop()
        self._waker.close()

    def started(self, job: int, attempt: int) -> None:
        """An attempt is about to start, or (at the head's start) is running: its -o and -e files begin or go on."""
        self._exports.begin(job, attempt)
        self._orders.put((job, attempt))
        self._waker.wake()

    def wake(self) -> None:
        """Attempts have ended: their readers are told at once."""
        self._over = True
        self._waker.wake()

    def forget(self, jobs: Collection[int]) -> None:
        """Delete the output of these jobs, which the view doesn't know any more."""
        self._orders.put(frozenset(jobs))
        self._waker.wake()

    def output_error(self, job: int) -> str:
        """Return why a job's -o or -e file is not written, or ''."""
        return self._exports.error(job)

    # ---- the loop

    def _run(self) -> None:
        try:
            poller = wire.Poller()
            self._server.register(poller)
            poller.register(self._waker, wire.POLLIN)
            next_expiry = 0.0
            while not self._stopping:
                poller.poll(int(max(0.0, min(IDLE_S, next_expiry - time.monotonic())) * 1000) + 1)
                next_expiry = self._turn()
        except BaseException:
            # An fsync that failed must not be tried again (law 3), and without this plane the head is of no use.
            log.critical("the bulk plane ends the head", exc_info=True)
            logging.shutdown()
            os._exit(EXIT_INTERNAL)
        self._output.close()
        self._server.close()

    def _turn(self) -> float:
        """Do what has come; return when the next waiting reader is to be answered."""
        self._waker.clear()
        over, self._over = self._over, False
        self._take_orders()
        for peer, key, request, body in self._server.receive():
            try:
                self._handle(peer, key, request, body)
            except BeoError as error:
                self._send(peer, request, messages.Failed(error.to_dict()))
            except OSError:
                raise  # the store's disk, in a state that is not known
            except Exception as error:  # one peer's message must not end the plane for all
                log.exception("a message of the bulk plane failed")
                fault = Internal("the head failed at this message", str(error), "look into the head's log")
                self._send(peer, request, messages.Failed(fault.to_dict()))
        grown = self._output.sync()
        for job, attempt in grown:
            self._exports.grown(job, attempt, self._output.end(job, attempt))
        for (peer, job, attempt), have in self._acks.items():
            self._send(peer, 0, messages.ChunkAck(job, attempt, have))
        self._acks.clear()
        if over:
            self._exports.poke()
        for attempt_key in list(self._polls) if over else grown:
            self._answer_polls(attempt_key)
        return self._expire_polls()

    def _take_orders(self) -> None:
        while not self._orders.empty():
            order = self._orders.get_nowait()
            if isinstance(order, tuple):
                self._exports.grown(*order, self._output.end(*order))
                continue
            self._exports.forget(order)
            try:
                self._output.delete(order)
            except OSError as error:
                log.warning("can't delete output: %s", error)
            for key in [key for key in self._polls if key[0] in order]:
                self._answer_polls(key)

    def _send(self, peer: bytes, request: int, message: messages.BulkAnswer) -> bool:
        return self._server.send(peer, request, messages.encode(message))

    def _handle(self, peer: bytes, key: str, request: int, body: bytes) -> None:
        try:
            message = messages.bulk_to_head.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            why = reason(error)
            raise UsageError("a message that is none of the bulk plane", why, "use the same version") from None
        owner = None if isinstance(message, messages.BulkHello) else self._view.owner(message.job)
        user = permissions.check_bulk(self._view.user_of_key(key), owner, message)
        if isinstance(message, messages.Fetch):
            self._take_fetch(peer, request, message)
        elif isinstance(message, messages.Stdin):
            self._take_stdin(peer, request, message)
        elif isinstance(message, messages.StdinAck):
            place = self._view.rank0_node(message.job, message.attempt)
            if place and not self._view.speaks_for(user, place[0]):
                raise permissions.foreign_node(place[0])
            if client := self._feeders.get((message.job, message.attempt)):
                self._send(client, 0, message)
        elif not self._view.speaks_for(user, message.node):
            raise permissions.foreign_node(message.node)
        else:
            self._agents[message.node] = peer
            self._agents.move_to_end(message.node)
            if len(self._agents) > AGENTS_MAX:
                self._agents.popitem(last=False)
            if isinstance(message, messages.Chunk):
                self._take_chunk(peer, message)

    # ---- output

    def _take_chunk(self, peer: bytes, chunk: messages.Chunk) -> None:
        job, attempt = chunk.job, chunk.attempt
        ack = peer, job, attempt
        if self._view.owner(job) is None:
            # Nobody can ask for it any more: let the agent be done with it.
            log.info("output of the forgotten job %d from %s is void: %d bytes", job, chunk.node, len(chunk.data))
            self._acks[ack] = max(min(chunk.offset, OFFSET_MAX) + len(chunk.data), self._acks.get(ack, 0))
            return
        if not 0 <= chunk.offset <= OFFSET_MAX or records.whole_length(chunk.data) != len(chunk.data):
            raise UsageError(f"a chunk of job {job} at {chunk.offset}", "it has no whole records", "mend that agent")
        before = self._output.have(job, attempt, chunk.node)
        try:
            self._acks[ack] = self._output.append(job, attempt, chunk.node, chunk.offset, chunk.data)
        except Full as error:  # no acknowledgement: the node keeps it and comes again
            if not self._full:
                log.error("output waits at the nodes: %s", error)
            self._full = str(error)
            return
        if self._full and self._acks[ack] > before:
            log.warning("output is taken again")
            self._full = ""

    def _take_fetch(self, peer: bytes, request: int, fetch: messages.Fetch) -> None:
        key = fetch.job, fetch.attempt
        self._drop_poll(key, peer)  # who asks again doesn't wait for the earlier answer
        if self._answer(peer, request, fetch, at_once=not fetch.wait_s > 0):
            return
        if sum(self._poll_counts.values()) >= POLLS_MAX or self._poll_counts[peer] >= POLLS_PER_PEER_MAX:
            raise Conflict("too many readers wait for output", f"{POLLS_PER_PEER_MAX} a connection", "try again later")
        deadline = time.monotonic() + min(fetch.wait_s, messages.WAIT_MAX_S)
        self._polls.setdefault(key, {})[peer] = _Poll(request, fetch, deadline)
        self._poll_counts[peer] += 1

    def _answer(self, peer: bytes, request: int, fetch: messages.Fetch, at_once: bool) -> bool:
        """Answer if there is something to say, or at once; return whether it was answered."""
        over = self._view.is_over(fetch.job, fetch.attempt)  # before the store is read: it doesn't grow after that
        try:
            if self._view.owner(fetch.job) is None:
                raise NotFound(f"job {fetch.job} was forgotten", "", "see 'beo queue'")
            cursor, data = self._output.read(fetch.job, fetch.attempt, fetch.cursor, fetch.limit_bytes)
            end = over and cursor == self._output.end(fetch.job, fetch.attempt)
        except BeoError as error:
            self._send(peer, request, messages.Failed(error.to_dict()))
            return True
        if not (data or end or at_once):
            return False
        self._send(peer, request, messages.Fetched(cursor, data, end))
        return True

    def _answer_polls(self, key: tuple[int, int]) -> None:
        for peer, poll in list(self._polls.get(key, {}).items()):
            if self._answer(peer, poll.request, poll.fetch, at_once=False):
                self._drop_poll(key, peer)

    def _drop_poll(self, key: tuple[int, int], peer: bytes) -> None:
        polls = self._polls.get(key, {})
        if polls.pop(peer, None) is None:
            return
        if not polls:
            del self._polls[key]
        self._poll_counts[peer] -= 1
        if not self._poll_counts[peer]:
            del self._poll_counts[peer]

    def _expire_polls(self) -> float:
        now = time.monotonic()
        soonest = now + IDLE_S
        for key, polls in list(self._polls.items()):
            for peer, poll in list(polls.items()):
                if poll.deadline <= now:
                    self._answer(peer, poll.request, poll.fetch, at_once=True)
                    self._drop_poll(key, peer)
                else:
                    soonest = min(soonest, poll.deadline)
        return soonest

    # ---- stdin

    def _take_stdin(self, peer: bytes, request: int, message: messages.Stdin) -> None:
        """Pass it on; the head keeps none of it. Where its way ends here, the client repeats it."""
        key = message.job, message.attempt
        spec = self._view.spec(message.job)
        if spec is None or not spec.stdin:
            raise UsageError(f"job {message.job} reads no stdin", "", "submit it with 'beo run'")
        if not 0 <= message.offset <= OFFSET_MAX or len(message.data) > messages.CHUNK_SIZE_MAX_BYTES:
            raise UsageError("a piece of stdin that is none", "too large or at no offset", "use the same version")
        if not all(0 <= side <= TERMINAL_SIDE_MAX for side in message.window):
            raise UsageError("a terminal of an impossible size", str(message.window), "use the same version")
        if self._view.is_over(*key):
            self._feeders.pop(key, None)
            self._send(peer, request, messages.StdinAck(*key, message.offset, closed=True))
            return
        self._feeders[key] = peer
        self._feeders.move_to_end(key)
        if len(self._feeders) > FEEDERS_MAX:
            self._feeders.popitem(last=False)
        place = self._view.rank0_node(*key)
        agent = self._agents.get(place[0]) if place else None
        if agent:
            self._send(agent, 0, message)
