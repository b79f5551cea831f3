"""Who is let in at a door, how he loses that again, and what a user may have."""

from __future__ import annotations

import time

import pytest

from beo import events as ev
from beo import messages as ms
from beo.account import Account
from beo.errors import BeoError, Conflict, NotFound, Refused, UsageError
from beo.headnode import admit
from beo.headnode.acts import Greet, Knock, Knocked
from beo.headnode.schedule import plan
from beo.headnode.state import State
from beo.settings import Config, Limits, UsersConfig
from tests.world import START_S, World, settings, spec

EVE = Account(1_005, "eve", (1_005, 50))


def key(number: int) -> str:
    return f"{number:040d}"


def knocked(state: State, number: int = 1, account: Account = EVE, uid: int = 0) -> State:
    for event in admit.knock(state, Knock(uid or account.uid, 1_005, (7,), key(number)), account, START_S):
        state.apply(event)
    return state


@pytest.fixture
def world() -> World:
    return World()


# ---- the door


def test_who_knocks_is_known_from_then_on_and_knocking_again_is_no_event(world: World) -> None:
    state = knocked(world.state)
    assert state.authorized[key(1)].user == "eve" and state.authorized[key(1)].uid == 1_005
    index = state.index
    assert knocked(state).index == index


def test_a_visitor_hears_nothing_before_it_is_durable(world: World) -> None:
    world.disk.slow = True
    effects = world.head.handle(Knocked(3, Knock(1_005, 1_005, (), key(1)), EVE), world.now)
    assert not any(isinstance(effect, Greet) for effect in effects)


@pytest.mark.parametrize(
    ("wish", "account", "kind", "words"),
    [
        (Knock(1_005, 1, (), "short"), EVE, UsageError, "no public key"),
        (Knock(1_005, 1, (), "\n" * 40), EVE, UsageError, "no public key"),
        (Knock(0, 0, (), key(1)), Account(0, "root", (0,)), Refused, "root gets no key"),
        (Knock(1_005, 1, (), "ann"), EVE, UsageError, "no public key"),
        (Knock(1_006, 1, (), key(1)), Account(1_006, "ann", (1,)), Refused, "taken by another"),
        (Knock(1_007, 1, (), key(1)), Account(1_007, "root", (1,)), Refused, "taken by another"),
        (Knock(1_007, 1, (), key(1)), Account(1_007, "worker", (1,)), Refused, "taken by another"),
    ],
)
def test_who_is_not_let_in(world: World, wish: Knock, account: Account, kind: type[BeoError], words: str) -> None:
    with pytest.raises(kind, match=words):
        admit.knock(world.state, wish, account, START_S)


def test_anothers_key_is_nobody_elses(world: World) -> None:
    with pytest.raises(Refused, match="another user's"):
        knocked(knocked(world.state), account=Account(1_006, "mallory", (1,)))


def test_keys_of_one_user_are_limited(world: World) -> None:
    for number in range(admit.KEYS_PER_USER_MAX):
        knocked(world.state, number)
    with pytest.raises(Conflict, match=r"64 keys already.*revoke eve"):
        knocked(world.state, 999)


def test_a_worker_that_is_not_root_vouches_for_nobody(world: World) -> None:
    world.node("n1")
    wish = Knock(1_005, 1_005, (), key(1))
    with pytest.raises(Refused, match="doesn't run as root"):
        admit.vouch(world.state, "n1", wish, EVE, START_S)
    world.state.nodes["n1"].facts["uid"] = "0"
    assert admit.vouch(world.state, "n1", wish, EVE, START_S)


def test_a_revoked_key_and_a_barred_user_stay_out_also_after_a_restart(world: World) -> None:
    state = knocked(knocked(world.state, 1), 2)
    for event in admit.revoke(state, "root", key(1), START_S):
        state.apply(event)
    assert key(1) not in state.authorized and key(2) in state.authorized
    for event in admit.revoke(state, "root", "eve", START_S):
        state.apply(event)
    state = State.decode(state.encode())
    assert key(2) not in state.authorized
    with pytest.raises(Refused, match="barred"):
        knocked(state, 3)
    for event in admit.allow(state, "root", "eve", START_S):
        state.apply(event)
    with pytest.raises(Refused, match="revoked"):
        knocked(state, 1)
    assert key(3) in knocked(state, 3).authorized
    with pytest.raises(NotFound, match="did you mean eve"):
        admit.revoke(state, "root", "evee", START_S)
    with pytest.raises(Refused, match="without that key"):
        admit.revoke(state, "root", "root", START_S)


# ---- whose groups


def test_groups_are_those_that_the_heads_machine_knows(world: World) -> None:
    answer = world.answer(ms.Submit("a", spec(), 1000, 1000, (1000, 50, 0, 27)))
    assert world.job(answer.job).groups == (1000, 50) and "groups 0, 27 left out" in answer.warnings[0]
    answer = world.answer(ms.Submit("b", spec(), 1000, 0, ()))
    assert isinstance(answer, ms.Failed) and "group 0 is not one of yours" in answer.error["what"]
    answer = world.answer(ms.Submit("c", spec(), 1001, 1000, ()))
    assert isinstance(answer, ms.Failed) and "can't submit for uid 1001" in answer.error["what"]


