"""Serving and fetching over real sockets: who has no ticket gets nothing, and who lies is believed nothing."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from beo.bulk import fetching, serving, tickets
from beo.bulk.fetching import Lanes, Line, Unfit
from beo.bulk.holdings import Holdings
from beo.bulk.serving import Serving, listen
from beo.bulk.tickets import Request
from beo.bulk.words import DEAD, GONE, LATE, SLOW, WRONG, Source, digest, name_of
from tests.cluster import ROOT, wait_for

KEY = tickets.server_key(tickets.master_key("secret"), "a server")
DATA = random.Random(1).randbytes(300_000)
NAME = name_of(5, digest(DATA))
HOST = "127.0.0.1"
NOW_S = 1_000_000.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    """Serves DATA as NAME, to who has a ticket by KEY."""
    path = tmp_path / "data"
    path.write_bytes(DATA)

    def look(request: Request) -> int | None:
        return os.open(path, os.O_RDONLY) if request.name == NAME else None

    made = Serving(listen(HOST), look, lambda: (b"another key", KEY), lambda: NOW_S)
    made.start()
    yield made
    made.close()
    wait_for(lambda: not made._open, "all connections have ended")


@pytest.fixture
def held(tmp_path: Path) -> Holdings:
    return Holdings(tmp_path / "held", 100 << 20)


def request(
    name: bytes = NAME, ino: int = 0, key: bytes = KEY, expires_s: int = int(NOW_S) + 9, **more: int
) -> Request:
    shown = tickets.ticket(key, name, ino, expires_s)
    return Request(name, ino, more.get("offset", 0), more.get("size", 0), expires_s, shown)


def source(address: str, name: bytes = NAME, size: int = len(DATA), key: bytes = KEY) -> Source:
    asked = request(name, key=key)
    return Source(name, "s", address, 0, size, asked.expires_s, asked.ticket)


def connect(server: Serving) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    link = socket.create_connection((host, int(port)))
    link.settimeout(10)
    return link


def everything(link: socket.socket) -> bytes:
    data = b""
    while piece := link.recv(1 << 20):
        data += piece
    return data


def answer(link: socket.socket, asked: Request) -> tuple[int, bytes]:
    link.sendall(tickets.pack_request(asked))
    reply = tickets.read_reply(exactly(link, tickets.REPLY_BYTES))
    assert reply
    return reply[0], exactly(link, reply[1])


def exactly(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (piece := link.recv(size - len(data))):
        data += piece
    return data


# ---- the server


def test_a_chunk_is_sent_whole_or_in_part_over_one_connection(server: Serving) -> None:
    with connect(server) as link:
        assert answer(link, request()) == (tickets.OK, DATA)
        assert answer(link, request(offset=1_000, size=500)) == (tickets.OK, DATA[1_000:1_500])
        assert answer(link, request(offset=len(DATA) - 5, size=500)) == (tickets.OK, DATA[-5:])
        assert answer(link, request(offset=len(DATA) + 5)) == (tickets.OK, b"")


def test_what_is_not_here_or_has_expired_is_said_and_the_connection_goes_on(server: Serving) -> None:
    with connect(server) as link:
        assert answer(link, request(name_of(5, "ab" * 32))) == (tickets.GONE, b"")
        assert answer(link, request(expires_s=int(NOW_S) - 1)) == (tickets.EXPIRED, b"")
        assert answer(link, request()) == (tickets.OK, DATA)


def test_who_has_no_ticket_for_just_this_gets_not_one_byte(server: Serving) -> None:
    good = request()
    other = request(name_of(6, digest(DATA)))
    wrong = {
        "another's key": request(key=tickets.server_key(tickets.master_key("secret"), "another server")),
        "another cluster's": request(key=tickets.server_key(tickets.master_key("other"), "a server")),
        "no ticket": Request(NAME, 0, 0, 0, good.expires_s, bytes(32)),
        "one for another user's": Request(NAME, 0, 0, 0, good.expires_s, other.ticket),
        "one that would have ended": Request(NAME, 0, 0, 0, good.expires_s + 1, good.ticket),
        "one for another inode": Request(NAME, 7, 0, 0, good.expires_s, good.ticket),
    }
    for what, asked in wrong.items():
        with connect(server) as link:
            link.sendall(tickets.pack_request(asked))
            assert everything(link) == b"", what
    assert server.refused == len(wrong)


def test_before_there_is_a_key_nothing_is_served(tmp_path: Path) -> None:
    made = Serving(listen(HOST), lambda _: pytest.fail("it was looked for"), lambda: (), lambda: NOW_S)
    made.start()
    for key in (b"", KEY):
        with connect(made) as link:
            link.sendall(tickets.pack_request(request(key=key)))
            assert everything(link) == b""
    made.close()


def test_what_is_no_request_is_not_answered(server: Serving) -> None:
    rng = random.Random(7)
    good = tickets.pack_request(request())
    spoilt = [
        b"",
        good[:-1],
        b"GET / HTTP/1.1\r\n\r\n" + bytes(100),
        b"\0" * len(good),
        good[:4] + rng.randbytes(len(good) - 4),
        good[:48] + b"\xff" * 8 + good[56:],  # an offset of 4 GiB
    ]
    for number in range(30):
        at = rng.randrange(len(good))
        spoilt.append(good[:at] + bytes([good[at] ^ 1 << number % 8]) + good[at + 1 :])
    for data in spoilt:
        with connect(server) as link:
            try:
                link.sendall(data)
                link.shutdown(socket.SHUT_WR)
                said = everything(link)
            except OSError:  # it is let go before all of it was said
                said = b""
            assert not said or (data[:48] == good[:48] and data[56:] == good[56:]), data  # but for the range
    with connect(server) as link:
        assert answer(link, request()) == (tickets.OK, DATA), "and others are served"


def test_who_says_nothing_or_takes_forever_is_let_go(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "REQUEST_S", 0.4)
    with connect(server) as silent, connect(server) as slow:
        began_s = time.monotonic()
        data = tickets.pack_request(request())
        for byte in data:  # one by one: far slower than is waited for
            try:
                slow.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("it was waited for")
        assert everything(silent) == b""
        assert time.monotonic() - began_s < 5.0
    with connect(server) as link:
        assert answer(link, request()) == (tickets.OK, DATA)


def test_who_takes_nothing_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "STALLED_S", 0.3)
    big = tmp_path / "big"
    big.write_bytes(bytes(4 << 20))
    made = Serving(listen(HOST), lambda _: os.open(big, os.O_RDONLY), lambda: (KEY,), lambda: NOW_S)
    made.start()
    stuck = []
    for _ in range(5):
        link = socket.socket()
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        host, _, port = made.address.rpartition(":")
        link.connect((host, int(port)))
        link.sendall(tickets.pack_request(request()))
        stuck.append(link)
    with connect(made) as link:
        assert answer(link, request(size=1_000)) == (tickets.OK, bytes(1_000))
    wait_for(lambda: not made._open, "the stuck ones are let go")
    for link in stuck:
        link.close()
    made.close()


def test_one_host_has_so_many_connections_and_no_more(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CONNECTIONS_PER_HOST_MAX", 3)
    links = [connect(server) for _ in range(3)]
    wait_for(lambda: len(server._open) == 3, "three are served")
    with connect(server) as fourth:
        assert everything(fourth) == b""
    links[0].close()
    wait_for(lambda: len(server._open) == 2, "one has gone")
    with connect(server) as link:
        assert answer(link, request()) == (tickets.OK, DATA)
    for link in links:
        link.close()


# ---- the client


@contextmanager
def fake(reply: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that reads a request and then does as it is told; its address."""
    listener = listen(HOST)
    listener.listen(16)

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                try:
                    while link.recv(tickets.REQUEST_BYTES, socket.MSG_WAITALL):
                        reply(link)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield "{}:{}".format(*listener.getsockname())
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def fetch(held: Holdings, wish: Source) -> str:
    """Fetch once; return why it failed, "" where it is here."""
    line = Line(held)
    try:
        line.fetch(wish)
    except Unfit as unfit:
        return unfit.why
    finally:
        line.close()
    return ""


