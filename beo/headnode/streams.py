"""The head's bulk plane: takes output in, gives it out, and passes stdin on. A thread and a socket of its own, so that
a gigabyte of output never delays a heartbeat.

Each turn of the loop: take what has come, append it, make it durable in one go, tell the exports, acknowledge, answer
the readers. Nothing is acknowledged or shown before it is durable. Everything is by offset and may be repeated: agents
repeat what was not acknowledged, clients ask again from their cursor, so any message may get lost, and this process
die, at any point.

Of two heads one *leads*: it takes output and shows it, and gives the other a copy of its files (copies.py) while its
own disk syncs them. While both are in step, durable means: on both. The other *follows*: it takes copies, and sends
everybody else to the leader. The control loop says which one this is; until it does, neither.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from beo import messages, records, wire
from beo.errors import EXIT_INTERNAL, BeoError, Internal, NotFound, UsageError, reason
from beo.headnode import permissions
from beo.headnode.copies import EXPORTS_MAX, Export, Giver, Taker
from beo.headnode.decide import User
from beo.headnode.export import Exports, Jobs
from beo.headnode.mirror import Key, Lag
from beo.headnode.output import Full, Output
from beo.headnode.readers import Readers
from beo.spec import TERMINAL_SIDE_MAX

__all__ = ["Streams", "View"]

QUEUE_LENGTH_MAX = 64  # messages of up to a chunk for one peer that doesn't read: 16 MiB
ACKS_MAX = 1_024  # acknowledgements of one part that wait for the other head; more are told together
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
class _Lead:
    """This head leads; `both`: what it acknowledges and shows is durable at `other`, too."""

    epoch: int
    other: str = ""  # address of the other head's bulk plane
    both: bool = False


@dataclass(frozen=True)
class _Follow:
    """This head takes copies from the leader of this epoch or a later one; `head`: where clients are sent."""

    epoch: int = 0
    head: str = ""


class Streams:
    """The thread. All public methods are for any thread."""

    def __init__(self, address: str, secret: str, folder: Path, view: View) -> None:
        """Bind `address` and open the store in `folder`; raises OSError. Nothing is answered before `start`."""
        self._view = view
        self._output = Output(folder)
        self._secret, self._key = secret, wire.public_of(secret)
        self._server = wire.Server(address, secret, lambda key: self._user(key) is not None, QUEUE_LENGTH_MAX)
        self.address = self._server.address
        self._acts_until_s = float("inf")
        self._exports = Exports(folder, self._output.path, view, self._may_write)
        self._waker = wire.Waker()
        self._poller = wire.Poller()
        self._server.register(self._poller)
        self._poller.register(self._waker, wire.POLLIN)
        self._orders: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._over = False  # some attempt may have ended: look at all polls
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="beo-streams", daemon=True)
        self._readers = Readers(self._answer)
        # By peer and attempt: what to acknowledge as soon as so much of the file is shown.
        self._acks: dict[tuple[bytes, int, int], deque[tuple[int, int]]] = {}
        self._agents: OrderedDict[str, bytes] = OrderedDict()
        self._feeders: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._full = ""
        self._role: _Lead | _Follow | None = None  # None: not told yet
        self._giver: Giver | None = None  # while this head leads and knows another one
        self._taker = Taker(self._output, int.from_bytes(os.urandom(6)) + 1, self._exports.names)
        self._exported: list[Export] = []  # the other head doesn't know yet that they are finished
        self._context = wire.new_context()
        self._connection: wire.Connection | None = None  # to the other head
        self._changed: set[Key] = set()  # attempts of which more may be shown
        # For `lag`: number of the role that was told last; that of a picture, the picture, and since when it stalls.
        self._told: tuple[int, _Lead | _Follow | None] = 0, None
        self._lag: tuple[int, Lag, float] = 0, Lag(), 0.0
        self._syncing_s = 0.0  # since when this head's own disk has been syncing

    def start(self) -> None:
        """Start the thread, and that of the -o and -e files."""
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
        self._order(lambda: self._changed.add((job, attempt)))

    def wake(self) -> None:
        """Attempts have ended: their readers are told at once."""
        self._over = True
        self._waker.wake()

    def forget(self, jobs: Collection[int]) -> None:
        """Delete the output of these jobs, which the view doesn't know any more."""
        self._order(lambda: self._forget(frozenset(jobs)))

    def output_error(self, job: int) -> str:
        """Return why a job's -o or -e file is not written, or ''."""
        return self._exports.error(job)

    def lead(self, epoch: int, other: str | None = None, both: bool = False) -> None:
        """Take output and show it, as the head of this epoch. `other`: address of the other head's bulk plane, if any.

        both: acknowledge and show only what is durable there, too. It is begun alone, and `both` follows when the other
        has nearly all; the pair is in step when `lag` says so, not before. Without it nothing waits for the other.
        """
        self._tell(_Lead(epoch, other or "", both and bool(other)))

    def follow(self, epoch: int, head: str = "") -> None:
        """Take copies from the leader of this epoch or a later one; clients are sent to the head at `head`."""
        self._tell(_Follow(epoch, head))

    def act_until(self, boot_s: float) -> None:
        """No other head can lead before this time of CLOCK_BOOTTIME: up to then, files of users may be written."""
        self._acts_until_s = boot_s

    def lag(self) -> Lag:
        """Return how far the other head is behind, as of this head's role; cheap."""
        number, lag, since_s = self._lag
        if number != self._told[0]:
            return Lag(trouble=lag.trouble)
        # Its answers are not read while this head's disk syncs, so it is not blamed for that time.
        now = self._syncing_s or time.monotonic()
        return lag._replace(stalled_s=max(0.0, now - since_s)) if since_s else lag

    # ---- the loop

    def _order(self, order: Callable[[], object]) -> None:
        self._orders.put(order)
        self._waker.wake()

    def _may_write(self) -> bool:
        return time.clock_gettime(time.CLOCK_BOOTTIME) < self._acts_until_s

    def _tell(self, role: _Lead | _Follow) -> None:
        if role != self._told[1]:
            number = self._told[0] + 1
            self._told = number, role
            self._order(lambda: self._become(role, number))

    def _run(self) -> None:
        try:
            next_turn = 0.0
            while not self._stopping:
                self._poller.poll(int(max(0.0, min(IDLE_S, next_turn - time.monotonic())) * 1000) + 1)
                next_turn = self._turn()
        except BaseException:
            # An fsync that failed must not be tried again (law 3), and without this plane the head is of no use.
            log.critical("the bulk plane ends the head", exc_info=True)
            logging.shutdown()
            os._exit(EXIT_INTERNAL)
        self._output.close()
        self._connect("")
        self._context.destroy(linger=0)
        self._server.close()

    def _turn(self) -> float:
        """Do what has come; return when there is something to do though nothing comes."""
        self._waker.clear()
        over, self._over = self._over, False
        while not self._orders.empty():
            self._orders.get_nowait()()
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
        if self._giver:
            self._hear_other(self._giver)
            self._giver.pump(self._send_other, time.monotonic())
        self._syncing_s = time.monotonic()
        grown = self._output.sync()
        self._syncing_s = 0.0
        for peer, answer in self._taker.answers():
            self._send(peer, 0, answer)
        if self._giver:
            for job, attempt in grown:
                self._giver.synced(job, attempt, self._output.end(job, attempt))
            self._giver.offer(self._send_other, time.monotonic())
        self._tell_finished()
        self._changed.update(grown)
        if isinstance(self._role, _Lead):
            self._show(over)
        self._changed.clear()
        now = time.monotonic()
        next_turn = self._readers.expire(now, now + IDLE_S)
        if self._giver:
            lag, since_s = self._giver.lag()
            self._lag = self._lag[0], lag, since_s
            next_turn = self._giver.next_at(next_turn)
        return next_turn

    def _show(self, over: bool) -> None:
        """Tell whom it concerns of what is durable now."""
        for job, attempt in self._changed:
            self._exports.grown(job, attempt, self._shown(job, attempt))
        for (peer, job, attempt), waiting in list(self._acks.items()):
            shown, have = self._shown(job, attempt), -1
            while waiting and waiting[0][0] <= shown:
                have = max(have, waiting.popleft()[1])
            if have >= 0:
                self._send(peer, 0, messages.ChunkAck(job, attempt, have))
            if not waiting:
                del self._acks[peer, job, attempt]
        if over:
            self._exports.poke()
        self._readers.look(None if over else self._changed)

    def _shown(self, job: int, attempt: int) -> int:
        """Return up to where an attempt's file may be seen."""
        try:
            durable = self._output.end(job, attempt)
        except Full:  # it can't be opened now
            return 0
        return self._giver.shown(job, attempt, durable) if self._giver else durable

    def _forget(self, jobs: frozenset[int]) -> None:
        self._exports.forget(jobs)
        if self._giver:
            self._giver.forget(jobs)
        try:
            self._output.delete(jobs)
        except OSError as error:
            log.warning("can't delete output: %s", error)
        for ack in [ack for ack in self._acks if ack[1] in jobs]:
            del self._acks[ack]
        self._readers.forget(jobs)

    # ---- two heads

    def _become(self, role: _Lead | _Follow, number: int) -> None:
        before, self._role = self._role, role
        if isinstance(role, _Follow):
            if not isinstance(before, _Follow):
                log.info("output: this head follows, epoch %d", role.epoch)
                self._stand_by(role)
            self._taker.follow(role.epoch)
        else:
            if not isinstance(before, _Lead) or before.epoch != role.epoch:
                log.info("output: this head leads, epoch %d", role.epoch)
                self._taker.clear()
                self._giver = None
            if not isinstance(before, _Lead):
                self._exports.lead()
                self._changed.update(self._exports.active())
            self._give_to(role)
        self._lag = number, Lag(), 0.0

    def _stand_by(self, role: _Follow) -> None:
        self._giver = None
        self._connect("")
        self._exports.rest()
        self._acks.clear()
        self._agents.clear()
        self._feeders.clear()
        for peer, request in self._readers.dismiss():
            self._send(peer, request, messages.Elsewhere(role.head, role.epoch))

    def _give_to(self, role: _Lead) -> None:
        """Give copies to the other head, or to nobody."""
        now = time.monotonic()
        moved = self._connect(role.other)
        if not role.other:
            self._giver = None
            self._over = True  # whatever waited for it waits no more
        elif self._giver is None:
            self._giver = Giver(self._output, role.epoch, role.both, int.from_bytes(os.urandom(6)), now)
        else:
            if moved:
                self._giver.call(now)
            self._changed.update(self._giver.agree(role.both))

    def _connect(self, address: str) -> bool:
        """Connect to the other head at an address, to none where that is empty; return whether that is another one."""
        if (self._connection.address if self._connection else "") == address:
            return False
        if self._connection:
            self._connection.unregister(self._poller)
            self._connection.close()
            self._connection = None
        if address:
            self._connection = wire.Connection(address, self._key, self._secret, self._context)
            self._connection.register(self._poller)
        return True

    def _send_other(self, message: messages.BulkRequest) -> bool:
        return bool(self._connection and self._connection.send(0, messages.encode(message)))

    def _hear_other(self, giver: Giver) -> None:
        assert self._connection
        now = time.monotonic()
        if self._connection.renewed:
            giver.reconnected(now)
        if self._connection.refused or self._connection.mistaken:
            giver.tell(f"who listens at {self._connection.address} doesn't have the cluster's key: see 'beo ha verify'")
        while received := self._connection.receive():
            if not received[1]:
                giver.tell(f"the other head speaks another protocol: {self._connection.stranger!r}")
                continue
            try:
                answer = messages.bulk_from_head.decode(received[1])
            except msgspec.MsgspecError as error:
                giver.tell(f"the other head says what this one can't read: {reason(error)}")
                continue
            if isinstance(answer, messages.Failed):
                giver.tell(f"the other head refuses: {answer.error.get('what', '')}")
            if isinstance(answer, messages.Wanted) and answer.exports:
                mine = set(self._exports.names())
                self._exported += [name for name in answer.exports if name not in mine]
            self._changed |= giver.hear(answer, now)

    def _tell_finished(self) -> None:
        """Tell the other head which -o and -e files it needn't go on with. What is lost it asks for again."""
        self._exported += self._exports.finished()
        if self._giver and self._exported:
            names = self._exported[:EXPORTS_MAX]
            if self._send_other(messages.Exported(self._giver.epoch, tuple(names))):
                del self._exported[: len(names)]
        if len(self._exported) > EXPORTS_MAX or not self._giver:
            self._exported.clear()

    def _user(self, key: str) -> User | None:
        """Who holds a key: the other head has the same as this one."""
        return User("the other head", "peer") if key == self._key else self._view.user_of_key(key)

    def _send(self, peer: bytes, request: int, message: messages.BulkAnswer) -> bool:
        return self._server.send(peer, request, messages.encode(message))

    def _handle(self, peer: bytes, key: str, request: int, body: bytes) -> None:
        try:
            message = messages.bulk_to_head.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            why = reason(error)
            raise UsageError("a message that is none of the bulk plane", why, "use the same version") from None
        if isinstance(message, messages.Copy | messages.Offer | messages.Exported):
            permissions.check_bulk(self._user(key), None, message)
            if not isinstance(self._role, _Follow):
                return
            if not isinstance(message, messages.Exported):
                self._taker.take(peer, message)
            elif message.epoch >= self._taker.epoch:
                self._exports.drop(message.files)
            return
        if not isinstance(self._role, _Lead):
            if isinstance(message, messages.Fetch | messages.Stdin):
                role = self._role or _Follow()
                self._send(peer, request, messages.Elsewhere(role.head, role.epoch))
            return
        owner = None if isinstance(message, messages.BulkHello) else self._view.owner(message.job)
        user = permissions.check_bulk(self._user(key), owner, message)
        if isinstance(message, messages.Fetch):
            self._readers.take(peer, request, message, time.monotonic())
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
        if self._view.owner(job) is None:
            # Nobody can ask for it any more: let the agent be done with it.
            log.info("output of the forgotten job %d from %s is void: %d bytes", job, chunk.node, len(chunk.data))
            self._acknowledge(peer, job, attempt, 0, min(chunk.offset, OFFSET_MAX) + len(chunk.data))
            return
        if not 0 <= chunk.offset <= OFFSET_MAX or records.whole_length(chunk.data) != len(chunk.data):
            raise UsageError(f"a chunk of job {job} at {chunk.offset}", "it has no whole records", "mend that agent")
        try:
            before = self._output.mark(job, attempt)
            have = self._output.append(job, attempt, chunk.node, chunk.offset, chunk.data)
        except Full as error:  # no acknowledgement: the node keeps it and comes again
            if not self._full:
                log.error("output waits at the nodes: %s", error)
            self._full = str(error)
            return
        size = self._output.size(job, attempt)
        self._acknowledge(peer, job, attempt, size, have)
        if size > before[0]:
            if self._giver:
                self._giver.grown(job, attempt, before, size)
            if self._full:
                log.warning("output is taken again")
                self._full = ""

    def _acknowledge(self, peer: bytes, job: int, attempt: int, size: int, have: int) -> None:
        """Acknowledge a node's spool up to `have` as soon as the file is shown up to `size`."""
        waiting = self._acks.setdefault((peer, job, attempt), deque())
        if len(waiting) >= ACKS_MAX:
            waiting.pop()
        waiting.append((size, have))

    def _answer(self, peer: bytes, request: int, fetch: messages.Fetch, at_once: bool) -> bool:
        """Answer if there is something to say, or at once; return whether it was answered."""
        over = self._view.is_over(fetch.job, fetch.attempt)  # before the store is read: it doesn't grow after that
        try:
            if self._view.owner(fetch.job) is None:
                raise NotFound(f"job {fetch.job} was forgotten", "", "see 'beo queue'")
            shown = self._shown(fetch.job, fetch.attempt)
            cursor, data = self._output.read(fetch.job, fetch.attempt, fetch.cursor, fetch.limit_bytes, shown)
            end = over and cursor == self._output.size(fetch.job, fetch.attempt)
        except BeoError as error:
            self._send(peer, request, messages.Failed(error.to_dict()))
            return True
        if not (data or end or at_once):
            return False
        self._send(peer, request, messages.Fetched(cursor, data, end))
        return True

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
