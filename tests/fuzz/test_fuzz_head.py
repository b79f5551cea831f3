"""Spoilt bytes on both planes of a head: it never fails at any, and what it refuses leaves its state as it was."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from random import Random

import msgspec
import pytest

from beo import birth, events, records, wire
from beo import messages as ms
from beo.config import Home
from beo.ha.acts import Durable, Tick
from beo.headnode import acts
from beo.headnode.output import Output
from beo.headnode.replica import Ticked
from beo.headnode.server import Server
from beo.headnode.state import State
from tests.cluster import wait_for
from tests.fuzz.bytes import BULK, bent, dice, rounds, spoilt, traffic
from tests.world import same

PEERS = [b"peer-%d" % number for number in range(20)]
MESSAGES = 6_000
COPIES = 1_500


class Head:
    """The head's server in this process, whose answers are kept instead of sent."""

    def __init__(self, path: Path) -> None:
        home = Home(path)
        birth.make_folder(home)
        birth.make_cluster(home)
        self.server = Server(home)
        self.told: list[object] = []
        self.server._server.send = self._answered  # type: ignore[method-assign]
        self.streams = self.server._streams
        self.streams.lead(1)
        self.streams._server.send = self._answered  # type: ignore[method-assign]
        self.keys = [wire.public_of(home.secret(name)) for name in ("admin", "worker")] + ["x" * 40]
        self.boot_s = 1_000.0
        self.requests = 0
        self.server._now = lambda: self.now  # type: ignore[method-assign]
        self.server._begin()
        wait_for(self._acts, "the head to act")

    @property
    def state(self) -> State:
        """What the head knows."""
        return self.server.state

    def _acts(self) -> bool:
        self.server._hear_disk()
        return self.server._replica.head is not None

    def _answered(self, peer: bytes, request: int, body: bytes) -> bool:
        """Whatever is answered can be read."""
        told = msgspec.msgpack.decode(body)
        if told[0] != "Chunk" and request == self.requests:
            self.told.append(told)
        return True

    @property
    def now(self) -> acts.Now:
        """Time goes on with each message."""
        self.boot_s += 0.01
        return acts.Now(self.boot_s, 1_800_000_000.0 + self.boot_s)

    def say(self, random: Random, body: bytes) -> None:
        """One message of the control plane, and what follows in a turn."""
        server = self.server
        before = self.state.index
        self.requests += 1
        self.told.clear()
        server._take(random.choice(PEERS), random.choice(self.keys), self.requests, body)
        server._handle(Durable(self.state.index))
        if any(told[0] == "Failed" for told in self.told):  # type: ignore[index]
            assert self.state.index == before, "it was refused, and yet something happened"
        server._handle(Ticked(Tick()) if random.random() < 0.02 else acts.Turn())
        server._handle(Durable(self.state.index))

    def say_bulk(self, random: Random, body: bytes) -> None:
        """One message of the bulk plane, as its loop takes it."""
        self.requests += 1
        peer, key = random.choice(PEERS), random.choice(self.keys)
        self.streams._server.receive = lambda: [(peer, key, self.requests, body)]  # type: ignore[method-assign]
        self.streams._turn()


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    made = Head(tmp_path / "beo")
    yield made
    made.streams._output.close()
    made.streams._server.close()
    made.streams._waker.close()
    made.server._server.close()
    made.server._link.close()
    made.server._journal.close()
    made.server._keep.close()
    made.server._waker.close()