def test_what_is_fetched_is_here_whole(server: Serving, held: Holdings) -> None:
    line = Line(held)
    for _ in range(3):  # over one connection
        line.fetch(source(server.address))
        assert held.path(NAME).read_bytes() == DATA
    assert len(server._open) == 1
    line.close()


def test_a_connection_that_was_closed_meanwhile_is_made_anew(
    server: Serving, held: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REQUEST_S", 0.1)
    line = Line(held)
    line.fetch(source(server.address))
    wait_for(lambda: not server._open, "it was closed for being idle")
    held.forget(NAME)
    line.fetch(source(server.address))
    assert held.has(NAME)
    line.close()


def test_what_a_peer_says_wrongly_is_not_believed(held: Holdings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "REPLY_S", 0.5)
    monkeypatch.setattr(fetching, "CHUNK_S", 1.0)
    ok = tickets.pack_reply(tickets.OK, len(DATA))
    lies: dict[str, tuple[str, Callable[[socket.socket], None]]] = {
        "other bytes": (WRONG, lambda link: link.sendall(ok + b"x" + DATA[1:])),
        "another size": (WRONG, lambda link: link.sendall(tickets.pack_reply(tickets.OK, 5) + DATA[:5])),
        "more than a chunk": (DEAD, lambda link: link.sendall(struct.pack(">4sBI", tickets.MAGIC, 0, 1 << 31))),
        "nonsense": (DEAD, lambda link: link.sendall(b"HTTP/1.1 200 OK\r\n\r\n")),
        "the half": (DEAD, lambda link: _say(link, ok + DATA[:150_000], link.close)),
        "nothing": (DEAD, lambda link: link.close()),
        "silence": (DEAD, lambda _: time.sleep(0.8)),
        "silence in the middle": (SLOW, lambda link: _say(link, ok + DATA[:10], lambda: time.sleep(0.8))),
        "drop by drop": (SLOW, lambda link: _say(link, ok, lambda: _drip(link))),
        "gone": (GONE, lambda link: link.sendall(tickets.pack_reply(tickets.GONE, 0))),
        "expired": (LATE, lambda link: link.sendall(tickets.pack_reply(tickets.EXPIRED, 0))),
    }
    for what, (why, reply) in lies.items():
        with fake(reply) as address:
            assert fetch(held, source(address)) == why, what
        assert NAME not in held and held.used_bytes == 0, what
        assert not [path for path in held.path(NAME).parents[2].rglob("*") if path.is_file()], what


def _say(link: socket.socket, data: bytes, then: Callable[[], None]) -> None:
    link.sendall(data)
    then()


def _drip(link: socket.socket) -> None:
    for byte in DATA[:100]:
        link.sendall(bytes([byte]))
        time.sleep(0.02)


def test_nobody_there_and_no_address_are_dead(held: Holdings) -> None:
    listener = listen(HOST)
    address = "{}:{}".format(*listener.getsockname())
    listener.close()
    for nowhere in (address, "127.0.0.1:0", "no.such.host.invalid:1", "nonsense", "127.0.0.1:99999999"):
        assert fetch(held, source(nowhere)) == DEAD


def test_two_lanes_that_fetch_one_chunk_leave_one(server: Serving, held: Holdings) -> None:
    woken = threading.Event()
    lanes = Lanes(held, 4, woken.set)
    for _ in range(8):
        lanes.start(source(server.address))
    ended: list[fetching.Fetched] = []

    def all_ended() -> bool:
        ended.extend(lanes.done())
        return len(ended) == 8

    wait_for(all_ended, "all have ended")
    assert not [one for one in ended if one.bad or one.failure] and lanes.free == 4
    assert held.used_bytes == len(DATA) and held.path(NAME).read_bytes() == DATA
    lanes.close()


SERVER = """
import os, sys, time
from beo.bulk import serving
made = serving.Serving(serving.listen("127.0.0.1"), lambda _: os.open(sys.argv[1], os.O_RDONLY),
                       lambda: (bytes.fromhex(sys.argv[2]),), lambda: 1e6)
serving.os.sendfile = lambda out, fd, at, size, real=os.sendfile: (time.sleep(0.05), real(out, fd, at, 4096))[1]
made.start()
print(made.address, flush=True)
time.sleep(60)
"""


def test_a_peer_that_is_killed_in_the_middle_is_noticed_at_once(tmp_path: Path, held: Holdings) -> None:
    path = tmp_path / "data"
    path.write_bytes(DATA)
    words = [sys.executable, "-c", SERVER, str(path), KEY.hex()]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    address = process.stdout.readline().strip()
    outcome: list[str] = []
    thread = threading.Thread(target=lambda: outcome.append(fetch(held, source(address))))
    thread.start()
    aside = held.path(NAME).parents[2] / "aside"
    wait_for(lambda: any(file.stat().st_size for file in aside.iterdir()), "some of it has come")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    thread.join(3.0)
    assert outcome == [DEAD] and NAME not in held and held.used_bytes == 0
