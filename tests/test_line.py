"""A client of two heads: which one it asks, and that nobody notices when the other one begins to act."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beo import client, config, contact, follow, records, wire
from beo import messages as m
from beo.client import Cluster
from beo.errors import Internal, NoHead, Refused
from beo.follow import Console
from beo.submission import new_spec
from tests.fake_head import FakeHead, view

SPEC = new_spec(["true"], cwd="/")
INFO = m.InfoIs("c", "A", 1, "ada", "0", "")
ENOUGH_S = 20.0  # what a busy machine may take for what takes nothing


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[FakeHead, FakeHead]]:
    first = FakeHead(tmp_path)
    second = FakeHead(tmp_path, first)
    yield first, second
    for head in (first, second):
        head.thaw()
        head.stop()


@pytest.fixture
def cluster(pair: tuple[FakeHead, FakeHead]) -> Iterator[Cluster]:
    with Cluster(pair[0].home) as cluster:
        yield cluster


def elsewhere(head: FakeHead, other: str) -> None:
    """Let a head answer everything by naming another, as one that doesn't act."""
    for kind in (m.Info, m.Submit, m.WaitJobs, m.ListNodes, m.ListEvents, m.Fetch, m.Stdin, m.Enrol):
        head.on(kind, m.Elsewhere(other, 1))


