"""The pair plane: who is listened to, over which paths, and what is said of those who are not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from beo import birth, votes, wire
from beo.headnode.link import Link
from beo.votes import Cfg, Hello, PairMessage, Prepare, Promise
from tests.cluster import wait_for

PUBLIC, SECRET = wire.new_keypair()


def hello(name: str, **words: object) -> Hello:
    """How a head introduces itself."""
    made = Hello(name, "c" * 32, "life", 1, 1, "0.1.0", "idle", 0)
    return msgspec.structs.replace(made, **words)


@dataclass
class Head:
    """One end: its link, and what it says of itself."""

    hello: Hello
    addresses: tuple[str, ...]
    link: Link = field(init=False)

    def say(self, message: PairMessage) -> None:
        self.link.send(message)

    def heard(self) -> list[PairMessage]:
        return [message for message in self.link.receive() if not isinstance(message, Hello)]


class Pair:
    """Two heads on loopback, made as a test wants them."""

    def __init__(self) -> None:
        self.heads: list[Head] = []

    def add(self, introduction: Hello, paths: int = 1, secret: str = SECRET) -> Head:
        addresses = tuple(birth.free_address("127.0.0.1") for _ in range(paths))
        head = Head(introduction, addresses)
        head.link = Link(addresses, PUBLIC, secret, lambda: head.hello)
        self.heads.append(head)
        return head

    def until_heard(self, speaker: Head, message: PairMessage, listener: Head) -> None:
        """Let one say something again and again until the other hears it."""

        def heard() -> bool:
            speaker.say(message)
            time.sleep(0.01)
            return message in listener.heard()

        wait_for(heard, "the message")

    def never_heard(self, speaker: Head, message: PairMessage, listener: Head) -> None:
        """Let one say something until the other says why it doesn't listen; it must not have heard it."""

        def shut() -> bool:
            speaker.say(message)
            time.sleep(0.01)
            assert not listener.heard()
            return bool(listener.link.why)

        wait_for(shut, "the other to say why it doesn't listen")


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for head in made.heads:
        head.link.close()


PROMISE = Promise("A", 4, Cfg(3, 1, ("A", "B"), (("n1/x",),)))


def test_two_heads_hear_each_other(pair: Pair) -> None:
    a, b = pair.add(hello("A")), pair.add(hello("B"))
    a.link.connect(b.addresses)
    b.link.connect(a.addresses)
    pair.until_heard(a, PROMISE, b)
    pair.until_heard(b, Prepare("B", 4), a)


def test_one_of_two_paths_is_enough(pair: Pair) -> None:
    a, b = pair.add(hello("A")), pair.add(hello("B"), paths=2)
    a.link.connect((birth.free_address("127.0.0.1"), b.addresses[1]))  # nobody is at the first
    pair.until_heard(a, PROMISE, b)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"cluster": "d" * 32}, "of another cluster"),
        ({"head": "B"}, "calls itself B, too"),
        ({"role": "primary", "entry_format": 2, "version": "9.1"}, "install beo 9.1 here"),
    ],
)
def test_who_is_not_listened_to_is_told_by_name_and_cure(pair: Pair, words: dict[str, object], why: str) -> None:
    a, b = pair.add(hello("A", **words)), pair.add(hello("B"))
    a.link.connect(b.addresses)
    pair.never_heard(a, PROMISE, b)
    assert why in b.link.why


def test_an_older_primary_and_a_newer_standby_hear_each_other(pair: Pair) -> None:
    a, b = pair.add(hello("A", role="primary")), pair.add(hello("B", entry_format=2, state_format=2))
    a.link.connect(b.addresses)
    b.link.connect(a.addresses)
    pair.until_heard(a, PROMISE, b)
    pair.until_heard(b, PROMISE, a)


def test_a_head_is_listened_to_again_when_it_is_mended(pair: Pair) -> None:
    a, b = pair.add(hello("A", role="primary", entry_format=2)), pair.add(hello("B"))
    a.link.connect(b.addresses)
    pair.never_heard(a, PROMISE, b)
    a.hello = hello("A")
    pair.until_heard(a, PROMISE, b)
    assert not b.link.why


def test_nobody_without_the_heads_key_is_heard(pair: Pair) -> None:
    a, b = pair.add(hello("A"), secret=wire.new_keypair()[1]), pair.add(hello("B"))
    a.link.connect(b.addresses)
    for _ in range(30):
        a.say(PROMISE)
        time.sleep(0.01)
        assert not b.link.receive()
    assert not b.link.why


def test_what_is_no_message_of_a_head_is_said_and_nothing_else(pair: Pair) -> None:
    b = pair.add(hello("B"))
    context = wire.new_context()
    stranger = wire.Connection(b.addresses[0], PUBLIC, SECRET, context)

    def told() -> bool:
        for body in (b"", b"\xff" * 9, votes.encode(PROMISE)[:-2], msgspec.msgpack.encode(["Submit", 1])):
            stranger.send(0, body, 0.1)
        assert not b.heard()
        return "can't read" in b.link.why

    wait_for(told, "it to be said")
    stranger.close()
    context.destroy(linger=0)
