"""Questions to heads find the one that acts, whichever is asked first, and say why no answer comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import messages as m
from beo import question, wire
from beo.errors import BeoError, NoHead, NotFound, Refused
from tests.fake_head import FakeHead

DEAD = "127.0.0.1:1"  # nobody listens there
INFO = m.InfoIs("c" * 32, "A", 3, "ada", "0", "")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[FakeHead]:
    """A head."""
    head = FakeHead(tmp_path / "one")
    yield head
    head.stop()


@pytest.fixture
def two(one: FakeHead, tmp_path: Path) -> Iterator[FakeHead]:
    """Another head, with the same keys as the first one."""
    head = FakeHead(tmp_path / "two")
    head.stop()
    head.public, head.secret, head.authorized = one.public, one.secret, one.authorized
    head.start()
    yield head
    head.stop()


def ask(heads: tuple[str, ...], one: FakeHead, patience_s: float = 5.0) -> m.InfoIs:
    return question.ask(heads, one.public, one.home.secret("admin"), m.Info(), m.InfoIs, patience_s)


def test_who_does_not_act_says_who_does(one: FakeHead, two: FakeHead) -> None:
    one.on(m.Info, m.Elsewhere(two.address, 3))
    two.on(m.Info, INFO)
    assert ask((one.address,), one) == INFO


def test_a_head_that_is_dead_is_passed_over(one: FakeHead) -> None:
    one.on(m.Info, INFO)
    assert ask((DEAD, one.address), one) == INFO


def test_while_no_head_acts_they_are_asked_again(one: FakeHead, two: FakeHead) -> None:
    acts = iter([m.Elsewhere("", 1), m.Elsewhere("", 1), INFO])
    one.on(m.Info, lambda _: next(acts))
    two.on(m.Info, m.Elsewhere("", 1))
    assert ask((one.address, two.address), one) == INFO


def test_that_none_acts_is_told_as_such(one: FakeHead) -> None:
    one.on(m.Info, m.Elsewhere("", 1))
    with pytest.raises(NoHead, match=r"no head acts at .* \(tried for 0 s\): 'beo ha status'"):
        ask((one.address,), one, 0.3)


def test_that_none_answers_is_told_as_such() -> None:
    public, secret = wire.new_keypair()
    with pytest.raises(NoHead, match=f"no head answers at {DEAD}"):
        question.ask((DEAD,), public, secret, m.Info(), m.InfoIs, 0.2)


def test_a_key_that_one_head_does_not_know_yet_is_tried_at_the_other(one: FakeHead, two: FakeHead) -> None:
    two.stop()
    two.authorized = set()
    two.start()
    one.on(m.Info, INFO)
    assert ask((two.address, one.address), one) == INFO
    with pytest.raises(Refused, match="knows neither this token nor this key"):
        ask((two.address,), one)


def test_what_a_head_refuses_is_raised_and_not_asked_of_the_other(one: FakeHead, two: FakeHead) -> None:
    def refuse(_: object) -> object:
        raise NotFound("no job 7")

    one.on(m.Info, refuse)
    with pytest.raises(NotFound, match="no job 7"):
        ask((one.address, two.address), one)
    assert two.received == []


def test_all_heads_are_asked_again_over_the_same_connections(one: FakeHead, two: FakeHead) -> None:
    answers = iter([INFO, m.Elsewhere("", 4)])
    one.on(m.Info, lambda _: next(answers))
    with question.Heads((one.address,), one.public, one.home.secret("admin")) as heads:
        assert heads.look(m.Info(), 5.0) == {one.address: INFO}
        assert heads.look(m.Info(), 5.0) == {one.address: m.Elsewhere("", 4)}


def test_all_heads_are_asked_and_each_tells_for_itself(one: FakeHead, two: FakeHead) -> None:
    one.on(m.Info, INFO)
    two.on(m.Info, m.Elsewhere(one.address, 3))
    heads = (one.address, two.address, DEAD)
    found = question.look(heads, one.public, one.home.secret("admin"), m.Info(), m.InfoIs, 0.5)
    assert found[one.address] == INFO
    kinds = {address: type(answer) for address, answer in found.items() if isinstance(answer, BeoError)}
    assert kinds == {two.address: NotFound, DEAD: NoHead}