def test_no_spoilt_message_harms_the_control_plane(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    to_head, _ = traffic()
    random = dice("head")
    samples = [ms.encode(message) for message in to_head]
    for message in to_head:  # a cluster with nodes and jobs first: there is more to be broken
        head.say(random, ms.encode(message))
    assert head.state.nodes and head.state.jobs
    for body in chain(spoilt("control", samples, MESSAGES), bent("control", list(to_head), MESSAGES)):
        head.say(random, body)
    core = head.server._replica.head
    assert core
    assert not core._outbox
    assert len(core._sessions) <= len(head.state.nodes) <= 4_096
    assert len(core._waiters) <= 100_000 and len(core._waiters._deadlines) <= rounds(MESSAGES)
    assert len(core._attached_s) <= len(head.state.jobs)
    assert same(head.state, State.decode(head.state.encode()))
    replayed, journal = State(), head.server._journal
    wait_for(lambda: journal.durable_index == head.state.index, "all to be durable")
    while replayed.index < head.state.index:
        for entry in journal.entries(replayed.index + 1, 10_000):
            replayed.apply(events.decode(entry.data))
    assert same(head.state, replayed)


def test_no_spoilt_message_harms_the_bulk_plane(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    random = dice("streams")
    for message in traffic()[0]:
        head.say(random, ms.encode(message))
    samples = [ms.encode(message) for message in (*BULK, *CHUNKS)]
    for body in chain(spoilt("bulk", samples, MESSAGES), bent("bulk", [*BULK, *CHUNKS], MESSAGES // 4)):
        head.say_bulk(random, body)
    assert "failed" not in caplog.text, caplog.text
    streams = head.streams
    assert len(streams._readers) <= 64 * len(PEERS)
    assert not streams._acks
    assert len(streams._feeders) <= 10_000 and len(streams._agents) <= 16_384


def test_no_spoilt_copy_harms_the_store_of_a_head_that_follows(
    head: Head, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random = dice("copies")
    leader = Output(tmp_path / "leader")
    words: list[ms.Copy | ms.Offer | ms.Exported] = [ms.Exported(1, ((1, 1, "o"), (2, 1, "e")))]
    for job in range(1, 5):
        for number in range(30):
            before = leader.mark(job, 1)
            have = leader.have(job, 1, "n1")
            leader.append(job, 1, "n1", have, records.pack(0, 1, b"line %d" % number))
            data, _ = leader.blocks(job, 1, *before, 1_000)
            words.append(ms.Copy(1, (ms.Piece(job, 1, *before, data, random.choice((0, before[1]))),)))
        words.append(ms.Offer(1, job, 0, ()))
        words.append(ms.Offer(1, job, 1, ((job, 1, *leader.mark(job, 1)),), True))
    streams = head.streams
    streams.follow(1)
    head.keys = [wire.public_of(streams._secret)]
    samples, taken = [ms.encode(word) for word in words], 0
    for count, body in enumerate(chain(spoilt("copies", samples, COPIES), bent("copies", words, COPIES))):
        if count % 20 == 0:
            taken += sum(streams._output.size(*key) for key in streams._output.files())
            streams._taker.epoch = 1  # a spoilt one may have been of an epoch beyond all others
        head.say_bulk(random, body)
    assert "failed" not in caplog.text and "Traceback" not in caplog.text, caplog.text
    store, again = streams._output, Output(streams._output.folder)
    assert taken > 0
    for key in store.files():
        assert store.mark(*key) == again.mark(*key), "what it holds is no file that can be read"
    streams._taker.epoch = 0
    for word in words:  # and the leader's own words make it what it should be
        head.say_bulk(random, ms.encode(word))
    for job in range(1, 5):
        for _ in range(3):
            piece = ms.Piece(job, 1, 0, 0, leader.path(job, 1).read_bytes())
            head.say_bulk(random, ms.encode(ms.Copy(1, (piece,))))
        assert streams._output.path(job, 1).read_bytes().startswith(leader.path(job, 1).read_bytes())


def test_no_spoilt_answer_of_the_other_head_harms_the_leader(head: Head, caplog: pytest.LogCaptureFixture) -> None:
    random = dice("copied")
    streams = head.streams
    for message in traffic()[0]:
        head.say(random, ms.encode(message))
    other = Other()
    streams.lead(1, "127.0.0.1:1", True)
    streams._turn()
    assert streams._connection
    streams._connection.close()
    streams._poller = wire.Poller()
    streams._connection = other  # type: ignore[assignment]
    words: list[ms.Copied | ms.Wanted] = []
    for job in range(1, 5):
        chunk = ms.Chunk("n1", "n1-1", job, 1, 0, records.pack(0, 1, b"line"))
        streams._handle(PEERS[0], head.keys[1], 0, ms.encode(chunk))
        end, chain_there = streams._output.mark(job, 1)
        held = ms.Held(job, 1, end)
        parted = ms.Held(job, 1, 0, ((end + 9, 5), (end, chain_there), (0, 0)))
        words += [ms.Copied(1, 7, (held, parted)), ms.Copied(1, 7, (held,), "full")]
        words += [ms.Wanted(1, 7, streams._giver._session + job, job, (parted,), ((job, 1, "o"),))]  # type: ignore[union-attr]
    samples = [ms.encode(word) for word in words]
    for body in chain(spoilt("copied", samples, COPIES), bent("copied", words, COPIES)):
        other.heard.append(body)
        streams._turn()
        lag = streams.lag()
        assert lag.missing_bytes >= -1 and lag.stalled_s >= 0
    assert "failed" not in caplog.text and "Traceback" not in caplog.text, caplog.text
    for job in range(1, 5):
        assert streams._shown(job, 1) <= streams._output.end(job, 1)
    streams._connection = None


class Other:
    """A connection to another head that takes everything and says what it is told to."""

    address = "127.0.0.1:1"
    renewed = refused = mistaken = False
    stranger = b""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def send(self, request: int, body: bytes) -> bool:
        """Take a message: one that can be read."""
        ms.bulk_to_head.decode(body)
        return True

    def receive(self) -> tuple[int, bytes] | None:
        """Give the next message."""
        return (0, self.heard.pop(0)) if self.heard else None


CHUNKS = [ms.Chunk("n1", "n1-1", job, 1, 0, b"\0\0\0\0\1\0\0\0\5hello") for job in range(1, 9)] + [
    ms.Fetch(job, 1, 0, 0.0) for job in range(1, 9)
]
