"""An agent between two heads: its vote, its signs of life to both, and a take-over that no job notices."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beo import birth, door, local, machines, records, votes, wire
from beo import messages as ms
from beo.config import Home
from beo.spec import JobSpec
from beo.worker import core, remains
from beo.worker.agent import Agent
from beo.worker.heads import HEADS_MAX, Heads
from tests.fake_head import FakeHead

ENOUGH_S = 10.0
LEASE_S = 60.0
CFG = votes.Cfg(2, 1, ("B",), (("n1/x",),))
ME = votes.Present("n1/nonce", "n1", "r7")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[FakeHead, FakeHead]]:
    first = FakeHead(tmp_path)
    second = FakeHead(tmp_path, first)
    yield first, second
    for head in (first, second):
        head.stop()


# ---- the vote


class Voter:
    """An agent's voice alone, in a thread."""

    def __init__(self, *heads: FakeHead, me: votes.Present = ME) -> None:
        self.context = wire.new_context()
        self.poller = wire.Poller()
        secret = heads[0].home.secret("worker")
        self.heads = Heads(
            [head.address for head in heads],
            lambda address: wire.Connection(address, heads[0].public, secret, self.context),
            self.poller,
            me,
        )
        self.granted: list[object] = []
        self.stopping = False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while not self.stopping:
            if self.heads.renewed():
                self.heads.show()
            self.poller.poll(10)
            self.granted += [message for _, message in self.heads.receive()]

    def close(self) -> None:
        self.stopping = True
        self.thread.join()
        self.heads.close()
        self.context.destroy(linger=0)


@pytest.fixture
def voter(pair: tuple[FakeHead, FakeHead]) -> Iterator[Voter]:
    for head in pair:
        for kind in (votes.Present, votes.Promise, votes.Accepted, votes.Granted, votes.Refuse):
            head.on(kind, None)
    found = Voter(*pair)
    for head in pair:
        head.wait_for(lambda head=head: ME in head.received, ENOUGH_S)  # type: ignore[misc]
    yield found
    found.close()


def ballot(head: FakeHead, question: object) -> object:
    """What the voter answers this head."""
    before = len(head.received)
    head.say(question)
    kinds = votes.Promise | votes.Accepted | votes.Granted | votes.Refuse
    answers: list[object] = []

    def answered() -> bool:
        answers[:] = [word for word in head.received[before:] if isinstance(word, kinds)]
        return bool(answers)

    head.wait_for(answered, ENOUGH_S)
    return answers[0]


def test_a_voter_answers_each_head_where_it_asked(pair: tuple[FakeHead, FakeHead], voter: Voter) -> None:
    first, second = pair
    assert ballot(first, votes.Prepare("A", 1, pre=True)) == votes.Promise("n1/nonce", 1, None, pre=True)
    assert ballot(second, votes.Prepare("B", 2)) == votes.Promise("n1/nonce", 2, None)
    assert ballot(first, votes.Prepare("A", 1)) == votes.Refuse("n1/nonce", 1, 2)
    assert ballot(second, votes.Accept("B", CFG)) == votes.Accepted("n1/nonce", 2, 1)
    assert ballot(first, votes.Prepare("A", 3)) == votes.Promise("n1/nonce", 3, CFG)
    assert voter.granted == [votes.Accept("B", CFG)]


def test_a_lease_given_to_one_head_keeps_the_other_out_until_it_ends(
    pair: tuple[FakeHead, FakeHead], voter: Voter
) -> None:
    first, second = pair
    given_s = time.monotonic()
    assert ballot(first, votes.Lease("A", 1, 7.5, 0.4)) == votes.Granted("n1/nonce", 1, 7.5)
    answer = ballot(second, votes.Prepare("B", 2))
    if time.monotonic() - given_s < 0.4:
        assert answer == votes.Refuse("n1/nonce", 2, 1, lease=True)
    while answer != votes.Promise("n1/nonce", 2, None):
        assert time.monotonic() - given_s < ENOUGH_S
        answer = ballot(second, votes.Prepare("B", 2))
    assert time.monotonic() - given_s >= 0.4, "not before the holder counts it as over"
    assert ballot(first, votes.Lease("A", 1, 8.0, 0.4)) == votes.Refuse("n1/nonce", 1, 2)


def test_no_more_heads_are_connected_to_than_there_can_be(pair: tuple[FakeHead, FakeHead], voter: Voter) -> None:
    voter.heads.learn(["nonsense", "", *(f"127.0.0.1:{port}" for port in range(1, 100))])
    assert len(list(voter.heads)) == HEADS_MAX


# ---- a whole agent


