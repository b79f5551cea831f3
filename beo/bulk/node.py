"""The chunks of one node: ``python -m beo.bulk.node NAME``, started by the node's agent, with BEO_DIR set.

Fetches chunks for whoever asks on this machine (bringing.py), from the head or from other nodes as the head says, keeps
them, and serves them to other nodes. It ends with its agent; what it holds stays for the next one.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import secrets
import socket
import struct
import sys
import time
from collections import deque

import msgspec

from beo import address, daemon, lockfile, wire
from beo.birth import free_address
from beo.bulk import words
from beo.bulk.fetching import Fetched, Lanes
from beo.bulk.holdings import PART_OF_MEMORY, Coming, Full, Holdings, Wrong
from beo.bulk.serving import Serving, listen_near
from beo.bulk.tickets import Request
from beo.bulk.wants import WANTED_MAX, Wants
from beo.bulk.words import DEAD, HEAD, WRONG, Bad, Fails, Here, Let, Source, SourcesAre, Want, Who
from beo.child import end_with_parent
from beo.config import Home, home
from beo.errors import BeoError, Conflict, NotFound, UsageError
from beo.tree import words as w
from beo.tree.locate import node_session
from beo.tree.session import ROOT_CALLER
from beo.worker import probe

LANES = 6
REPORT_S = 3.0  # at least so often the head hears what is here
NEWS_S = 0.05  # so long what is new waits for more of it
UNREAD_S = 0.01  # until somebody here who doesn't read is tried again
REFUSED_S = 1.0  # until it is asked again where the head can't answer
FULL_S = 20.0  # with no room and nothing let go: then what is wanted at once is too much
CLIENTS_MAX = 256
_ucred = struct.Struct("3i")

log = logging.getLogger("beo.bulk")


class _Client:
    """Somebody on this machine who wants chunks."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.pins: dict[bytes, int] = {}
        self.together = False  # lets nothing go before it has everything
        self.out: deque[Here | Fails] = deque()


class _Reading:
    """A chunk that is read through the tree's session."""

    def __init__(self, source: Source, coming: Coming, numbers: list[int]) -> None:
        self.source, self.coming, self.numbers = source, coming, numbers
        self.pieces: dict[int, bytes] = {}


