"""The client's end against a head that says what no good head would: answers twice, late, out of order, or none."""

import os
from collections.abc import Iterator

import pytest

from beo import follow, records, wire
from beo import messages as ms
from beo.errors import Conflict, Refused
from beo.follow import Console, Source

HEAD_PUBLIC, HEAD = wire.new_keypair()
PUBLIC, SECRET = wire.new_keypair()
ENOUGH_S = 10.0


class FakeHead:
    """A server that a test answers by hand."""

    def __init__(self) -> None:
        self.server = wire.Server("127.0.0.1:0", HEAD, lambda key: key == PUBLIC)
        self.poller = wire.Poller()
        self.server.register(self.poller)
        self.context = wire.new_context()
        self.asked: list[tuple[bytes, int, ms.BulkRequest]] = []

    def open(self) -> wire.Connection:
        return wire.Connection(self.server.address, HEAD_PUBLIC, SECRET, self.context)

    def question(self, console: Console, kind: type[ms.BulkRequest]) -> tuple[bytes, int, ms.BulkRequest]:
        """Let both sides work until something of this kind is asked."""
        for _ in range(int(ENOUGH_S / 0.01)):
            for number, (_, _, message) in enumerate(self.asked):
                if isinstance(message, kind):
                    return self.asked.pop(number)
            assert console.step(0.005) == []
            self.poller.poll(5)
            for peer, _, request, body in self.server.receive():
                self.asked.append((peer, request, ms.bulk_to_head.decode(body)))
        raise AssertionError(f"no {kind.__name__}")

    def say(self, peer: bytes, request: int, message: ms.BulkAnswer) -> None:
        assert self.server.send(peer, request, ms.encode(message))

    def close(self) -> None:
        self.server.close()
        self.context.destroy(linger=0)


@pytest.fixture
def head() -> Iterator[FakeHead]:
    found = FakeHead()
    yield found
    found.close()


@pytest.fixture
def console(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    monkeypatch.setattr(follow, "POLL_S", 0.1)
    monkeypatch.setattr(follow, "OVERDUE_S", 0.1)
    found = Console(head.open, 1, 1)
    yield found
    found.close()


def line(n: int) -> bytes:
    return records.pack(0, 1, b"%d\n" % n)


def drain(console: Console) -> list[bytes]:
    found: list[bytes] = []
    while some := console.step(0.05):
        found += [record.data for record in some]
    return found


def test_an_answer_that_comes_twice_or_late_is_taken_once(head: FakeHead, console: Console) -> None:
    peer, first, _ = head.question(console, ms.Fetch)
    peer, second, fetch = head.question(console, ms.Fetch)  # the first was not answered in time
    assert second > first
    assert fetch == ms.Fetch(1, 1, 0, 0.1, follow.FETCH_BYTES)
    for request in (first, second, second, first):
        head.say(peer, request, ms.Fetched(50, line(1), False))
    assert drain(console) == [b"1\n"]
    assert console.cursor == 50
    _, third, fetch = head.question(console, ms.Fetch)
    assert isinstance(fetch, ms.Fetch)
    assert fetch.cursor == 50
    head.say(peer, second, ms.Fetched(50, line(1), True))
    assert drain(console) == []
    assert not console.ended
    _, latest, _ = head.question(console, ms.Fetch)
    head.say(peer, latest, ms.Fetched(90, line(2), True))
    assert drain(console) == [b"2\n"]
    assert console.ended
    assert latest > third


def test_a_head_that_is_busy_is_asked_again_and_a_refusal_is_told(head: FakeHead, console: Console) -> None:
    peer, request, _ = head.question(console, ms.Fetch)
    head.say(peer, request, ms.Failed(Conflict("too many readers").to_dict()))
    peer, request, _ = head.question(console, ms.Fetch)
    head.say(peer, request, ms.Failed(Refused("job 1 belongs to bob").to_dict()))
    with pytest.raises(Refused, match="belongs to bob"):
        drain(console)


def test_the_end_of_stdin_is_told_again_until_the_rank_has_it(head: FakeHead) -> None:
    source, sink = os.pipe()
    os.write(sink, b"abc")
    console = Console(head.open, 1, 1, source=Source(source))
    peer, _, piece = head.question(console, ms.Stdin)
    assert piece == ms.Stdin(1, 1, 0, b"abc", False)
    head.say(peer, 0, ms.StdinAck(1, 1, 3, False))
    os.close(sink)
    for _ in range(3):  # each of them is lost
        _, _, piece = head.question(console, ms.Stdin)
        while piece != ms.Stdin(1, 1, 3, b"", True):
            _, _, piece = head.question(console, ms.Stdin)
        head.say(peer, 0, ms.StdinAck(1, 1, 3, False))
    assert not console.input_closed
    head.say(peer, 0, ms.StdinAck(1, 1, 3, True))
    while not console.input_closed:
        console.step(0.05)
    console.close()
    os.close(source)


def test_acknowledgements_out_of_order_or_too_high_do_no_harm(head: FakeHead) -> None:
    source, sink = os.pipe()
    os.write(sink, b"abc")
    console = Console(head.open, 1, 1, source=Source(source))
    peer, _, _ = head.question(console, ms.Stdin)
    for have in (2, 1, 0, 999):
        head.say(peer, 0, ms.StdinAck(1, 1, have, False))
    head.say(peer, 0, ms.StdinAck(2, 1, 3, True))  # another job's
    console.step(0.05)
    os.write(sink, b"def")
    while True:
        _, _, piece = head.question(console, ms.Stdin)
        assert isinstance(piece, ms.Stdin)
        if b"def" in piece.data:
            break
    assert piece == ms.Stdin(1, 1, 3, b"def", False)
    assert not console.input_closed
    console.close()
    for fd in (source, sink):
        os.close(fd)
