"""How a second head comes to belong to a cluster, and leaves it: the head's core, asked by all sorts of people."""

from __future__ import annotations

from typing import Any

import pytest

from beo import messages as ms
from beo.headnode import acts, core, heads, tokens
from tests.world import DAY_S, World

A = ms.HeadView("A", "10.0.0.1:7420", "10.0.0.1:7421", ("10.0.0.1:7422",))
B = ms.HeadView("B", "10.0.0.2:7420", "10.0.0.2:7421", ("10.0.0.2:7422", "10.1.0.2:7422"))


def key(letter: str) -> str:
    return letter * tokens.KEY_LENGTH


TOKEN, MINE, OTHER = key("t"), key("m"), key("o")
JOIN = ms.JoinHead(B.control, B.bulk, B.links)


def made(world: World, role: str = "head", letter: str = "t") -> str:
    answer = world.answer(ms.MakeToken(key(letter), role, "root", -1, 1, 3600.0), "root")
    assert isinstance(answer, ms.TokensAre), answer
    assert (answer.tokens[0].role, answer.tokens[0].user) == (role, role)
    return key(letter)


def refusal(world: World, message: Any, who: str) -> str:
    answer = world.answer(message, who)
    assert isinstance(answer, ms.Failed), answer
    return f"{answer.error['what']} ({answer.error['why']}): {answer.error['cure']}"


def begin(world: World, own: ms.HeadView) -> None:
    """Start the head again, as one that knows where it is reached."""
    state = world.disk.replay()
    news = tuple(heads.begin(state, own, world.wall_s))
    world.head = core.Head(state, world.config, lambda: "n", "bulk:1", "test")
    world.handle(acts.Begin(news=news))
    world.turn()


@pytest.fixture
def world() -> World:
    world = World()
    begin(world, A)
    return world


@pytest.fixture
def pair(world: World) -> World:
    """A cluster that B has joined by the key MINE."""
    world.answer(ms.Enrol(MINE), made(world))
    assert isinstance(world.answer(JOIN, MINE), ms.HeadJoinedIs)
    return world


def test_a_head_puts_on_record_where_it_is_reached_when_that_is_new(world: World) -> None:
    assert heads.listed(world.state) == (A,)
    entries = len(world.disk.entries)
    begin(world, A)
    assert len(world.disk.entries) == entries + 1, "EpochBegan alone"
    moved = ms.HeadView("A", "10.0.0.9:7420", A.bulk, A.links)
    begin(world, moved)
    assert heads.listed(world.state) == (moved,)
    assert world.replays()


def test_a_second_head_joins_by_its_own_key_and_learns_of_the_first(world: World) -> None:
    enrolled = world.answer(ms.Enrol(MINE), made(world))
    assert (enrolled.role, enrolled.node, enrolled.heads) == ("head", "", (A,))
    joined = world.answer(JOIN, MINE)
    assert (joined.name, joined.cluster, joined.heads) == ("B", "c" * 32, (A, B))
    assert joined.keys == {}, "the core knows no secrets: the shell adds them"
    assert heads.listed(world.state) == (A, B)
    assert world.replays()


def test_nothing_is_said_of_a_new_head_before_it_is_durable(world: World) -> None:
    world.answer(ms.Enrol(MINE), made(world))
    world.disk.slow = True
    request = world.ask(JOIN, MINE)
    assert not world.answers(request)
    world.disk.slow = False
    world.flush()
    assert isinstance(world.answers(request)[0], ms.HeadJoinedIs)


def test_the_same_newcomer_gets_the_same_answer_however_often_it_asks(world: World) -> None:
    made(world)
    first = world.answer(ms.Enrol(MINE), TOKEN), world.answer(JOIN, MINE)
    entries = len(world.disk.entries)
    assert (world.answer(JOIN, MINE),) == first[1:]
    again = world.answer(ms.Enrol(MINE), TOKEN)
    assert (again.role, again.heads) == ("head", (A, B))
    assert len(world.disk.entries) == entries


def test_a_head_that_is_reached_elsewhere_says_so_without_another_token(pair: World) -> None:
    answer = pair.answer(ms.JoinHead("10.0.0.7:7420", B.bulk, B.links), MINE)
    assert (answer.name, answer.heads[1].control) == ("B", "10.0.0.7:7420")
    assert [view.control for view in heads.listed(pair.state)] == [A.control, "10.0.0.7:7420"]
    assert pair.replays()


def test_a_third_head_is_refused(pair: World) -> None:
    wish = ms.MakeToken(key("u"), "head", "root", -1, 1, 3600.0)
    said = refusal(pair, wish, "root")
    assert said.startswith("this cluster has two heads already (A at 10.0.0.1:7420 and B at 10.0.0.2:7420): 'beo head")


def test_a_third_head_with_a_token_from_before_uses_nothing_up(world: World) -> None:
    made(world), made(world, letter="u")
    world.answer(ms.Enrol(MINE), TOKEN)
    world.answer(JOIN, MINE)
    assert "two heads already" in refusal(world, ms.Enrol(OTHER), key("u"))
    assert world.state.tokens[key("u")].used == ()


