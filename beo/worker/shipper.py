"""The agent's bulk plane: ships spools to the head and takes stdin from it. A thread and a socket of its own.

A spool is the truth until the head has acknowledged it, and a part's end is reported only after that. Nothing is held
in memory but positions: what must be repeated is read from the spool again. All that is under way is bounded by
windows, and parts take turns, so that one that prints without end doesn't delay another's last line.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from beo import messages, records, wire
from beo.config import ClusterFile
from beo.worker.acts import Shipped, StdinCame

__all__ = ["Shipper"]

WINDOW_BYTES = 2 * 1024 * 1024  # of one part under way: eight chunks, so that two heads sync some while others travel
WINDOW_ALL_BYTES = 4 * 1024 * 1024  # of this node: what a head must be able to queue from each node of a large cluster
RESEND_S = 1.0  # without an acknowledgement for so long, what is under way is sent again
RESEND_MAX_S = 8.0  # doubled up to here: a head that is slow or full isn't buried in repetitions
HELLO_S = 1.0
HELLO_RETRY_S = 0.05  # while there is no connection
NEWS_MAX = 10_000  # pieces of stdin that the agent has not taken; more are dropped, the client repeats them
RECEIVE_BATCH = 256  # messages taken in one go, so that sending goes on

log = logging.getLogger("beo.shipper")


@dataclass
class _Part:
    """Where a part's shipping stands. Positions are bytes of its spool: acknowledged <= sent <= length."""

    spool: Path
    length: int = 0
    final: bool = False
    acknowledged: int = 0
    heard: int = 0  # what the head said last; lower than `acknowledged` if it is another head, or an old message
    sent: int = 0
    resend_at: float = 0.0
    resend_s: float = field(default_factory=lambda: RESEND_S)
    damage: str = ""

    @property
    def under_way(self) -> int:
        return self.sent - self.acknowledged

    def take_ack(self, have: int) -> None:
        self.heard = have
        if have > self.acknowledged:
            self.acknowledged = have
            self.sent = max(self.sent, have)
            self.resend_s = RESEND_S
            self.resend_at = time.monotonic() + self.resend_s

    def step_back(self, now: float) -> None:
        """Go back to what the head has, if it has said nothing new for too long."""
        if self.under_way > 0 and now >= self.resend_at:
            self.acknowledged = self.sent = min(self.heard, self.acknowledged)
            self.resend_s = min(2 * self.resend_s, RESEND_MAX_S)

    def next_chunk(self) -> bytes:
        """Return whole records behind what was sent; empty where there are none yet. Raises OSError, DamagedRecord."""
        size = min(messages.CHUNK_SIZE_MAX_BYTES, self.length - self.sent)
        if size <= 0:
            return b""
        fd = os.open(self.spool, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, size, self.sent)
        finally:
            os.close(fd)
        return data[: records.whole_length(data)]


