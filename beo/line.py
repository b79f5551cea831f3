"""A client's line to a cluster of several heads: one question at a time, to whichever head acts.

It has what a `wire.Connection` has for one head, and whoever asks by it needs not know how many heads there are. The
head that answered last is asked; the others are asked, too, as soon as it says that it doesn't act, isn't there, or is
silent, since a stopped machine takes every question and says nothing. All questions may be repeated, and of several
answers the first counts: who doesn't act only says who does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from beo import wire
from beo.config import is_address
from beo.messages import Elsewhere

OTHERS_S = 0.25  # of silence, then the others are asked: a person hardly notices it, and a busy head has answered
CONNECT_S = 0.01  # for a connection to be made, which takes some milliseconds where somebody is
PAUSE_S = 0.05  # between two questions to heads that all don't act
LOOK_S = 0.02  # between two looks whether a connection is there, of which its socket tells, too
STEP_S = 0.002  # the same while nothing else is to be done
HEADS_MAX = 8  # a cluster has two, and what one tells of others is bounded
# Between two questions to those who say that another acts, while that one is silent.
AGAIN_MIN_S = 0.1  # a take-over is not to last longer for it
AGAIN_MAX_S = 1.0
WAIT_PART = 4  # of the time that a long poll may take: its silence means little, and there are many of its kind
TAG = b"\xa9Elsewhere"  # as such a message begins, behind the length of its list

_elsewhere = msgspec.msgpack.Decoder(Elsewhere)


class _End:
    """A head at the other end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connection: wire.Connection | None = None
        self.ask_at = float("inf")  # when to ask (again)
        self.asked = False  # a question is under way there
        self.declined_at = 0.0  # when it said that it doesn't act

    @property
    def refuses(self) -> bool:
        return bool(self.connection and self.connection.refused)

    @property
    def is_mistaken(self) -> bool:
        return bool(self.connection and self.connection.mistaken)

    @property
    def is_strange(self) -> bool:
        return bool(self.connection and self.connection.stranger)