class Store:
    """What a head keeps of output: the bytes of one spool, in order."""

    def __init__(self) -> None:
        self.data = b""

    def take(self, chunk: object) -> ms.ChunkAck:
        assert isinstance(chunk, ms.Chunk)
        if chunk.offset <= len(self.data):
            self.data = self.data[: chunk.offset] + chunk.data
        return ms.ChunkAck(chunk.job, chunk.attempt, len(self.data))

    @property
    def text(self) -> str:
        return b"".join(record.data for record in records.unpack(self.data)).decode()


def acts_as_primary(head: FakeHead, epoch: int, heads: tuple[ms.HeadView, ...] = ()) -> Store:
    """Let a head answer as the one that acts; its store of output."""
    store = Store()
    quietly(head)

    def welcome(word: object) -> ms.Welcome:
        assert isinstance(word, ms.Join | ms.Ping)
        return ms.Welcome(epoch, word.incarnation, head.bulk, heads)

    def pong(word: object) -> list[object]:
        assert isinstance(word, ms.Ping)
        return [welcome(word), ms.Pong(epoch, word.incarnation, word.t_ns, LEASE_S, 0)]

    head.on(ms.Join, welcome)
    head.on(ms.Ping, pong)
    head.on(ms.Chunk, store.take)
    return store


def stands_by(head: FakeHead, primary: str) -> None:
    """Let a head answer as one that doesn't act."""
    quietly(head)
    for kind in (ms.Join, ms.Ping, ms.Chunk):
        head.on(kind, ms.Elsewhere(primary, 0))


def quietly(head: FakeHead) -> None:
    for kind in (
        votes.Present,
        votes.Accepted,
        votes.Granted,
        ms.Health,
        ms.VaultsAre,
        ms.BulkHello,
        ms.Ended,
        ms.Gone,
        ms.Delivered,
    ):
        head.on(kind, None)


class Running:
    """A real agent with real wardens, in a thread of this process."""

    def __init__(self, home: Home) -> None:
        birth.make_folder(home)
        home.toml.write_text("[worker]\nheartbeat_s = 60.0\n")  # whatever is said in a test is said at once, or never
        self.agent = Agent(home, "n1", 2, 1 << 30, "r7")
        self.thread = threading.Thread(target=self.agent.run)
        self.thread.start()

    @property
    def incarnation(self) -> str:
        return self.agent._core.incarnation

    def is_settled(self) -> bool:
        """Whether it has joined, also with what it learned of itself meanwhile: it would join once more for that."""
        core = self.agent._core
        return bool(core._lease_ns and core._learned and core._joined)

    def close(self) -> None:
        self.agent.stop(signal.SIGINT)
        self.thread.join()
        self.agent.close()
        remains.remove(self.agent._cluster.cluster, ["n1"])


@pytest.fixture
def run(pair: tuple[FakeHead, FakeHead]) -> Iterator[Callable[[], Running]]:
    found: list[Running] = []

    def start() -> Running:
        found.append(Running(pair[0].home))
        return found[0]

    yield start
    for running in found:
        running.close()


def order(running: Running, head: FakeHead, epoch: int, script: str) -> ms.Start:
    """A START of job 7."""
    spec = JobSpec(argv=("sh", "-c", script), cwd="/", requeue="confirm")
    peer = ms.Peer("n1", running.incarnation, "127.0.0.1:1", "k" * 40, 0, 1)
    who = ("ada", 0, 0, ())
    return ms.Start(epoch, running.incarnation, 100, 7, 1, "c" * 32, "nonce", *who, spec, (peer,))


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def views(*heads: FakeHead) -> tuple[ms.HeadView, ...]:
    return tuple(ms.HeadView(name, head.address, head.bulk, ()) for name, head in zip("AB", heads, strict=False))