class Shipper:
    """The thread. All methods are for the agent's control thread, which is woken by its own waker for `news`."""

    def __init__(self, cluster: ClusterFile, secret: str, node: str, incarnation: str, agent: wire.Waker) -> None:
        """Take the head's key and address, our key and names; `agent` is woken when there is `news`."""
        self._node, self._incarnation = node, incarnation
        self._keys = cluster.key, secret
        self._agent = agent
        self._waker = wire.Waker()
        self._orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[Shipped | StdinCame] = queue.SimpleQueue()
        self._stopping = False
        self._context = wire.new_context()
        self._poller = wire.Poller()
        self._connection: wire.Connection | None = None
        self._reachable = False  # the last thing sent was taken by the connection
        self._again_at = 0.0  # until then no output is sent: a head has said that it doesn't act
        self._hello_at = 0.0
        self._parts: dict[tuple[int, int], _Part] = {}
        self._under_way = 0  # bytes, of all parts
        self._thread = threading.Thread(target=self._run, name="beo-shipper", daemon=True)
        if cluster.bulk:
            self.connect(cluster.bulk[0])

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End it. What is unshipped stays in the spools."""
        self._stopping = True
        self._waker.wake()
        self._thread.join()
        self._waker.close()

    def connect(self, address: str) -> None:
        """Ship to the head at "host:port" from now on: it acts. Nothing changes where that is done already."""
        self._order(lambda: self._connect(address))

    def rename(self, incarnation: str) -> None:
        """Take a new incarnation."""
        self._order(lambda: self._rename(incarnation))

    def ship(self, job: int, attempt: int, spool: Path, length: int, final: bool) -> None:
        """Ship `length` bytes (whole records) of a part's spool from where the head has it; again when it has grown.

        `final`: it grows no more, and `Shipped` is news when the head has all of it.
        """
        self._order(lambda: self._ship((job, attempt), spool, length, final))

    def forget(self, job: int, attempt: int) -> None:
        """Ship no more of this part."""
        self._order(lambda: self._parts.pop((job, attempt), None))

    def stdin_ack(self, job: int, attempt: int, have: int, closed: bool, window: tuple[int, int] = (0, 0)) -> None:
        """Tell the client what rank 0's warden has taken; closed: it takes no more. A lost one is asked for again."""
        self._order(lambda: self._tell(messages.StdinAck(job, attempt, have, closed, window)))

    def news(self) -> list[Shipped | StdinCame]:
        """Return what has come since the last call: parts that are shipped, and stdin for parts of this node."""
        return [self._news.get_nowait() for _ in range(self._news.qsize())]

    # ---- the loop

    def _order(self, order: Callable[[], object]) -> None:
        self._orders.put(order)
        self._waker.wake()

    def _report(self, news: Shipped | StdinCame) -> None:
        if isinstance(news, Shipped) or self._news.qsize() < NEWS_MAX:
            self._news.put(news)
            self._agent.wake()

    def _tell(self, message: messages.BulkRequest) -> bool:
        """Send, and remember whether there is anybody to send to: nothing is read or made for an absent head."""
        self._reachable = bool(self._connection and self._connection.send(0, messages.encode(message)))
        if not self._reachable:
            self._hello_at = min(self._hello_at, time.monotonic() + HELLO_RETRY_S)
        return self._reachable

    def _run(self) -> None:
        self._poller.register(self._waker, wire.POLLIN)
        wait_s = 0.0
        while not self._stopping:
            self._poller.poll(int(wait_s * 1000) + 1)
            try:
                wait_s = self._turn(time.monotonic())
            except Exception:  # the agent must not lose its only way to ship; what is wrong is tried again, slowly
                log.exception("shipping failed")
                wait_s = RESEND_S
        if self._connection:
            self._connection.close()
        self._context.destroy(linger=0)

    def _turn(self, now: float) -> float:
        """Do what is to be done; return for how long nothing is."""
        self._waker.clear()
        while not self._orders.empty():
            self._orders.get_nowait()()
        if self._connection is None:
            return HELLO_S
        self._receive(self._connection)
        if now >= self._hello_at:
            self._hello_at = now + HELLO_S
            self._tell(messages.BulkHello(self._node, self._incarnation))
        for part in self._parts.values():
            part.step_back(now)
        self._under_way = sum(part.under_way for part in self._parts.values())
        sending = True
        while sending and self._orders.empty():
            sending = False
            for key, part in list(self._parts.items()):
                sending |= self._send_chunk(key, part)
        return self._until_next(time.monotonic())

    def _until_next(self, now: float) -> float:
        next_at = self._hello_at
        for part in self._parts.values():
            if part.under_way > 0:
                next_at = min(next_at, part.resend_at)
        return max(0.0, next_at - now)

    def _connect(self, address: str) -> None:
        self._again_at = 0.0
        if self._connection:
            if self._connection.address == address:
                return
            self._connection.unregister(self._poller)
            self._connection.close()
        self._connection = wire.Connection(address, *self._keys, self._context)
        self._connection.register(self._poller)
        self._hello_at = 0.0
        for part in self._parts.values():  # another head may have less, or more
            part.acknowledged = part.heard = part.sent = 0

    def _rename(self, incarnation: str) -> None:
        self._incarnation = incarnation
        self._hello_at = 0.0

    def _ship(self, key: tuple[int, int], spool: Path, length: int, final: bool) -> None:
        part = self._parts.setdefault(key, _Part(spool))
        part.spool = spool
        part.length = max(part.length, length)
        part.final = part.final or final
        self._settle(key, part)

    def _settle(self, key: tuple[int, int], part: _Part) -> None:
        """Report a part that is complete."""
        if part.final and part.acknowledged >= part.length:
            del self._parts[key]
            self._report(Shipped(*key))

    def _receive(self, connection: wire.Connection) -> None:
        for _ in range(RECEIVE_BATCH):
            received = connection.receive()
            if received is None:
                return
            if not received[1]:
                continue  # the head is of another protocol: the agent says so
            try:
                message = messages.bulk_from_head.decode(received[1])
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                log.error("the head says what this agent can't read: %s", error)
                continue
            if isinstance(message, messages.ChunkAck):
                key = message.job, message.attempt
                if part := self._parts.get(key):
                    part.take_ack(message.have)
                    self._settle(key, part)
            elif isinstance(message, messages.Stdin):
                self._report(StdinCame(message))
            elif isinstance(message, messages.Elsewhere):
                self._again_at = time.monotonic() + RESEND_S
            elif isinstance(message, messages.Failed):
                log.warning("the head refuses: %s", message.error)

    def _send_chunk(self, key: tuple[int, int], part: _Part) -> bool:
        """Send a part's next chunk, if there is one and the windows allow it; return whether one was sent."""
        if not self._reachable or part.sent >= part.length or time.monotonic() < self._again_at:
            return False
        if part.under_way >= WINDOW_BYTES or self._under_way >= WINDOW_ALL_BYTES:
            return False
        try:
            data = part.next_chunk()
        except (records.DamagedRecord, FileNotFoundError) as error:
            self._take_damage(key, part, str(error))
            return False
        except OSError as error:
            self._tell_damage(key, part, f"can't read {part.spool} ({(error.strerror or '').lower()}): trying on")
            return False
        if not data:
            self._take_damage(key, part, "it ends inside a record")
            return False
        if not self._tell(messages.Chunk(self._node, self._incarnation, *key, part.sent, data)):
            return False  # the hello's timer brings us back
        if part.under_way == 0:
            part.resend_at = time.monotonic() + part.resend_s
        part.sent += len(data)
        self._under_way += len(data)
        return True

    def _take_damage(self, key: tuple[int, int], part: _Part, why: str) -> None:
        """Give up what won't become readable, when all before it is at the head: the part's end must be told."""
        if not part.final:
            return  # the warden may be about to write on
        lost = part.length - part.sent
        self._tell_damage(key, part, f"{lost} bytes of {part.spool} from {part.sent} on are damaged ({why})")
        if part.under_way <= 0:
            del self._parts[key]
            self._report(Shipped(*key))

    def _tell_damage(self, key: tuple[int, int], part: _Part, text: str) -> None:
        if part.damage != text:
            part.damage = text
            log.error("output of job %d.%d: %s", *key, text)