class Line:
    """Connections to all heads, each made when it is first needed. For one thread."""

    def __init__(
        self,
        addresses: Sequence[str],
        connect: Callable[[str], wire.Connection],
        names: Mapping[str, str] | None = None,
    ) -> None:
        """connect(address) makes a connection. names: what a head may call another -> which of the addresses it is."""
        self._connect = connect
        self._names = dict(names or {})
        self._ends = [_End(address) for address in addresses]
        self._first = self._ends[0]  # who answered last
        self._poller = wire.Poller()
        self._pollers = [self._poller]
        self._request, self._body = 0, b""
        self._asked_s = 0.0  # when the question was put first
        self.wait_s = 0.0  # how long a head may keep the question: a long poll's
        self.has_learned = False  # a head was named that was not among the addresses

    # ---- what a connection has, too

    @property
    def address(self) -> str:
        """The heads, as errors name them."""
        return " or ".join(end.address for end in self._ends)

    @property
    def server_key(self) -> str:
        """The heads' key, once there is a connection."""
        return next((end.connection.server_key for end in self._ends if end.connection), "")

    @property
    def refused(self) -> bool:
        """Whether no head knows our key; see `Connection.refused`."""
        return all(end.refuses for end in self._ends)

    @property
    def refusing(self) -> str:
        """A head that doesn't know our key, or nothing."""
        return next((end.address for end in self._ends if end.refuses), "")

    @property
    def mistaken(self) -> bool:
        """Whether nobody who listens there is a head."""
        return all(end.is_mistaken for end in self._ends)

    @property
    def stranger(self) -> bytes:
        """The greeting of a head of another protocol."""
        return next((end.connection.stranger for end in self._ends if end.connection and end.is_strange), b"")

    @property
    def renewed(self) -> bool:
        """Never for whom asks by it: what was lost with a connection is asked again here."""
        return False

    @property
    def next_at(self) -> float:
        """When `receive` is to be called at the latest, be there something to read or not."""
        now = time.monotonic()
        waiting = any(end.ask_at <= now for end in self._ends)
        return now + LOOK_S if waiting else min(end.ask_at for end in self._ends)

    def register(self, poller: wire.Poller) -> None:
        """Add to a loop, with all connections that are made later; call `receive` after each poll."""
        self._pollers.append(poller)
        for end in self._ends:
            if end.connection:
                end.connection.register(poller)

    def unregister(self, poller: wire.Poller) -> None:
        """Take out of a loop, before close."""
        self._pollers.remove(poller)
        for end in self._ends:
            if end.connection:
                end.connection.unregister(poller)

    def close(self) -> None:
        """Close all connections."""
        for end in self._ends:
            if end.connection:
                end.connection.close()

    def send(self, request: int, body: bytes, timeout_s: float = 0.0) -> bool:
        """Ask, waiting at most timeout_s for any head to be there; False: nothing was sent yet.

        With request 0 nothing is asked, and the word is for the head that acts, as far as it is known.
        """
        now = time.monotonic()
        if not request:
            return self._tell(body)
        anew = request != self._request
        if anew:
            self._asked_s = now
        self._request, self._body = request, body
        for end in self._ends:
            end.asked = False
            others_at = now + max(OTHERS_S, self.wait_s / WAIT_PART)
            others_at = others_at if anew else min(end.ask_at, others_at)
            end.ask_at = now if end is self._first else others_at
        deadline = now + timeout_s
        if timeout_s > 0 and self._opened(self._first).send(request, body, min(timeout_s, CONNECT_S)):
            self._first.asked, self._first.ask_at = True, float("inf")
        elif timeout_s > 0:
            self._hurry(self._first, time.monotonic())
        while not self._ask(now) and now < deadline:
            time.sleep(STEP_S)
            now = time.monotonic()
        return any(end.asked for end in self._ends)

    def receive(self, timeout_s: float = 0.0) -> tuple[int, bytes] | None:
        """Return (request id, body) of one message, or None after timeout_s; see `Connection.receive`."""
        deadline = time.monotonic() + timeout_s
        while True:
            for end in self._ends:
                while end.connection and (received := end.connection.receive()):
                    if found := self._take(end, *received):
                        return found
            now = time.monotonic()
            self._ask(now)
            if now >= deadline:
                return None
            self._wait(min(deadline, self.next_at) - now)

    # ---- asking

    def _opened(self, end: _End) -> wire.Connection:
        if not end.connection:
            end.connection = self._connect(end.address)
            for poller in self._pollers:
                end.connection.register(poller)
        return end.connection

    def _tell(self, body: bytes) -> bool:
        order = sorted(self._ends, key=lambda end: end is not self._first)
        return any(self._opened(end).send(0, body) for end in order)

    def _ask(self, now: float) -> bool:
        """Ask whom it is time to ask; whether somebody is asked."""
        for end in self._ends:
            if end.connection and end.connection.broken and end.asked:
                end.asked = False
                end.ask_at = now
                self._hurry(end, now)
            if end.ask_at > now:
                continue
            if self._opened(end).send(self._request, self._body):
                end.asked = True
                end.ask_at = float("inf") if end is self._first else now + self._again_s(now)
            elif not end.asked:
                self._hurry(end, now if end.refuses else now + CONNECT_S)
        return any(end.asked for end in self._ends)

    def _hurry(self, late: _End, at: float) -> None:
        """Ask the others then, if not before."""
        for end in self._ends:
            if end is not late and not end.asked:
                end.ask_at = min(end.ask_at, max(at, end.declined_at + PAUSE_S))

    def _again_s(self, now: float) -> float:
        """The longer the head that acts takes, the less it says that it takes longer."""
        return min(max(AGAIN_MIN_S, self.wait_s / WAIT_PART, (now - self._asked_s) / 4), AGAIN_MAX_S)

    def _wait(self, wait_s: float) -> None:
        self._poller.poll(max(0, int(wait_s * 1000) + 1))

    # ---- answers

    def _take(self, end: _End, request: int, body: bytes) -> tuple[int, bytes] | None:
        """Return a message if it is for whom asks; go by it, if it is for us."""
        now = time.monotonic()
        if not body:
            end.asked, end.ask_at = False, now + AGAIN_MAX_S
            self._hurry(end, now)
            # One of another protocol may be a standby that is upgraded first; where nobody else acts, it is told.
            others = [other for other in self._ends if other is not end]
            return (0, b"") if all(other.is_strange or other.declined_at for other in others) else None
        if body[1:].startswith(TAG):
            if request in (0, self._request):
                self._decline(end, body, request, now)
            return None
        if request and request != self._request:
            return None  # the late answer to a question that was given up
        if request:
            self._first = end
            for each in self._ends:
                each.asked, each.ask_at, each.declined_at = False, float("inf"), 0.0
            self._request = 0
        return request, body

    def _decline(self, end: _End, body: bytes, request: int, now: float) -> None:
        """A head says that it doesn't act: ask the one that it names, or all again in a moment."""
        try:
            named = _elsewhere.decode(body).head
        except msgspec.DecodeError:
            return
        target = self._end_of(named) or self._learn(named)
        if target and end is self._first:
            self._first = target
        if not request:
            return  # whoever said it says it again
        end.asked, end.declined_at, end.ask_at = False, now, now + PAUSE_S
        if target and target is not end:
            if target.asked:
                end.ask_at = now + self._again_s(now)
            else:
                target.ask_at = min(target.ask_at, max(now, target.declined_at + PAUSE_S))

    def _learn(self, address: str) -> _End | None:
        """Take in a head that only another one knows."""
        if self._names or not is_address(address) or len(self._ends) >= HEADS_MAX:
            return None
        self.has_learned = True
        self._ends.append(_End(address))
        return self._ends[-1]

    def _end_of(self, name: str) -> _End | None:
        address = self._names.get(name, name)
        return next((end for end in self._ends if end.address == address), None)
