"""Nodes are reserved: who may start on them, who is asked to leave, and what time and failures do to a reservation."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from msgspec.structs import replace

from beo import events as ev
from beo import messages as ms
from beo.errors import EXIT_HALTED
from beo.headnode import calendar, reservations, schedule
from beo.headnode.state import State
from beo.settings import FilesConfig
from tests.test_again import able
from tests.test_decide import refused
from tests.test_state import joined, submitted
from tests.world import START_S, Node, World, settings, spec

HOUR_S = 3_600.0


@pytest.fixture
def world() -> World:
    return World()


def reserve(world: World, who: str = "root", **words: Any) -> ms.ReservationView:
    """Reserve n1 for ann, an hour from now for an hour, but for what is said."""
    wish = {"after_s": HOUR_S, "for_s": HOUR_S, "users": ("ann",), "name": "night", **words}
    if "count" not in wish:
        wish.setdefault("nodes", "n1")
    wish.setdefault("key", f"wish {world.requests}")
    answer = world.answer(ms.Reserve(**wish), who)
    assert isinstance(answer, ms.ReservationsAre), answer
    (made,) = answer.reservations
    return made


def listed(world: World) -> dict[str, ms.ReservationView]:
    answer: ms.ReservationsAre = world.answer(ms.ListReservations())
    return {one.name: one for one in answer.reservations}


def nodes_of(world: World, job: int) -> list[str]:
    attempt = world.job(job).attempt
    return [part.node for part in attempt.parts] if attempt and world.job(job).state == "running" else []


# ---- what starts where


def test_nothing_starts_that_would_reach_into_a_reservation(world: World) -> None:
    world.node("n1")
    reserve(world)
    unlimited, long, short = (world.submit(time_limit_s=limit_s) for limit_s in (0.0, HOUR_S + 1, HOUR_S - 1))
    assert [nodes_of(world, job) for job in (unlimited, long, short)] == [[], [], ["n1"]]
    assert world.why(unlimited)[0] == (
        "n1 is reserved for ann (night) in 1h, for 1h: it has no time limit (-t) that ends before"
    )
    assert world.why(long)[0].endswith("its time limit of 1h1s reaches so far")
    assert world.replays()


def test_what_can_be_moved_starts_there_until_it_would_be_asked_to_leave_at_once(world: World) -> None:
    node = able(world.node("n1", slots=9))
    reserve(world, after_s=100.0)
    early = [world.submit(**words) for words in ({"movable": True}, {"signal": 10}, {"signal": 10, "notice_s": 101.0})]
    assert [nodes_of(world, job) for job in early] == [["n1"], ["n1"], []]
    world.wait(41.0, node)
    assert nodes_of(world, world.submit(movable=True)) == []


def test_where_a_job_cant_leave_all_its_nodes_none_reaches_into_a_reservation() -> None:
    world = World(replace(settings(), files=FilesConfig(backend="shared", path="/srv")))
    able(world.node("n1"))
    reserve(world)
    assert nodes_of(world, world.submit(movable=True)) == []


def test_a_reserved_node_starts_the_reservations_jobs_and_those_start_nowhere_else(world: World) -> None:
    nodes = [world.node("n1"), world.node("n2")]
    reserve(world, after_s=100.0)
    own = world.submit(reservation="night")
    assert world.why(own)[0] == "its reservation night begins in 1m40s"
    world.wait(101.0, *nodes)
    wide = world.submit(ranks=8, reservation="night")
    other = [world.submit("bob", time_limit_s=1.0), world.submit("ann")]
    assert nodes_of(world, own) == ["n1"]
    assert [nodes_of(world, job) for job in other] == [["n2"], ["n2"]]
    assert nodes_of(world, wide) == []
    assert world.why(wide)[0] == "needs 8 ranks: more than reservation night has"
    assert (listed(world)["night"].state, listed(world)["night"].jobs) == ("on", (own, wide))
    assert world.replays()


def test_a_wide_job_that_waits_for_a_reservation_holds_up_nobody_elsewhere(world: World) -> None:
    nodes = [world.node("n1"), world.node("n2")]
    reserve(world, after_s=0.0, nodes="n1", for_s=9 * HOUR_S)
    assert nodes_of(world, world.submit(reservation="night")) == ["n1"]
    wide = world.submit(ranks=4, reservation="night")
    world.wait(schedule.PATIENCE_S + 1, *nodes)
    assert nodes_of(world, world.submit("bob")) == ["n2"]
    assert nodes_of(world, world.submit(reservation="night")) == [], "small ones can't starve the wide one"
    for job in list(world.state.live_parts("n1")):
        world.nodes["n1"].end(job[0])
    assert nodes_of(world, wide) == ["n1"]


def test_long_jobs_hide_no_short_ones_behind_them(world: World) -> None:
    world.node("n1", slots=2)
    reserve(world)
    for _ in range(5):
        world.submit()
        world.submit(time_limit_s=2 * HOUR_S)
    assert nodes_of(world, world.submit(time_limit_s=60.0)) == ["n1"]


def test_more_long_jobs_than_a_plan_looks_at_hide_no_short_one(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(schedule, "LOOKS_MAX", 5)
    world.node("n1", slots=2)
    reserve(world)
    for _ in range(20):
        world.submit(time_limit_s=2 * HOUR_S)
    assert nodes_of(world, world.submit(time_limit_s=60.0)) == ["n1"]


def test_as_many_reservations_as_there_may_be_cost_a_plan_little() -> None:
    state = State()
    names = tuple(f"n{number}" for number in range(300))
    for name in names:
        state.apply(joined(name, "i", slots=2))
    for number in range(1, reservations.RESERVATIONS_MAX + 1):
        begin_s = START_S + 100.0 * number
        whose = (number, f"k{number}", f"r{number}", "root", ("ann",))
        state.apply(ev.Reserved(*whose, names, False, begin_s, begin_s + 50.0, False, START_S))
    for number in range(1, schedule.LOOKS_MAX + 1):
        state.apply(submitted(number, made=spec(time_limit_s=9_000.0 - number)))  # each one could fit after all
    began_s = time.process_time()
    assert schedule.plan(state, names, START_S) == []
    assert time.process_time() - began_s < 5.0, "it grows with nodes times reservations"


def test_nobody_is_asked_to_make_room_where_it_would_be_for_nobody(world: World) -> None:
    config = settings(preempt_above=100)
    world = World(config)
    node = world.node("n1", slots=1)
    low = world.submit("bob", priority=-200, signal=10)
    node.keep(low)
    reserve(world)
    world.submit(priority=0)
    world.wait(2.0, node)
    assert world.job(low).move is None, "what waits may not start on n1 at all"


# ---- who leaves


def test_what_is_in_the_way_is_asked_to_move_as_long_before_as_its_notice(world: World) -> None:
    first, second = world.node("n1"), world.node("n2", slots=1)
    number = world.submit(ranks=4, signal=10, notice_s=30.0)
    assert nodes_of(world, number) == ["n1"]
    third = world.node("n3")
    reserve(world, after_s=100.0)
    assert listed(world)["night"].in_the_way == (ms.InTheWay(number, "n1", "will be asked to move 30s before"),)
    world.wait(69.0, first, second, third)
    assert not first.commands(ms.Halt)
    world.wait(2.0, first, second, third)
    assert first.commands(ms.Halt)[0].leaving == ("n1",)
    assert "is asked to leave n1 (n1 is reserved by root)" in world.why(number)[0]
    first.end(number, 1)  # a program with a signal of its own ends, and isn't done
    assert nodes_of(world, number) == ["n3"]
    assert world.job(number).attempts[0].outcome == "n1 is reserved by root"
    assert listed(world)["night"].in_the_way == ()
    assert world.replays()


def test_a_job_whose_time_is_up_before_is_left_in_peace(world: World) -> None:
    node = world.node("n1")
    number = world.submit(time_limit_s=90.0)
    reserve(world, after_s=100.0)
    assert listed(world)["night"].in_the_way[0].why == "its time is up before"
    world.wait(99.0, node)
    assert world.job(number).move is None


def test_a_job_that_runs_over_its_time_is_asked_when_the_reservation_begins(world: World) -> None:
    node = world.node("n1")
    number = world.submit(time_limit_s=90.0)
    reserve(world, after_s=100.0)
    world.wait(101.0, node)  # its node has not ended it yet
    assert world.job(number).move and node.commands(ms.Halt)


def test_a_job_that_takes_no_checkpoints_holds_the_reservation_up_and_isnt_ended(world: World) -> None:
    node = world.node("n1")
    number = world.submit("bob")
    reserve(world, after_s=100.0)
    assert listed(world)["night"].in_the_way[0].why == "may hold it up to its own end"
    own = world.submit(ranks=4, reservation="night")
    world.wait(200.0, node)
    assert world.job(number).state == "running"
    assert listed(world)["night"].in_the_way[0].why == "is asked to move, and else may hold it up to its own end"
    assert world.why(own)[0] == "waits for 4 ranks on n1, reservation night"
    node.end(number)
    assert world.job(number).state == "done" and nodes_of(world, own) == ["n1"]


@pytest.mark.parametrize(("requeue", "state"), [("confirm", "queued"), ("auto", "queued"), ("never", "cancelled")])
def test_with_kill_it_is_ended_at_the_start_and_not_before(world: World, requeue: Any, state: str) -> None:
    node = world.node("n1")
    number = world.submit("bob", requeue=requeue)
    reserve(world, after_s=100.0, kill=True)
    assert listed(world)["night"].in_the_way[0].why == "is ended at the start"
    world.wait(99.0, node)
    assert world.job(number).state == "running"
    world.wait(2.0, node)
    assert world.job(number).state == "ending" and node.commands(ms.Kill)
    node.end(number, 143)
    assert world.job(number).state == state
    assert "n1 is reserved as night" in world.job(number).reason
    assert world.replays()


def test_a_job_of_a_reservation_is_never_asked_to_leave_it(world: World) -> None:
    node = world.node("n1")
    reserve(world, after_s=1.0)
    world.wait(2.0, node)
    number = world.submit(reservation="night")
    world.wait(10.0, node)
    assert world.job(number).state == "running" and world.job(number).move is None


# ---- its end


def test_when_it_is_over_its_jobs_are_like_any_others(world: World) -> None:
    nodes = [world.node("n1", slots=1), world.node("n2", slots=1)]
    reserve(world, after_s=0.0, for_s=100.0)
    runs, waits = world.submit(reservation="night"), world.submit(reservation="night")
    assert (nodes_of(world, runs), nodes_of(world, waits)) == (["n1"], [])
    world.wait(102.0, *nodes)
    assert listed(world) == {}
    assert (nodes_of(world, runs), nodes_of(world, waits)) == (["n1"], ["n2"])
    assert {world.job(job).spec.reservation for job in (runs, waits)} == {""}
    assert world.replays()


def test_a_name_that_is_used_again_is_another_reservations(world: World) -> None:
    world.node("n1", slots=1)
    reserve(world)
    waits = world.submit(reservation="night")
    world.answer(ms.CancelReservations(("night",)), "root")
    assert nodes_of(world, waits) == ["n1"]
    reserve(world, after_s=60.0)
    assert listed(world)["night"].jobs == ()


def test_a_job_that_stays_over_the_end_makes_way_for_the_next_reservation(world: World) -> None:
    nodes = [world.node("n1"), world.node("n2")]
    reserve(world, after_s=0.0, for_s=100.0)
    reserve(world, after_s=100.0, for_s=100.0, users=("bob",), name="next")
    stays = world.submit(reservation="night", signal=10, notice_s=10.0)
    plain = world.submit(reservation="night")
    assert (nodes_of(world, stays), nodes_of(world, plain)) == (["n1"], [])
    world.wait(95.0, *nodes)
    move = world.job(stays).move
    assert move and move.leave == ("n1",)
    world.wait(6.0, *nodes)
    assert nodes_of(world, plain) == ["n2"]


# ---- which nodes


def test_the_head_chooses_where_the_least_is_disturbed(world: World) -> None:
    for name in ("n1", "n2", "n3"):
        world.node(name)
    world.submit(ranks=4)
    world.submit(ranks=4, movable=False, time_limit_s=60.0)
    world.submit(ranks=4, signal=10)
    assert reserve(world, count=1, after_s=120.0).nodes == "n2", "all is over by then there"
    assert reserve(world, count=1, after_s=120.0, name="more").nodes == "n3", "what runs there can be moved"
    assert refused(world.answer(ms.Reserve("k", 60.0, 0.0, 120.0, count=2), "root"))["what"] == (
        "2 nodes can't be reserved"
    )


def test_a_chosen_node_that_is_lost_is_replaced_and_a_named_one_isnt(world: World) -> None:
    nodes = [world.node(f"n{number}") for number in range(1, 5)]
    assert reserve(world, count=2).nodes == "n[1-2]"
    reserve(world, nodes="n3", name="named")
    world.wait(60.0, nodes[0], nodes[3])
    assert listed(world)["night"].nodes == "n[1,4]"
    assert (listed(world)["named"].nodes, listed(world)["named"].missing) == ("n3", "n3")
    world.answer(ms.Drain("n4", ""), "root")
    world.wait(2.0, nodes[0], nodes[3])
    assert (listed(world)["night"].nodes, listed(world)["night"].missing) == ("n[1,4]", "n4"), "there is no other"
    moved = [e for e in map(ev.decode, world.disk.entries) if isinstance(e, ev.ReservationMoved)]
    assert len(moved) == 1
    assert world.replays()


def test_a_node_is_replaced_while_the_reservation_is_on_and_its_job_goes_on_there(world: World) -> None:
    first, second = world.node("n1", slots=1), world.node("n2", slots=1)
    reserve(world, count=1, after_s=0.0)
    own = world.submit(reservation="night", requeue="auto")
    assert nodes_of(world, own) == ["n1"]
    world.wait(60.0, second)
    assert world.state.nodes["n1"].state == "lost"
    assert nodes_of(world, own) == ["n2"]
    assert first.running


def test_a_reservation_is_as_it_was_behind_a_restart_and_a_snapshot(world: World) -> None:
    node = world.node("n1")
    made = reserve(world)
    world.restart()
    node.come()
    assert replace(listed(world)["night"], starts_in_s=0.0, ends_in_s=0.0) == replace(
        made, starts_in_s=0.0, ends_in_s=0.0
    )
    assert State.decode(world.state.encode()).reservations == world.state.reservations
    assert nodes_of(world, world.submit()) == []


def test_asked_again_a_wish_makes_no_second_one(world: World) -> None:
    world.node("n1")
    assert reserve(world, key="one") == reserve(world, key="one")
    assert len(listed(world)) == 1


# ---- bad wishes


@pytest.mark.parametrize(
    ("words", "what", "why"),
    [
        ({"nodes": "n7"}, "no node 'n7'", ""),
        ({"nodes": "n[1-"}, "'n[1-'", ""),
        ({"users": ("eve",)}, "no user 'eve'", ""),
        ({"users": tuple(map(str, range(300)))}, "300 users of one reservation", ""),
        ({"start_s": START_S - 3_600.0}, "would begin in the past", "1h ago"),
        ({"start_s": START_S + 400 * 86_400.0}, "would begin too late", ""),
        ({"start_s": float("nan")}, "would begin too late", ""),
        ({"after_s": -1.0}, "a start in -1 s", ""),
        ({"for_s": 0.0}, "a reservation for 0 s", ""),
        ({"for_s": 1e12}, "a reservation for 1000000000000 s", ""),
        ({"for_s": float("nan")}, "a reservation for nan s", ""),
        ({"name": "a b"}, "'a b' is no name", ""),
        ({"name": "x" * 65}, "is no name", ""),
        ({"nodes": "", "count": 0}, "which nodes", ""),
        ({"nodes": "n1", "count": 1}, "which nodes", ""),
        ({"nodes": "", "count": -1}, "-1 nodes", ""),
        ({"nodes": "", "count": 5_000}, "5000 nodes", ""),
        ({"nodes": "", "count": 3}, "3 nodes can't be reserved", "1 can be had"),
        ({"nodes": "n2"}, "n2 is reserved in that time already", "as taken"),
        ({"name": "taken"}, "there is a reservation taken already", ""),
        ({"key": ""}, "no usable key", ""),
    ],
)
def test_a_wish_that_cant_be_is_refused_in_words(world: World, words: dict[str, Any], what: str, why: str) -> None:
    world.node("n1")
    world.node("n2")
    reserve(world, nodes="n2", name="taken")
    wish = {"key": "k", "for_s": HOUR_S, "after_s": HOUR_S, "nodes": "n1", "name": "night", **words}
    error = refused(world.answer(ms.Reserve(**wish), "root"))
    assert what in error["what"] and why in error["why"] and error["cure"]
    assert list(listed(world)) == ["taken"]


def test_there_is_a_limit_on_reservations(monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    monkeypatch.setattr(reservations, "RESERVATIONS_MAX", 1)
    world.node("n1")
    reserve(world)
    error = refused(world.answer(ms.Reserve("k", 60.0, 0.0, 9 * HOUR_S, "n1"), "root"))
    assert error["what"] == "1 reservations are made already"


def test_a_job_of_a_reservation_that_isnt_or_is_anothers_is_refused(world: World) -> None:
    world.node("n1")
    reserve(world)
    with pytest.raises(AssertionError, match=r"no reservation 'nihgt'.*did you mean night"):
        world.submit(reservation="nihgt")
    with pytest.raises(AssertionError, match="night is not bob's to use"):
        world.submit("bob", reservation="night")


def test_an_unknown_reservation_cant_be_cancelled_and_none_isnt_all(world: World) -> None:
    world.node("n1")
    reserve(world)
    assert refused(world.answer(ms.CancelReservations(("day",)), "root"))["what"] == "no reservation 'day'"
    assert refused(world.answer(ms.CancelReservations(()), "root"))["what"] == "no reservation named"
    assert list(listed(world)) == ["night"]


def test_nodes_say_for_whom_they_are(world: World) -> None:
    node = world.node("n1")
    world.node("n2")
    reserve(world)
    answer: ms.NodesAre = world.answer(ms.ListNodes())
    assert [one.reserved for one in answer.nodes] == ["reserved for ann (night) in 1h, for 1h", ""]
    world.wait(HOUR_S + 60.0, node)
    answer = world.answer(ms.ListNodes())
    assert answer.nodes[0].reserved == "reserved for ann (night) for 59m more"


def test_a_snapshot_of_before_there_were_reservations_is_read() -> None:
    state = State()
    state.apply(ev.Born("c" * 32, "A", START_S))
    image = msgspec.msgpack.decode(state.encode())
    former = State.decode(msgspec.msgpack.encode(image[:-2]))
    assert former.reservations == {} and former.encode() == state.encode()


# ---- whatever happens


SPECS: list[dict[str, Any]] = [
    {},
    {"time_limit_s": 20.0},
    {"time_limit_s": 200.0},
    {"ranks": 3},
    {"ranks": 2, "nodes": 2, "time_limit_s": 20.0},
    {"signal": 10, "notice_s": 5.0},
    {"movable": True, "notice_s": 10.0},
    {"requeue": "auto", "signal": 10, "notice_s": 0.0},
    {"reservation": True},
    {"reservation": True, "ranks": 3, "time_limit_s": 60.0},
    {"reservation": True, "ranks": 2, "nodes": 2, "signal": 10},
]
ACTS = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(SPECS), st.integers(0, 2)),
    st.tuples(st.just("reserve"), st.integers(0, 40), st.integers(1, 60), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("reserve nodes"), st.integers(0, 40), st.integers(1, 60), st.sampled_from(["n1", "n[2-3]"])),
    st.tuples(st.just("wait"), st.integers(1, 15)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("halt")),
    st.tuples(st.just("lose"), st.integers(0, 3)),
    st.tuples(st.just("come back"), st.integers(0, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 2)),
    st.tuples(st.just("restart")),
)


class Watch:
    """Looks at every entry of the journal on its own: whether what starts may start there, by the book."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = State()
        self.kept: set[int] = set()

    def look(self) -> None:
        """Look at the entries since the last time."""
        for entry in self.world.disk.entries[self.state.index :]:
            event = ev.decode(entry)
            if isinstance(event, ev.Started):
                self._check(event)
            self.state.apply(event)

    def _check(self, event: ev.Started) -> None:
        job, now_s = self.state.jobs[event.job], event.time_s
        spec = job.spec
        own = self.state.reservations.get(spec.reservation)
        if own:
            assert own.start_s <= now_s and job.user in own.users
        for part in event.parts:
            assert not own or part.node in own.nodes, "a job of a reservation starts on its nodes alone"
            for one in self.state.reservations.values():
                if one is own or part.node not in one.nodes or now_s >= one.end_s:
                    continue
                ends_before = spec.time_limit_s and now_s + spec.time_limit_s <= one.start_s
                can_leave = bool(spec.signal or spec.movable) and now_s < one.start_s - spec.notice_s
                assert ends_before or can_leave, f"job {job.id} reaches into {one.name} on {part.node}"

    def check_ways(self) -> None:
        """What is still in the way of a reservation that is on was asked to leave, or is being ended."""
        for one in self.world.state.reservations.values():
            if one.is_on(self.world.wall_s):
                for job, names in calendar.in_the_way(self.world.state, one).values():
                    assert job.state == "ending" or (job.move and set(names) <= set(job.move.leave)), job
                    assert job.state == "ending" or not one.kill


