"""Who gets a key by a token, and what a worker's key may say: the head's core, asked by all sorts of people."""

from __future__ import annotations

from typing import Any

import pytest

from beo import events as ev
from beo import messages as ms
from beo.headnode import acts, decide, permissions, tokens
from tests.world import DAY_S, World


def key(letter: str) -> str:
    return letter * tokens.KEY_LENGTH


TOKEN, MINE, OTHER = key("t"), key("m"), key("o")


def wish(role: str = "worker", uses: int = 1, expires_s: float = 3600.0, **words: Any) -> ms.MakeToken:
    return ms.MakeToken(
        **{"key": TOKEN, "user": "ann", "uid": 1000, **words}, role=role, uses=uses, expires_s=expires_s
    )


def speaks_for(world: World, key: str, node: str) -> bool:
    user = decide.user_of(world.state, key)
    return bool(user and permissions.speaks_for(world.state, user, node))


@pytest.fixture
def world() -> World:
    return World()


def made(world: World, **words: Any) -> ms.TokenView:
    answer = world.answer(wish(**words), "root")
    assert isinstance(answer, ms.TokensAre), answer
    return answer.tokens[0]


def refusal(world: World, message: Any, who: str) -> str:
    """What of an answer that is a failure; who: the key that asks."""
    answer = world.answer(message, who)
    assert isinstance(answer, ms.Failed), answer
    return f"{answer.error['what']} ({answer.error['why']}): {answer.error['cure']}"


def test_a_token_authorizes_one_key_and_the_same_key_may_ask_again(world: World) -> None:
    assert made(world).state == "open"
    first = world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    assert isinstance(first, ms.EnrolledIs) and (first.node, first.role) == ("pc1", "worker")
    entries = len(world.disk.entries)
    assert world.answer(ms.Enrol(MINE, "pc1"), TOKEN) == first
    assert len(world.disk.entries) == entries
    assert world.state.authorized[MINE].node == "pc1"
    assert world.answer(ms.ListTokens(), "root").tokens[0].state == "used"
    assert world.replays()


def test_nothing_is_said_of_a_new_key_before_it_is_durable(world: World) -> None:
    made(world)
    world.disk.slow = True
    request = world.ask(ms.Enrol(MINE, "pc1"), TOKEN)
    assert not world.answers(request)
    world.restart()
    world.disk.slow = False
    world.flush()
    assert MINE not in world.state.authorized
    assert isinstance(world.answer(ms.Enrol(MINE, "pc1"), TOKEN), ms.EnrolledIs)


def test_a_used_expired_or_revoked_token_gets_nothing_and_says_why(world: World) -> None:
    made(world)
    world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    assert "for 1 machine, and used" in refusal(world, ms.Enrol(OTHER, "pc2"), TOKEN)
    made(world, key=key("u"), uses=2)
    world.answer(ms.Enrol(OTHER, "pc2"), key("u"))
    world.wait(3601)
    assert "expired 1s ago" in refusal(world, ms.Enrol(key("x"), "pc3"), key("u"))
    number = made(world, key=key("v")).number
    assert world.answer(ms.RevokeTokens((number,)), "root").tokens[0].state == "revoked"
    assert "it was revoked" in refusal(world, ms.Enrol(key("x"), "pc3"), key("v"))
    assert key("x") not in world.state.authorized
    assert world.replays()


def test_revoking_a_token_leaves_what_joined_by_it(world: World) -> None:
    number = made(world).number
    world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    world.answer(ms.RevokeTokens((number,)), "root")
    assert MINE in world.state.authorized
    assert "no token 99" in refusal(world, ms.RevokeTokens((99,)), "root")


@pytest.mark.parametrize("message", [ms.Info(), ms.ListJobs(), ms.ListNodes(), wish(), ms.Cancel(("all",))])
def test_a_tokens_own_key_can_ask_for_nothing_else(world: World, message: Any) -> None:
    made(world)
    assert "a token is no key" in refusal(world, message, TOKEN)


def test_a_tokens_own_key_can_speak_for_no_node(world: World) -> None:
    made(world)
    node = world.node("n1")
    world.handle(ms_asked(world, TOKEN, ms.Ping("n1", node.incarnation, 1, (), ())))
    assert "a token is no key" in str(world.sent[-1].message)


def ms_asked(world: World, who: str, message: Any) -> Any:
    return acts.Asked(b"stranger", 0, who, message)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"role": "root"}, "no role 'root'"),
        ({"uses": 0}, "0 uses"),
        ({"uses": tokens.USES_MAX + 1}, "uses"),
        ({"expires_s": 0.0}, "expires"),
        ({"expires_s": 31 * DAY_S}, "lives for 30d"),
        ({"expires_s": float("nan")}, "expires"),
        ({"key": "short"}, "no usable key"),
        ({"role": "user", "user": ""}, "no user's name"),
        ({"role": "user", "user": "a\nb"}, "no user's name"),
        ({"role": "user", "uid": -1}, "uid -1"),
    ],
)
def test_an_impossible_token_is_refused(world: World, words: Any, complaint: str) -> None:
    assert complaint in refusal(world, wish(**words), "root")