def test_of_two_that_were_enrolled_one_becomes_the_second_head(world: World) -> None:
    made(world), made(world, letter="u")
    world.answer(ms.Enrol(MINE), TOKEN)
    world.answer(ms.Enrol(OTHER), key("u"))
    world.answer(JOIN, MINE)
    assert "two heads already" in refusal(world, ms.JoinHead("x:1", "x:2", ("x:3",)), OTHER)


@pytest.mark.parametrize("who", ["ann", "root", "worker", TOKEN])
def test_secrets_are_for_a_heads_own_key_alone_and_not_for_who_finds_its_token(pair: World, who: str) -> None:
    said = refusal(pair, JOIN, who)
    assert "a token is no key" in said if who == TOKEN else "only a head's own key" in said


def test_a_heads_key_may_ask_for_nothing_else(pair: World) -> None:
    for message in (ms.ListJobs(), ms.Cancel(("all",)), ms.MakeToken(key("x"), "admin", "e", -1, 1, 60.0)):
        assert "a head's key can't ask for this" in refusal(pair, message, MINE)


@pytest.mark.parametrize(
    ("role", "node", "cure"),
    [("head", "pc1", "beo head join"), ("worker", "", "beo worker"), ("witness", "", "beo witness")],
)
def test_a_token_for_something_else_is_refused_with_the_verb_that_it_is_for(
    world: World, role: str, node: str, cure: str
) -> None:
    said = refusal(world, ms.Enrol(MINE, node), made(world, role))
    assert f"this token is for a {role}" in said and f"use '{cure}'" in said
    assert MINE not in world.state.authorized


def test_an_expired_or_revoked_token_takes_no_head_in(world: World) -> None:
    made(world)
    world.wait(3601)
    assert "it expired 1s ago" in refusal(world, ms.Enrol(MINE), TOKEN)
    world.wait(8 * DAY_S)
    world.answer(ms.RevokeTokens((world.state.tokens[made(world, letter="u")].number,)), "root")
    assert "it was revoked" in refusal(world, ms.Enrol(MINE), key("u"))


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        (ms.JoinHead("", B.bulk, B.links), "'' is no address of a head"),
        (ms.JoinHead("10.0.0.2", B.bulk, B.links), "is no address of a head"),
        (ms.JoinHead("10.0.0.2:0", B.bulk, B.links), "is no address of a head"),
        (ms.JoinHead("10.0.0.2:99999999", B.bulk, B.links), "is no address of a head"),
        (ms.JoinHead("a b:1", B.bulk, B.links), "is no address of a head"),
        (ms.JoinHead("x" * 300 + ":1", B.bulk, B.links), "is no address of a head"),
        (ms.JoinHead(B.control, B.bulk, ("\n:1",)), "is no address of a head"),
        (ms.JoinHead(B.control, B.bulk, ()), "0 links of a head"),
        (ms.JoinHead(B.control, B.bulk, B.links * 9), "18 links of a head"),
        (ms.JoinHead(A.control, B.bulk, B.links), "10.0.0.1:7420 is head A's"),
        (ms.JoinHead(B.control, B.bulk, (A.links[0],)), "10.0.0.1:7422 is head A's"),
    ],
)
def test_a_head_that_is_reached_nowhere_is_refused(world: World, wish: ms.JoinHead, complaint: str) -> None:
    world.answer(ms.Enrol(MINE), made(world))
    assert complaint in refusal(world, wish, MINE)
    assert heads.listed(world.state) == (A,)


def test_a_head_that_leaves_takes_its_key_along_and_another_may_come(pair: World) -> None:
    assert "no head 'C'" in refusal(pair, ms.LeaveHead("C"), "root")
    assert "head A acts" in refusal(pair, ms.LeaveHead("A"), "root")
    assert pair.answer(ms.LeaveHead("B"), "root") == ms.Done()
    assert heads.listed(pair.state) == (A,)
    assert MINE not in pair.state.authorized
    pair.answer(ms.Enrol(OTHER), made(pair, letter="u"))
    assert pair.answer(JOIN, OTHER).name == "B"
    assert pair.replays()


def test_a_worker_that_joins_learns_of_both_heads(pair: World) -> None:
    made(pair, "worker", "u")
    assert pair.answer(ms.Enrol(OTHER, "pc1"), key("u")).heads == (A, B)


def test_a_witness_has_a_name_that_no_worker_can_have(world: World) -> None:
    answer = world.answer(ms.Enrol(MINE, "box"), made(world, "witness"))
    assert (answer.role, answer.node) == ("witness", "witness:box")
    assert world.answer(ms.Enrol(MINE, "box"), TOKEN) == answer
    assert "is no name for a node" in refusal(world, ms.Enrol(OTHER, "witness:box"), made(world, "worker", "u"))
    assert "there is a witness box already" in refusal(world, ms.Enrol(OTHER, "box"), made(world, "witness", "v"))
    assert "this machine is witness:box already" in refusal(world, ms.Enrol(MINE, "tin"), TOKEN)
    assert world.answer(ms.RevokeKeys("witness:box"), "root") == ms.Done()
    assert world.answer(ms.Enrol(OTHER, "box"), key("v")).node == "witness:box"
    assert world.replays()