# ---- limits


def test_queued_max_is_each_users_own() -> None:
    world = World(Config(users=UsersConfig(queued_max=2, overrides={"bob": Limits(queued_max=1)})))
    for _ in range(2):
        world.submit("ann")
    full = world.answer(ms.Submit("k", spec(), 1000, 1000, ()), "ann")
    assert "2 jobs of ann are queued already" in full.error["what"] and "users.queued_max = 2" in full.error["why"]
    world.submit("bob")
    assert "users.bob.queued_max = 1" in world.answer(ms.Submit("l", spec(), 1000, 1000, ()), "bob").error["why"]
    for _ in range(3):
        world.submit("root")


def test_a_user_at_his_limit_holds_up_nobody_and_is_told() -> None:
    world = World(settings(running_max=1))
    node = world.node("n1", slots=4)
    first, second, other = world.submit("ann"), world.submit("ann"), world.submit("bob")
    assert [world.job(job).state for job in (first, second, other)] == ["running", "queued", "running"]
    assert "users.running_max is 1" in world.why(second)[0]
    node.end(first)
    assert world.job(second).state == "running"
    assert world.replays()


def test_slots_max_counts_the_slots_of_all_jobs() -> None:
    world = World(settings(slots_max=3))
    world.node("n1", slots=8)
    first, second, third = world.submit("ann", ranks=2), world.submit("ann", ranks=2), world.submit("ann", ranks=1)
    assert [world.job(job).state for job in (first, second, third)] == ["running", "queued", "running"]
    assert "users.slots_max is 3" in world.why(second)[0]


def test_only_an_admin_raises_a_priority() -> None:
    world = World(settings(priority_max=0))
    for who, ok in (("ann", False), ("root", True)):
        answer = world.answer(ms.Submit(who, spec(priority=5), 1000, 1000, ()), who)
        assert isinstance(answer, ms.SubmittedIs) is ok, answer
    job = world.submit("ann", priority=-5)
    assert isinstance(world.answer(ms.SetPriority((str(job),), 1), "ann"), ms.Failed)


def test_a_node_that_is_not_root_gets_its_own_users_jobs_only(world: World) -> None:
    world.node("n1")
    world.state.nodes["n1"].facts["uid"] = "4321"
    job = world.submit("ann")
    assert world.job(job).state == "queued"
    assert "n1 can't run jobs of ann" in world.why(job)[0]


# ---- shares


def _queue_of(*jobs: tuple[str, int]) -> State:
    """A state with so many queued jobs of each user, the users one after the other."""
    state = State()
    state.apply(ev.Born("c" * 32, "A", START_S))
    one = spec()
    for user, count in jobs:
        for _ in range(count):
            number = state.next_job
            state.apply(ev.Submitted(number, f"k{number}", user, 1, 1, (), one, START_S))
    return state


def _node(state: State, slots: int) -> None:
    state.apply(ev.NodeJoined("n1", "i", "b", "a", "k", slots, 1 << 40, {"contain": "pidns"}, (), START_S))


def test_a_hundred_thousand_jobs_of_one_user_do_not_starve_another() -> None:
    state = _queue_of(("ann", 100_000), ("bob", 10))
    _node(state, 8)
    began_s = time.perf_counter()
    users = [state.jobs[placement.job].user for placement in plan(state, ["n1"], START_S)]
    print(f"a plan over 100,010 jobs: {(time.perf_counter() - began_s) * 1e3:.1f} ms")
    assert sorted(users) == ["ann"] * 4 + ["bob"] * 4


def test_a_user_who_holds_more_waits_for_those_who_hold_less() -> None:
    world = World()
    node = world.node("n1", slots=4)
    old = [world.submit("ann") for _ in range(8)]
    new = [world.submit("bob") for _ in range(2)]
    node.end(old[0])
    node.end(old[1])
    assert [world.job(job).state for job in new] == ["running", "running"]


def test_one_user_alone_has_the_order_of_submission_and_all_slots() -> None:
    state = _queue_of(("ann", 20))
    _node(state, 8)
    assert [placement.job for placement in plan(state, ["n1"], START_S)] == list(range(1, 9))


def test_a_user_at_his_limit_costs_the_scheduler_no_look_per_job() -> None:
    state = _queue_of(("ann", 50_000), ("bob", 1))
    _node(state, 8)
    users = UsersConfig(running_max=1)
    looked: list[int] = []
    real = state.queue.walk

    def counted(*words):  # type: ignore[no-untyped-def]
        for found in real(*words):
            looked.append(found[0])
            yield found

    state.queue.walk = counted  # type: ignore[method-assign]
    assert len(plan(state, ["n1"], START_S, users)) == 2
    assert len(looked) == 2