class Node:
    """The process. One loop, with threads that fetch and threads that serve."""

    def __init__(self, where: Home, name: str) -> None:
        """Take the node's lock, look at what is held, listen."""
        self._folder = folder = where.nodes / name / "bulk"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lockfile.hold(folder / "lock")
        files = where.config().files
        room_bytes = files.held_bytes_max or probe.memory_bytes() // PART_OF_MEMORY
        self._holdings = Holdings(folder, room_bytes)
        self._id = secrets.token_hex(8)
        self._waker = wire.Waker()
        self._wants = Wants(random.Random(self._id).shuffle)
        self._lanes = Lanes(self._holdings, LANES, self._waker.wake)
        self._keys: tuple[bytes, ...] = ()
        self._ahead_s = 0.0  # the head's clock, less our monotonic one
        host, _, port = free_address(address.own(where.cluster().heads[0].rpartition(":")[0])).rpartition(":")
        listener = listen_near(host, int(port))
        self._serving = Serving(listener, self._look, lambda: self._keys, lambda: time.monotonic() + self._ahead_s)
        self._session = node_session(where)
        self._poller = wire.Poller()
        self._session.register(self._poller)
        self._poller.register(self._waker.fileno(), wire.POLLIN)
        self._door = self._open_door()
        self._poller.register(self._door.fileno(), wire.POLLIN)
        self._clients: dict[int, _Client] = {}
        self._reading: dict[bytes, _Reading] = {}
        self._reads: dict[int, bytes] = {}  # number of a question -> chunk
        self._asked = 0  # the number of the question who has what; 0: none is under way
        self._asked_gained: tuple[bytes, ...] = ()
        self._ask_s = self._report_s = 0.0
        self._gained: dict[bytes, bool] = {}
        self._lost: dict[bytes, bool] = {}
        self._bad: deque[Bad] = deque(maxlen=words.NEWS_MAX)
        self._all = True  # the head doesn't know yet what is here
        self._full: Full | None = None
        self._full_s = 0.0
        self._stopping = False

    def _look(self, request: Request) -> int | None:
        return self._holdings.open(request.name)

    def _open_door(self) -> socket.socket:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        path = self._folder / words.SOCKET
        path.unlink(missing_ok=True)
        fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            door.bind(f"/proc/self/fd/{fd}/{words.SOCKET}")  # a path may be longer than an address of a socket
        finally:
            os.close(fd)
        path.chmod(0o600)
        door.listen(CLIENTS_MAX)
        return door

    # ---- the loop

    def run(self) -> None:
        """Work until stopped."""
        self._serving.start()
        log.info("chunks are served at %s", self._serving.address)
        while not self._stopping:
            now_s = time.monotonic()
            wait_s = max(0.0, min(self._session.next_at, self._next_s(now_s)) - now_s)
            if any(client.out for client in self._clients.values()):
                wait_s = min(wait_s, UNREAD_S)
            ready = {item for item, _ in self._poller.poll(int(wait_s * 1000) + 1) if isinstance(item, int)}
            self._waker.clear()
            if self._door.fileno() in ready:
                self._admit()
            for fd in [fd for fd in self._clients if fd in ready]:
                self._hear(fd)
            for number, answer in self._session.receive():
                assert not isinstance(answer, w.Leased), "it asks for none"
                self._answered(number, answer)
            for fetched in self._lanes.done():
                self._fetched(fetched)
            self._ask(time.monotonic())
            for fd in list(self._clients):
                self._flush(fd)

    def stop(self, *_: object) -> None:
        """Let `run` return; also a signal handler."""
        self._stopping = True
        self._waker.wake()

    def close(self) -> None:
        """Release everything."""
        self._serving.close()
        self._lanes.close()
        for client in self._clients.values():
            client.link.close()
        self._door.close()
        self._session.close()
        os.close(self._lock)

    # ---- the head

    def _next_s(self, now_s: float) -> float:
        """When to ask the head at the latest."""
        if self._asked:
            return now_s + REPORT_S
        at_s = self._report_s + REPORT_S
        is_hungry = self._wants.waiting and self._lanes.free > len(self._reading) and not self._full
        if is_hungry or self._has_news:
            at_s = min(at_s, self._ask_s)
        return at_s

    @property
    def _has_news(self) -> bool:
        return bool(self._gained or self._lost or self._bad or self._all)

    def _ask(self, now_s: float) -> None:
        gained, lost = self._holdings.news()
        if (gained or lost) and not self._has_news:
            self._ask_s = max(self._ask_s, now_s + NEWS_S) if not self._wants.waiting else self._ask_s
        for name in gained:
            self._gained[name] = True
        for name in lost:
            self._lost[name] = True
            self._gained.pop(name, None)
        if self._full:
            self._see_to_room(now_s)
        if self._asked or now_s < self._next_s(now_s):
            return
        everything = self._all
        if everything:
            self._gained, self._lost, self._all = dict.fromkeys(self._holdings.names(), True), {}, False
        lanes = max(0, self._lanes.free - len(self._reading)) if now_s >= self._ask_s and not self._full else 0
        self._asked = self._session.ask(
            ROOT_CALLER,
            Who(
                self._id,
                self._serving.address,
                everything,
                _taken(self._gained),
                _taken(self._lost),
                tuple(self._bad.popleft() for _ in range(min(len(self._bad), words.BAD_MAX))),
                self._wants.window() if lanes else (),
                lanes,
            ),
        )
        self._report_s = now_s

    def _answered(self, number: int, answer: w.Answer) -> None:
        if number in self._reads:
            self._read(number, answer)
        elif number == self._asked:
            self._asked = 0
            if isinstance(answer, SourcesAre):
                self._told(answer)
            else:  # a session that began anew, say
                self._all = True
                self._ask_s = self._report_s = time.monotonic() + REFUSED_S

    def _told(self, answer: SourcesAre) -> None:
        now_s = time.monotonic()
        if answer.key and answer.key not in self._keys:
            self._keys = (answer.key, *self._keys[:1])
        if answer.now_s:
            self._ahead_s = answer.now_s - now_s
        self._all = self._all or answer.again
        for name in answer.suspect:
            self._holdings.doubt(name)
            if self._holdings.has(name):  # it is right: say so again
                self._gained[name] = True
        for name in answer.unknown:
            uid, text = words.parts_of(name)
            what = f"no chunk {text[:16]}… of user {uid}"
            self._fail(name, NotFound(what, "the tree has none", "submit that job's inputs again"))
        for source in answer.sources:
            if not self._wants.start(source.name):
                self._bad.append(Bad(source.name, "", DEAD))  # not wanted any more: its slot is free
            elif self._holdings.has(source.name):
                self._came(source.name)
                self._gained[source.name] = True
            elif source.address:
                self._lanes.start(source)
            else:
                self._read_by_session(source)
        self._ask_s = now_s + answer.wait_s

    # ---- what comes

    def _fetched(self, fetched: Fetched) -> None:
        name = fetched.source.name
        if fetched.failure:
            self._bad.append(Bad(name, "", DEAD))  # it is our own fault: the slot alone is free again
            self._no_room(name, fetched.failure)
        elif fetched.bad:
            log.info("%s is of no use for a chunk: %s", fetched.source.address, fetched.bad)
            self._bad.append(Bad(name, fetched.source.server, fetched.bad))
            if fetched.source.server == HEAD:
                self._read_by_session(fetched.source)
            else:
                self._wants.again(name)
        else:
            self._came(name)

    def _came(self, name: bytes) -> None:
        self._full = None
        fds = self._wants.end(name)
        for fd in fds:
            if not self._give(fd, name):  # it was thrown out in this very moment
                self._wants.add(fd, [name])

    def _no_room(self, name: bytes, failure: BeoError) -> None:
        if not isinstance(failure, Full):
            self._fail(name, failure)
            return
        self._wants.again(name)
        if not self._full:
            self._full, self._full_s = failure, time.monotonic()

    def _see_to_room(self, now_s: float) -> None:
        """Nothing finds room: if nobody will let anything go, or has for too long, it is too much at once."""
        assert self._full
        if self._lanes.busy or self._reading:
            return  # what is under way finds its place, and may be let go
        stuck = all(client.together for client in self._clients.values() if client.pins)
        if stuck or now_s - self._full_s > FULL_S:
            for name in self._wants.all():
                self._fail(name, self._full)
            self._full = None

    def _fail(self, name: bytes, error: BeoError) -> None:
        log.warning("a chunk can't be brought: %s", error)
        for fd in self._wants.end(name):
            self._clients[fd].out.append(Fails(name, error.to_dict()))

    # ---- through the session

    def _read_by_session(self, source: Source) -> None:
        try:
            coming = self._holdings.begin(source.name, source.size)
        except BeoError as error:
            self._no_room(source.name, error)
            return
        offsets = range(0, source.size, w.DATA_MAX_BYTES)
        numbers = [self._session.ask(ROOT_CALLER, w.Read(source.ino, at, w.DATA_MAX_BYTES)) for at in offsets]
        reading = self._reading[source.name] = _Reading(source, coming, numbers)
        for number in numbers:
            self._reads[number] = source.name
        if not numbers:
            self._end_reading(reading)

    def _read(self, number: int, answer: w.Answer) -> None:
        reading = self._reading.get(self._reads.pop(number))
        if reading is None:
            return
        name = reading.source.name
        if not isinstance(answer, w.DataIs):
            del self._reading[name]
            reading.coming.drop()
            if isinstance(answer, w.Failed):
                why = os.strerror(answer.errno).lower()
                self._fail(name, BeoError("a chunk can't be read from the tree", why, "see 'beo ha status'"))
            return
        reading.pieces[number] = answer.data
        if len(reading.pieces) == len(reading.numbers):
            self._end_reading(reading)

    def _end_reading(self, reading: _Reading) -> None:
        name = reading.source.name
        del self._reading[name]
        try:
            for number in reading.numbers:
                reading.coming.write(reading.pieces[number])
        except BeoError as error:
            reading.coming.drop()
            self._no_room(name, error)
            return
        try:
            reading.coming.keep()
        except Wrong as error:
            self._bad.append(Bad(name, HEAD, WRONG))
            self._fail(name, BeoError("a chunk in the tree is damaged", error.what, "submit that job's inputs again"))
        except BeoError as error:
            self._no_room(name, error)
        else:
            self._came(name)

    # ---- whoever wants chunks here

    def _admit(self) -> None:
        try:
            link, _ = self._door.accept()
        except OSError:
            return
        _, uid, _ = _ucred.unpack(link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _ucred.size))
        if uid not in (0, os.geteuid()) or len(self._clients) >= CLIENTS_MAX:
            link.close()
            return
        link.setblocking(False)
        self._clients[link.fileno()] = _Client(link)
        self._poller.register(link.fileno(), wire.POLLIN)

    def _hear(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            data = client.link.recv(words.PACKET_MAX_BYTES)
            order = words.order_decoder.decode(data) if data else None
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError):
            order = None
        match order:
            case None:
                self._leave(fd)
            case Let():
                for name in order.names:
                    self._unpin(client, name)
            case Want():
                self._want(fd, client, order)

    def _want(self, fd: int, client: _Client, order: Want) -> None:
        client.together = order.together
        missing = []
        for name in order.names:
            if len(name) != words.NAME_BYTES:
                client.out.append(Fails(name, UsageError("that is no chunk's name").to_dict()))
            elif len(self._wants) >= WANTED_MAX:
                what = f"more than {WANTED_MAX} chunks are wanted at once"
                client.out.append(Fails(name, Conflict(what, "", "bring fewer at a time").to_dict()))
            elif not self._give(fd, name):
                missing.append(name)
        self._wants.add(fd, missing)

    def _give(self, fd: int, name: bytes) -> bool:
        """Pin a chunk for a client, and tell him; whether it is here."""
        client = self._clients[fd]
        if not self._holdings.pin(name):
            return False
        if not self._holdings.has(name):
            self._holdings.unpin(name)
            return False
        client.pins[name] = client.pins.get(name, 0) + 1
        client.out.append(Here(name))
        return True

    def _unpin(self, client: _Client, name: bytes) -> None:
        left = client.pins.pop(name, 0)
        if not left:
            return
        if left > 1:
            client.pins[name] = left - 1
        self._holdings.unpin(name)
        self._full = None

    def _flush(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            while client.out:
                self._say(client, client.out[0])
                client.out.popleft()
        except BlockingIOError:
            pass  # again in the next turn: it reads when it likes
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS:  # of descriptors that nobody has taken yet
                self._leave(fd)

    def _say(self, client: _Client, notice: Here | Fails) -> None:
        if isinstance(notice, Fails):
            client.link.send(words.encode(notice))
            return
        chunk = self._holdings.open(notice.name)
        if chunk is None:  # somebody has removed it, in use as it is
            error = Conflict("a chunk has gone", "its file was removed", "try it again")
            client.link.send(words.encode(Fails(notice.name, error.to_dict())))
            return
        try:
            socket.send_fds(client.link, [words.encode(notice)], [chunk])
        finally:
            os.close(chunk)

    def _leave(self, fd: int) -> None:
        client = self._clients.pop(fd)
        self._poller.unregister(fd)
        self._wants.leave(fd)
        for name, times in client.pins.items():
            for _ in range(times):
                self._holdings.unpin(name)
        client.link.close()
        self._full = None


def _taken(names: dict[bytes, bool]) -> tuple[bytes, ...]:
    """Take as many names out as one question has room for."""
    chosen = tuple(name for name, _ in zip(names, range(words.NEWS_MAX), strict=False))
    for name in chosen:
        del names[name]
    return chosen


def main(arguments: list[str]) -> int:
    """Do that until SIGTERM, or until the agent ends; 0 for a clean end."""
    if not end_with_parent():
        return 1
    return daemon.main("bulk", lambda: Node(home(), arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
