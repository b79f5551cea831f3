"""A client's session asks until it is answered, over whatever connection, and gives no answer of another life."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beo.tree import session as module
from beo.tree import words as w
from beo.tree.session import Session
from tests.cluster import wait_for


class Wire:
    """What a session has in place of a wire.Connection: what it was sent, and what is to be received."""

    made: list[Wire]

    def __init__(self, address: str, *_: object) -> None:
        self.address = address
        self.sent: list[w.Ask] = []
        self.arrived: list[tuple[int, bytes]] = []
        self.renewed = self.broken = self.closed = False
        Wire.made.append(self)

    def send(self, number: int, body: bytes) -> bool:
        self.sent.append(w.ask_decoder.decode(body))
        assert self.sent[-1].number == number
        self.renewed = self.broken = False
        return True

    def receive(self) -> tuple[int, bytes] | None:
        return self.arrived.pop(0) if self.arrived else None

    def answer(self, number: int, answer: w.Answer) -> None:
        self.arrived.append((number, w.encode(answer)))

    def numbers(self, kind: type) -> list[int]:
        return [ask.number for ask in self.sent if isinstance(ask.question, kind)]

    def register(self, _: object) -> None: ...

    def unregister(self, _: object) -> None: ...

    def close(self) -> None:
        self.closed = True


Found = Callable[[], Wire]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """A session that has begun."""
    Wire.made = []
    monkeypatch.setattr("beo.wire.Connection", Wire)
    monkeypatch.setattr(module, "LOCATE_AGAIN_S", 0.0)
    found = Session(lambda: f"head:{len(Wire.made)}", "", "")
    connected(found, 1)
    Wire.made[-1].answer(1, w.Done())
    assert not found.receive()
    yield found
    found.close()


def connected(session: Session, count: int) -> Wire:
    """Wait until it has made so many connections, and return the last."""

    def is_made() -> bool:
        session.receive()
        return len(Wire.made) >= count

    wait_for(is_made, "it connects")
    return Wire.made[-1]


def done(session: Session, question: w.Question) -> None:
    """Ask for something that succeeds."""
    number = session.ask(module.ROOT_CALLER, question)
    attr = w.Attr(5, 0o100644, 1, 0, 0, 0, 0, 0, 0)
    Wire.made[-1].answer(number, w.AttrIs(attr) if isinstance(question, w.Open) else w.Done())
    assert number in [found for found, _ in session.receive()]


def test_what_waits_while_others_are_answered_is_asked_again(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer found no room, or it was lost with a leader of before: on a busy connection there is no silence."""
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    waited: Any = session  # a second since the last look at what is late
    wire = Wire.made[-1]
    waiting = session.ask(module.ROOT_CALLER, w.Lock(5, 1, "w", wait=True))
    for _ in range(3):
        number = session.ask(module.ROOT_CALLER, w.Get(1))
        wire.answer(number, w.Done())
        waited._late_s -= module.SILENT_S
        assert (number, w.Done()) in session.receive()
    assert wire.numbers(w.Lock).count(waiting) > 1


def test_everything_unanswered_is_asked_again_elsewhere_in_order_behind_what_is_open(session: Session) -> None:
    wire = Wire.made[-1]
    done(session, w.Open(5))
    numbers = [session.ask(module.ROOT_CALLER, w.Write(5, 0, b"x")) for _ in range(3)]
    wire.answer(numbers[0], w.Elsewhere())
    other = connected(session, 2)
    assert wire.closed
    assert isinstance(other.sent[0].question, w.Present) and other.sent[0].question.inos == (5,)
    assert other.numbers(w.Write) == numbers
    assert all(ask.settled < numbers[0] for ask in other.sent)
    other.answer(numbers[0], w.Done())
    assert session.receive() == [(numbers[0], w.Done())]


def test_an_answer_that_comes_twice_or_to_an_earlier_life_is_given_to_nobody(session: Session) -> None:
    wire = Wire.made[-1]
    first, second = (session.ask(module.ROOT_CALLER, w.Get(ino)) for ino in (1, 2))
    wire.answer(first, w.Done())
    wire.answer(first, w.Failed(errno.EIO))
    assert session.receive() == [(first, w.Done())]
    life = wire.sent[-1].session
    wire.answer(second, w.Over())
    wire.answer(second, w.Done())
    assert session.receive() == [(second, w.Failed(errno.EIO))]
    session.receive()
    begun = [ask for ask in wire.sent if isinstance(ask.question, w.Begin)]
    assert begun[-1].session != life and len(begun) == 2
    assert not session.receive()