def later(delay_s: float, act: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(delay_s, act)
    timer.start()
    return timer


# ---- questions


def test_the_head_that_answered_last_is_asked_and_the_other_is_left_alone(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster
) -> None:
    first, second = pair
    elsewhere(first, second.address)
    second.on(m.Info, INFO)
    for _ in range(3):
        assert cluster.info(ENOUGH_S) == INFO
    assert (len(first.received), len(second.received)) == (1, 3)


def test_a_head_that_is_there_is_asked_alone(pair: tuple[FakeHead, FakeHead], cluster: Cluster) -> None:
    first, second = pair
    first.on(m.Info, INFO)
    assert cluster.info(ENOUGH_S) == INFO and not second.received


@pytest.mark.parametrize("harm", ["stop", "freeze"])
def test_a_dead_or_stopped_head_is_done_without(pair: tuple[FakeHead, FakeHead], cluster: Cluster, harm: str) -> None:
    first, second = pair
    first.on(m.Info, INFO)
    elsewhere(second, first.address)
    second.on(m.Submit, m.SubmittedIs(7))
    cluster.info(ENOUGH_S)
    getattr(first, harm)()
    first.on(m.Submit, None)
    assert cluster.submit(SPEC, patience_s=ENOUGH_S) == 7


@pytest.mark.parametrize("harm", ["stop", "freeze"])
def test_a_head_that_was_never_there_is_done_without(pair: tuple[FakeHead, FakeHead], harm: str) -> None:
    first, second = pair
    first.on(m.Info, None)  # what it says once it goes on, when nobody listens any more
    getattr(first, harm)()
    second.on(m.Info, INFO)
    with Cluster(first.home) as cluster:
        assert cluster.info(ENOUGH_S) == INFO


def test_a_submission_is_sent_to_both_under_one_key_when_the_first_is_silent(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster
) -> None:
    first, second = pair
    first.on(m.Submit, None)  # its answer is lost
    second.on(m.Submit, m.SubmittedIs(3))
    assert cluster.submit(SPEC, patience_s=ENOUGH_S) == 3
    keys = {word.key for head in pair for word in head.received if isinstance(word, m.Submit)}
    assert len(keys) == 1


def test_while_nobody_acts_both_are_asked_until_one_does(pair: tuple[FakeHead, FakeHead], cluster: Cluster) -> None:
    first, second = pair
    first.stop()
    elsewhere(second, first.address)  # it has not noticed yet
    steps = [later(0.2, lambda: elsewhere(second, "")), later(0.5, lambda: second.on(m.Submit, m.SubmittedIs(4)))]
    assert cluster.submit(SPEC, patience_s=ENOUGH_S) == 4
    for step in steps:
        step.join()
    assert len(second.received) < 40, "with pauses"


def test_two_heads_that_name_each_other_are_asked_with_pauses(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster
) -> None:
    first, second = pair
    elsewhere(first, second.address)
    elsewhere(second, first.address)
    with pytest.raises(NoHead):
        cluster.info(patience_s=0.5)
    assert 2 <= len(first.received) + len(second.received) < 40


def test_where_nobody_answers_the_error_names_all_heads(pair: tuple[FakeHead, FakeHead], cluster: Cluster) -> None:
    first, second = pair
    for head in pair:
        head.stop()
    with pytest.raises(NoHead) as caught:
        cluster.info(patience_s=0.1)
    assert str(caught.value) == (
        f"no head answers at {first.address} or {second.address} (tried for 100ms): "
        "start one with 'beo up', or set BEO_DIR to the cluster that you mean"
    )


@pytest.mark.parametrize("which", [0, 1])
def test_a_refusal_by_one_head_hides_no_answer_of_the_other(pair: tuple[FakeHead, FakeHead], which: int) -> None:
    refusing, answering = pair[which], pair[1 - which]
    refusing.authorized = set()
    answering.on(m.Info, INFO)
    with Cluster(pair[0].home) as cluster:
        assert cluster.info(ENOUGH_S) == INFO
        assert cluster.info(ENOUGH_S) == INFO


def test_a_key_that_no_head_knows_is_refused(pair: tuple[FakeHead, FakeHead]) -> None:
    pair[0].home.write_secret("admin", wire.new_keypair()[1])
    with Cluster(pair[0].home) as cluster, pytest.raises(Refused, match="does not know this key"):
        cluster.info(ENOUGH_S)


def test_a_refusal_of_the_only_head_that_is_there_is_told_in_the_end(pair: tuple[FakeHead, FakeHead]) -> None:
    pair[0].stop()
    pair[1].authorized = set()
    with Cluster(pair[0].home) as cluster, pytest.raises(Refused, match=f"the head at {pair[1].address} does not know"):
        cluster.info(patience_s=1.0)


def test_an_impostor_in_the_place_of_one_head_is_done_without(pair: tuple[FakeHead, FakeHead]) -> None:
    first, second = pair
    first.stop()
    first.secret = wire.new_keypair()[1]
    first.start()
    second.on(m.Info, INFO)
    with Cluster(first.home) as cluster:
        assert cluster.info(ENOUGH_S) == INFO


def test_a_head_of_another_protocol_hides_no_answer_of_the_other(pair: tuple[FakeHead, FakeHead]) -> None:
    first, second = pair
    first.stop()
    stranger = wire.Server(first.address, first.secret, lambda key: key in first.authorized)
    stop = threading.Event()

    def serve() -> None:
        poller = wire.Poller()
        stranger.register(poller)
        while not stop.is_set():
            poller.poll(20)
            for peer, *_ in stranger.receive():
                stranger._send(peer, b"beo/99/1/9.9.9", bytes(8), b"")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        second.on(m.Info, INFO)
        with Cluster(first.home) as cluster:
            assert cluster.info(ENOUGH_S) == INFO
        elsewhere(second, first.address)
        with Cluster(first.home) as cluster, pytest.raises(Internal, match=r"9\.9\.9"):
            cluster.info(ENOUGH_S)
    finally:
        stop.set()
        thread.join()
        stranger.close()


def test_a_standby_is_asked_again_soon_while_the_head_that_it_names_is_silent(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster
) -> None:
    first, second = pair
    first.freeze()
    elsewhere(second, first.address)
    with pytest.raises(NoHead):
        cluster.info(patience_s=1.5)  # a take-over takes less, and is not to be noticed later than necessary
    assert len(second.received) >= 5, "after 0.25, 0.35, 0.45, 0.56, 0.7, 0.88, 1.1 and 1.37 s"


def test_a_long_poll_troubles_the_standby_a_few_times_only(pair: tuple[FakeHead, FakeHead], cluster: Cluster) -> None:
    first, second = pair
    first.on(m.WaitJobs, None)  # parked
    elsewhere(second, first.address)
    step = later(2.0, lambda: first.on(m.WaitJobs, m.JobsAre((view(1),))))
    began_s = time.monotonic()
    assert cluster.wait([1])[0].state == "done"
    step.join()
    asked_s = time.monotonic() - began_s + contact.RESEND_S  # on a busy machine it takes longer
    assert 1 <= len(second.received) <= asked_s / (client.WAIT_SLICE_S / 4), second.received


@pytest.mark.parametrize("harm", ["stop", "freeze"])
def test_a_long_poll_goes_on_at_the_other_head_without_a_word(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    first.on(m.WaitJobs, None)  # parked
    elsewhere(second, first.address)
    steps = [
        later(0.3, getattr(first, harm)),
        later(0.6, lambda: second.on(m.WaitJobs, m.JobsAre((view(1),)))),
    ]
    assert cluster.wait([1])[0].state == "done"
    for step in steps:
        step.join()
    assert capsys.readouterr().err == ""


def test_a_poll_that_dies_with_its_head_is_asked_again_at_once(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTHERS_S", "AGAIN_MAX_S"):
        monkeypatch.setattr(f"beo.line.{name}", 1e6)  # so it is the end of the connection that tells
    first, second = pair
    first.on(m.WaitJobs, None)
    second.on(m.WaitJobs, m.JobsAre((view(1),)))
    step = later(0.2, first.stop)
    began_s = time.monotonic()
    assert cluster.look(1, "running/1", wait_s=1e5).state == "done"
    assert time.monotonic() - began_s < ENOUGH_S
    step.join()


def test_events_are_followed_over_a_change_of_heads_without_a_gap_or_a_double(
    pair: tuple[FakeHead, FakeHead], cluster: Cluster
) -> None:
    first, second = pair
    journal = [m.EventView(n, 1, 0.0, "Submitted", n, "", "") for n in range(1, 9)]

    def page(upto: int) -> Callable[[object], object]:
        def answer(message: object) -> m.EventsAre:
            assert isinstance(message, m.ListEvents)
            rows = tuple(event for event in journal[:upto] if event.index > message.after)[:2]
            return m.EventsAre(rows, 1, rows[-1].index if rows else message.after)

        return answer

    first.on(m.ListEvents, page(5))
    second.on(m.ListEvents, page(8))
    seen: list[int] = []
    for found in cluster.follow_journal(after=1):
        seen += [event.index for event in found.events]
        if 5 in seen:
            first.stop()
        if 8 in seen:
            break
    assert seen == [2, 3, 4, 5, 6, 7, 8]


# ---- which heads there are


def only(head: FakeHead) -> None:
    """Let the user's folder know one head only."""
    known = head.home.cluster()
    head.home.write_cluster(config.ClusterFile(known.cluster, (head.address,), known.key, (head.bulk,)))


def heads_of(*heads: FakeHead) -> tuple[m.HeadView, ...]:
    return tuple(m.HeadView(name, head.address, head.bulk, ()) for name, head in zip("AB", heads, strict=False))


def test_who_knows_one_head_only_is_led_to_the_other_and_writes_it_down(pair: tuple[FakeHead, FakeHead]) -> None:
    first, second = pair
    only(first)
    elsewhere(first, second.address)
    second.on(m.Submit, m.SubmittedIs(5))
    second.on(m.Info, m.InfoIs("c", "B", 2, "ada", "0", second.bulk, heads=heads_of(first, second)))
    with Cluster(first.home) as cluster:
        assert cluster.submit(SPEC, patience_s=ENOUGH_S) == 5
    known = first.home.cluster()
    assert (known.heads, known.bulk) == ((first.address, second.address), (first.bulk, second.bulk))


def test_the_only_head_that_is_known_is_waited_for_while_nobody_acts(pair: tuple[FakeHead, FakeHead]) -> None:
    first, _ = pair
    only(first)
    elsewhere(first, "")
    step = later(0.3, lambda: first.on(m.Submit, m.SubmittedIs(6)))
    with Cluster(first.home) as cluster:
        assert cluster.submit(SPEC, patience_s=ENOUGH_S) == 6
        step.join()
        elsewhere(first, "")
        with pytest.raises(NoHead, match=f"no head answers at {first.address} "):
            cluster.request(m.Info(), patience_s=0.3)


def test_an_old_list_of_heads_is_asked_for_anew_and_a_fresh_one_is_not(
    pair: tuple[FakeHead, FakeHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    only(first)
    first.on(m.ListNodes, m.NodesAre(()))
    first.on(m.Info, m.InfoIs("c", "A", 1, "ada", "0", first.bulk, heads=heads_of(first, second)))
    with Cluster(first.home) as cluster:
        cluster.nodes()
    assert not first.messages(m.Info)
    monkeypatch.setattr(contact, "LEARN_S", -1.0)
    with Cluster(first.home) as cluster:
        cluster.nodes()
        cluster.nodes()
    assert len(first.messages(m.Info)) == 1
    assert first.home.cluster().heads == (first.address, second.address)


def test_a_list_of_heads_that_can_not_be_written_is_no_error(
    pair: tuple[FakeHead, FakeHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError

    first, second = pair
    only(first)
    first.on(m.Info, m.InfoIs("c", "A", 1, "ada", "0", first.bulk, heads=heads_of(first, second)))
    monkeypatch.setattr(config, "write_durably", fail)
    with Cluster(first.home) as cluster:
        assert cluster.info(ENOUGH_S).heads
        cluster.close()
        first.stop()
        second.on(m.Info, INFO)
        assert cluster.info(ENOUGH_S) == INFO, "it is known here all the same"


def test_a_cluster_of_one_head_keeps_the_address_that_it_is_known_by(pair: tuple[FakeHead, FakeHead]) -> None:
    first, _ = pair
    only(first)
    known = first.home.cluster()
    away = m.HeadView("A", "10.1.1.1:7420", "10.1.1.1:7421", ())
    first.on(m.Info, m.InfoIs("c", "A", 1, "ada", "0", first.bulk, heads=(away,)))
    with Cluster(first.home) as cluster:
        cluster.info(ENOUGH_S)
    assert first.home.cluster() == known


# ---- output


class Store:
    """The output of job 1, the same on both heads; a head answers with a few records at a time."""

    def __init__(self, lines: int, per_answer: int = 3) -> None:
        self.records = [records.pack(0, 1, b"line %d\n" % n) for n in range(lines)]
        self.per_answer = per_answer
        self.answers = 0

    def fetch(self, message: object) -> m.Fetched:
        assert isinstance(message, m.Fetch)
        self.answers += 1
        position, number = 0, 0
        while position < message.cursor:
            position += len(self.records[number])
            number += 1
        assert position == message.cursor, "a cursor between two records"
        data = b"".join(self.records[number : number + self.per_answer])
        cursor = position + len(data)
        return m.Fetched(cursor, data, cursor == sum(map(len, self.records)))


def text_of(console: Console) -> list[str]:
    found: list[str] = []
    while not console.ended:
        found += [record.data.decode() for record in console.step(0.5)]
    return found


def restart(head: FakeHead) -> None:
    head.stop()
    head.start()


@settings(max_examples=5)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["stop", "freeze", "elsewhere"])), max_size=3))
def test_no_line_is_lost_or_doubled_however_a_follower_changes_heads(
    tmp_path_factory: pytest.TempPathFactory, troubles: list[tuple[int, str]]
) -> None:
    """Both heads have the same bytes; after so many answers each, the one that acts is harmed, and the other acts."""
    folder = tmp_path_factory.mktemp("pair")
    heads = [FakeHead(folder)]
    heads.append(FakeHead(folder, heads[0]))
    store = Store(20)
    turns = list(troubles)
    acting = 0

    def serve(number: int) -> Callable[[object], object]:
        def answer(message: object) -> object:
            nonlocal acting
            if number != acting:
                return m.Elsewhere(heads[acting].address, 1)
            if turns and store.answers >= turns[0][0]:
                _, harm = turns.pop(0)
                store.answers = 0
                acting = 1 - acting
                if harm == "freeze":
                    heads[number].freeze()
                    later(0.5, heads[number].thaw)
                elif harm == "stop":
                    later(0.0, lambda: restart(heads[number]))
                return None if harm != "elsewhere" else m.Elsewhere(heads[acting].address, 1)
            return store.fetch(message)

        return answer

    for number, head in enumerate(heads):
        head.on(m.Fetch, serve(number))
    with Cluster(heads[0].home) as cluster:
        console = Console(cluster.bulk, 1, 1)
        try:
            assert text_of(console) == [f"line {n}\n" for n in range(20)]
        finally:
            console.close()
            time.sleep(0.05)
            for head in heads:
                head.thaw()
                head.stop()


def test_input_goes_on_at_the_other_head(pair: tuple[FakeHead, FakeHead], cluster: Cluster) -> None:
    import os

    first, second = pair
    got = bytearray()

    def take(message: object) -> m.StdinAck:
        assert isinstance(message, m.Stdin)
        if message.offset <= len(got):
            got[message.offset :] = message.data
        return m.StdinAck(1, 1, len(got), message.eof and message.offset + len(message.data) == len(got))

    elsewhere(second, first.address)
    first.on(m.Stdin, take)
    first.on(m.Fetch, None)
    source, sink = os.pipe()
    console = Console(cluster.bulk, 1, 1, source=follow.Source(source))
    deadline_s = time.monotonic() + ENOUGH_S

    def until(condition: Callable[[], object]) -> None:
        while not condition():
            assert time.monotonic() < deadline_s
            console.step(0.02)

    os.write(sink, b"one ")
    until(lambda: got == b"one ")
    elsewhere(first, second.address)
    second.on(m.Stdin, take)
    second.on(m.Fetch, None)
    os.write(sink, b"two")
    os.close(sink)
    until(lambda: console.input_closed)
    assert got == b"one two"
    console.close()
    os.close(source)


def test_a_follower_that_knows_one_head_only_is_led_to_the_other(pair: tuple[FakeHead, FakeHead]) -> None:
    first, second = pair
    only(first)
    store = Store(4)
    elsewhere(first, second.address)
    second.on(m.Fetch, store.fetch)
    second.on(m.Info, m.InfoIs("c", "B", 2, "ada", "0", second.bulk, heads=heads_of(first, second)))
    with Cluster(first.home) as cluster:
        console = Console(cluster.bulk, 1, 1, learn=cluster.learn_heads)
        assert text_of(console) == [f"line {n}\n" for n in range(4)]
        console.close()