def test_a_take_over_is_not_noticed_by_a_job_and_its_output_is_whole_at_the_new_head(
    pair: tuple[FakeHead, FakeHead], run: Callable[[], Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "REPORT_S", 1e9)  # told again because of the take-over, not of the time
    first, second = pair
    old = acts_as_primary(first, 1, views(*pair))
    stands_by(second, first.address)
    running = run()
    until(running.is_settled)
    until(lambda: second.messages(votes.Present) or second.messages(ms.Ping))
    (present,) = set(first.messages(votes.Present) + second.messages(votes.Present))
    assert isinstance(present, votes.Present)
    assert present.voter.startswith("n1/") and (present.node, present.rack) == ("n1", "r7")

    go = tmp_path / "go"
    script = f"echo one; until [ -e {go} ]; do sleep 0.02; done; echo two"
    first.say(order(running, first, 1, script))
    until(lambda: old.text == "one\n")
    first.stop()
    assert not second.messages(ms.Chunk)

    new = acts_as_primary(second, 2, views(*pair))
    asked = len(second.received)
    second.say(votes.Lease("B", 2, 1.0, 0.6))
    until(lambda: new.text == "one\n")
    adopted = [word for word in second.received[asked:] if isinstance(word, ms.Ping)]
    assert isinstance(adopted[0], ms.Ping) and adopted[0].running == ((7, 1),), "told at once what runs"

    first.received.clear()
    quietly(first)
    acts_as_primary(first, 1)
    first.start()  # it is back, and doesn't know yet
    first.wait_for(lambda: bool(first.messages(ms.Ping)), ENOUGH_S)
    first.say(ms.Kill(1, running.incarnation, 7, 1, "by the old one", 0.0))
    first.say(ms.Dead(1, running.incarnation))
    go.touch()
    until(lambda: second.messages(ms.Ended))
    (ended,) = set(second.messages(ms.Ended))
    assert isinstance(ended, ms.Ended) and [rank.status for rank in ended.result.ranks] == [0]
    assert new.text == "one\ntwo\n" and not first.messages(ms.Chunk)
    assert not first.messages(ms.Ended), "the end is told to the head that acts"


def test_what_ended_while_nobody_acted_is_told_to_the_one_that_takes_over(
    pair: tuple[FakeHead, FakeHead], run: Callable[[], Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "REPORT_S", 1e9)
    first, second = pair
    acts_as_primary(first, 1)
    stands_by(second, first.address)
    running = run()
    until(running.is_settled)
    first.say(order(running, first, 1, "exit 3"))
    until(lambda: first.messages(ms.Ended))
    first.freeze()
    acts_as_primary(second, 2)
    second.say(votes.Accept("B", CFG))
    until(lambda: second.messages(ms.Ended))
    second.say(ms.Committed(2, 7, 1))
    until(lambda: not running.agent._core.held)
    first.thaw()


@pytest.mark.root
def test_who_knocked_while_a_head_died_is_let_in_by_the_other(
    pair: tuple[FakeHead, FakeHead], run: Callable[[], Running]
) -> None:
    first, second = pair
    acts_as_primary(first, 1)
    first.on(ms.Vouch, None)
    stands_by(second, first.address)
    running = run()
    until(running.is_settled)
    names: list[str] = []
    visitor = threading.Thread(target=lambda: names.append(door.knock(str(first.home.path), "k" * 40)))
    visitor.start()
    until(lambda: first.messages(ms.Vouch))
    first.stop()
    acts_as_primary(second, 2)
    second.on(ms.Vouch, lambda word: ms.Vouched(2, word.incarnation, word.visitor, "ada"))  # type: ignore[attr-defined]
    second.say(votes.Lease("B", 2, 1.0, 0.6))
    visitor.join()
    assert names == ["ada"]


def test_a_head_that_joins_the_cluster_is_connected_to_and_written_down(
    pair: tuple[FakeHead, FakeHead], run: Callable[[], Running]
) -> None:
    first, second = pair
    known = first.home.cluster()
    first.home.write_cluster(type(known)(known.cluster, (first.address,), known.key, (first.bulk,)))
    acts_as_primary(first, 1, views(*pair))
    stands_by(second, first.address)
    run()
    until(lambda: second.messages(votes.Present) or second.messages(ms.Ping))
    until(lambda: first.home.cluster() == known)


def test_a_head_that_only_another_one_knows_is_found_by_its_word(
    pair: tuple[FakeHead, FakeHead], run: Callable[[], Running]
) -> None:
    first, second = pair
    known = first.home.cluster()
    first.home.write_cluster(type(known)(known.cluster, (first.address,), known.key, (first.bulk,)))
    stands_by(first, second.address)
    acts_as_primary(second, 2, views(*pair))
    running = run()
    until(running.is_settled)
    assert running.agent._core.primary == second.address


def test_each_agent_process_is_another_voter(pair: tuple[FakeHead, FakeHead], run: Callable[[], Running]) -> None:
    first, second = pair
    acts_as_primary(first, 1)
    stands_by(second, first.address)
    names = []
    for _ in range(2):
        first.received.clear()
        running = run()
        until(lambda: first.messages(votes.Present))
        (present,) = first.messages(votes.Present)[:1]
        assert isinstance(present, votes.Present)
        names.append(present.voter)
        running.close()
        running.close = lambda: None  # type: ignore[method-assign]
    assert names[0] != names[1] and all(name.startswith("n1/") for name in names)


def test_where_a_machine_stands_is_said_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    local.write_plan(home, local.Plan(1, 1, serves=False, name="pc2"))
    plans: list[local.Plan] = []

    def stay(home: Home, plan: local.Plan) -> None:
        plans.append(plan)
        local.write_plan(home, plan)
        raise InterruptedError

    monkeypatch.setattr(machines, "stay", stay)
    for rack in (None, "r7", None, ""):
        with pytest.raises(InterruptedError):
            machines.join(home, "", "", "", None, print, True, rack)
    assert [plan.rack for plan in plans] == ["", "r7", "r7", ""]
    told = [local._daemons(home, plan)[1][0].argv[-2:] for plan in plans]
    assert told[1] == ("--rack", "r7") and told[0] == told[3] == ("--slots", "1")