def end_life(session: Session) -> None:
    """The head says that the session is over."""
    number = session.ask(module.ROOT_CALLER, w.Get(1))
    Wire.made[-1].answer(number, w.Over())
    assert (number, w.Failed(errno.EIO)) in session.receive()


def test_a_file_that_was_locked_once_and_closed_can_be_opened_in_the_next_life(session: Session) -> None:
    for question in (w.Open(5), w.Lock(5, 1, "w"), w.Unlock(5, 1), w.Close(5)):
        done(session, question)
    end_life(session)
    number = session.ask(module.ROOT_CALLER, w.Open(5))
    assert number in Wire.made[-1].numbers(w.Open)


def test_a_file_that_was_opened_twice_is_closed_by_one_word_when_nobody_has_it_open_any_more(session: Session) -> None:
    """Else its session would have it open for ever, and once it had no name nobody would let it go."""
    done(session, w.Open(5))
    done(session, w.Open(5))
    number = session.ask(module.ROOT_CALLER, w.Close(5))
    assert number in Wire.made[-1].numbers(w.Close)


def test_what_could_not_be_opened_as_a_life_ended_and_is_closed_is_not_open_in_the_next(session: Session) -> None:
    done(session, w.Open(6))
    session.ask(module.ROOT_CALLER, w.Open(5))
    end_life(session)
    session.ask(module.ROOT_CALLER, w.Close(5))  # as a mount does it that hears of a failure
    end_life(session)
    said = [ask.question for ask in Wire.made[-1].sent if isinstance(ask.question, w.Present)]
    assert said[-1] == w.Present((6,))


def test_who_had_a_lock_in_a_life_that_is_over_may_not_go_on_as_if_he_had_it(session: Session) -> None:
    wire = Wire.made[-1]
    done(session, w.Open(5))
    done(session, w.Lock(5, 1, "w"))
    end_life(session)
    number = session.ask(module.ROOT_CALLER, w.Write(5, 0, b"x"))
    assert session.receive() == [(number, w.Failed(errno.EIO))]
    number = session.ask(module.ROOT_CALLER, w.Close(5))
    assert session.receive() == [(number, w.Done())]
    number = session.ask(module.ROOT_CALLER, w.Write(5, 0, b"x"))
    assert number in wire.numbers(w.Write)


def test_a_question_that_waits_for_a_lock_does_not_hold_up_what_is_said_of_the_others(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(w, "WAITING_TOLD_MAX", 2)
    wire = Wire.made[-1]

    def said() -> tuple[int, int, tuple[int, ...]]:
        done(session, w.Get(1))
        ask = wire.sent[-1]
        return ask.settled, ask.beyond, ask.waiting

    done(session, w.Get(1))
    first = session.ask(module.ROOT_CALLER, w.Lock(5, 1, "w", wait=True))
    for _ in range(3):
        settled, beyond, waiting = said()
        assert (settled, beyond, waiting) == (first - 1, wire.sent[-1].number - 1, (first,))
    second, third = (session.ask(module.ROOT_CALLER, w.Lock(5, owner, "w", wait=True)) for owner in (2, 3))
    assert said() == (first - 1, third - 1, (first, second)), "of more than it may tell, it tells the first"
    wire.answer(first, w.Done())
    assert (first, w.Done()) in session.receive()
    assert said() == (second - 1, wire.sent[-1].number - 1, (second, third))
    for number in (second, third):
        wire.answer(number, w.Done())
    session.receive()
    assert said() == (wire.sent[-1].number - 1, 0, ())


def test_silence_grows_though_all_is_asked_again_and_files_are_open(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By it a mount knows that there is no head."""
    begun_s = time.monotonic()
    done(session, w.Open(5))
    session.ask(module.ROOT_CALLER, w.Get(5))
    for _ in range(3):
        time.sleep(0.05)
        monkeypatch.setattr(module, "AGAIN_S", 0.0)
        session.receive()
    assert Wire.made[-1].numbers(w.Present), "it was asked again"
    assert 0.15 <= session.silent_s <= time.monotonic() - begun_s