def act(world: World, watch: Watch, nodes: list[Node], alive: set[str], what: tuple[Any, ...]) -> None:
    """Do one thing."""
    match what:
        case ("submit", words, number):
            names = sorted(world.state.reservations)
            wish = dict(words)
            if wish.pop("reservation", False):
                wish["reservation"] = names[number % len(names)] if names else ""
            world.submit(**wish)
        case ("reserve", after_s, for_s, count, kill):
            world.answer(ms.Reserve(f"k{world.requests}", for_s, 0.0, after_s, "", count, ("ann",), "", kill), "root")
        case ("reserve nodes", after_s, for_s, names):
            world.answer(ms.Reserve(f"k{world.requests}", for_s, 0.0, after_s, names, users=("ann",)), "root")
        case ("wait", seconds):
            for _ in range(seconds):
                world.wait(1.0, *(node for node in nodes if node.name in alive))
                watch.look()
            watch.check_ways()
        case ("end", number):
            running = [(node, job) for node in nodes if node.name in alive for job, _ in sorted(node.running)]
            for node, job in running[number : number + 1]:
                attempt = world.job(job).attempt
                if attempt and any(part.node == node.name and part.state == "live" for part in attempt.parts):
                    node.end(job)
        case ("halt",):
            for node in nodes:
                for job, number in sorted(node.running) if node.name in alive else ():
                    found = world.state.jobs.get(job)
                    is_asked = found and found.attempt_number == number and (found.move or found.state == "ending")
                    if is_asked and (job, number) in world.state.live_parts(node.name):
                        node.end(job, EXIT_HALTED)
        case ("lose", number):
            alive.discard(nodes[number].name)
        case ("come back", number):
            node = nodes[number]
            if node.name not in alive:
                alive.add(node.name)
                node.reborn(boot=True).come()
        case ("cancel", number):
            for name in sorted(world.state.reservations)[number : number + 1]:
                world.answer(ms.CancelReservations((name,)), "root")
        case ("restart",):
            world.restart()
            for node in nodes:
                if node.name in alive:
                    node.come()


@how(max_examples=100, deadline=None)
@given(st.integers(0, 25), st.lists(ACTS, min_size=8, max_size=25))
def test_whatever_happens_nothing_starts_that_is_in_the_way_of_a_reservation(
    after_s: int, happening: list[tuple[Any, ...]]
) -> None:
    world = World(settings(lease_s=4.0))
    nodes = [able(world.node(f"n{number}", slots=3)) for number in range(1, 5)]
    alive = {node.name for node in nodes}
    watch = Watch(world)
    for what in [("reserve nodes", after_s, 60, "n1"), ("reserve", after_s, 40, 2, False), *happening]:
        act(world, watch, nodes, alive, what)
        watch.look()
    assert world.replays()