@pytest.mark.parametrize("message", [wish(), ms.ListTokens(), ms.RevokeTokens((1,))])
@pytest.mark.parametrize("who", ["ann", "worker"])
def test_only_an_admin_makes_and_sees_tokens(world: World, who: str, message: Any) -> None:
    assert ("only an admin" if who == "ann" else "a worker's key can't") in refusal(world, message, who)


def test_a_user_token_makes_a_user_of_that_name_and_uid_and_no_worker(world: World) -> None:
    made(world, role="user", user="eve", uid=1234)
    assert "not for a worker" in refusal(world, ms.Enrol(MINE, "pc1"), TOKEN)
    answer = world.answer(ms.Enrol(MINE), TOKEN)
    assert (answer.role, answer.user, answer.uid) == ("user", "eve", 1234)
    known = world.state.authorized[MINE]
    assert (known.user, known.role, known.uid, known.node) == ("eve", "user", 1234, "")


def test_a_workers_key_speaks_for_its_node_alone(world: World) -> None:
    made(world, uses=2)
    world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    world.answer(ms.Enrol(OTHER, "pc2"), TOKEN)
    state = world.state
    assert speaks_for(world, MINE, "pc1") and not speaks_for(world, MINE, "pc2")
    assert not speaks_for(world, MINE, "node01")
    assert speaks_for(world, "worker", "node01") and not speaks_for(world, "worker", "pc1")
    join = ms.Join("pc2", "i1", "b", "pc2:1", MINE, 2, 1 << 30, {}, ())
    assert "can't speak for pc2" in refusal(world, join, MINE)
    assert "pc2" not in state.nodes


def test_a_worker_sees_its_own_node_and_no_other(world: World) -> None:
    world.node("n1")
    made(world)
    world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    world.handle(ms_asked(world, MINE, ms.Join("pc1", "i1", "b", "pc1:1", MINE, 2, 1 << 30, {}, ())))
    world.turn()
    assert [node.name for node in world.answer(ms.ListNodes(), MINE).nodes] == ["pc1"]
    assert [node.name for node in world.answer(ms.ListNodes(), "ann").nodes] == ["n1", "pc1"]


def test_the_name_of_a_node_that_lives_or_may_still_run_something_is_taken(world: World) -> None:
    made(world, uses=5)
    node = world.node("n1")
    assert "there is a node n1 already (it is up)" in refusal(world, ms.Enrol(MINE, "n1"), TOKEN)
    world.submit(requeue="confirm")
    world.wait(60)
    assert world.state.nodes["n1"].state == "lost"
    assert "may still run something" in refusal(world, ms.Enrol(MINE, "n1"), TOKEN)
    node.reborn(boot=True).come()
    node.end(1)
    world.wait(60)
    assert isinstance(world.answer(ms.Enrol(MINE, "n1"), TOKEN), ms.EnrolledIs)
    assert not speaks_for(world, "worker", "n1")


def test_a_nodes_new_key_is_the_end_of_the_one_before(world: World) -> None:
    made(world, uses=2)
    world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    world.answer(ms.Enrol(OTHER, "pc1"), TOKEN)
    assert MINE not in world.state.authorized and world.state.node_keys == {"pc1": OTHER}
    assert world.replays()


@pytest.mark.parametrize("name", ["pc[1-3]", "a b", "a/b", "é", "a\n", "x" * 65, "a,b"])
def test_a_name_that_is_none_is_refused(world: World, name: str) -> None:
    made(world)
    assert "no name for a node" in refusal(world, ms.Enrol(MINE, name), TOKEN)


@pytest.mark.parametrize("new", ["", "short", TOKEN, "x" * 41])
def test_a_key_that_is_none_is_refused(world: World, new: str) -> None:
    made(world)
    assert "no usable key" in refusal(world, ms.Enrol(new, "pc1"), TOKEN)


def test_a_revoked_key_is_unknown_and_may_join_again_by_a_new_token(world: World) -> None:
    made(world)
    world.answer(ms.Enrol(MINE, "pc1"), TOKEN)
    world.state.apply(ev.KeyRevoked(MINE, "root", world.wall_s))
    world.disk.append(world.state.index, ev.KeyRevoked(MINE, "root", world.wall_s))
    assert not decide.user_of(world.state, MINE) and world.state.node_keys == {}
    made(world, key=key("u"))
    assert isinstance(world.answer(ms.Enrol(MINE, "pc1"), key("u")), ms.EnrolledIs)
    assert world.replays()


def test_tokens_that_ended_long_ago_are_forgotten(world: World) -> None:
    made(world)
    world.wait(3600 + 8 * DAY_S)
    made(world, key=key("u"))
    assert list(world.state.tokens) == [key("u")]
    assert made(world, key=key("v")).number == 3
    assert world.replays()
