"""Questions that the head passes on to nodes: who is asked about what, who is told, and what if nobody answers."""

from __future__ import annotations

from typing import Any

import pytest

from beo import events as ev
from beo import messages as ms
from beo.headnode import inquiries
from tests.test_decide import refused
from tests.world import Node, World

MACHINE = ms.Machine(0.5, 4, 1 << 30, 1 << 29)


@pytest.fixture
def world() -> World:
    return World()


def process(job: int, pid: int, attempt: int = 1, rank: int = 0) -> ms.Process:
    return ms.Process(job, attempt, pid, 1, rank, "R", 1.0, 2.0, 1 << 20, 1, "a secret command")


def inspected(node: Node, *rows: ms.Process, more: int = 0) -> None:
    """Let a node answer what it was asked last."""
    asked = node.commands(ms.Inspect)[-1]
    node.tell(ms.Processes(node.name, node.incarnation, asked.ask, MACHINE, tuple(rows), more))


def struck(node: Node, *hits: ms.Hit) -> None:
    asked = node.commands(ms.Strike)[-1]
    node.tell(ms.Hits(node.name, node.incarnation, asked.ask, tuple(hits)))


# ---- looking


def test_every_node_with_a_job_is_asked_and_the_answer_has_all_they_told(world: World) -> None:
    one, other, idle = world.node("n1", slots=1), world.node("n2", slots=1), world.node("n3", slots=1)
    job = world.submit(ranks=2)
    request = world.ask(ms.ListProcesses())
    assert one.commands(ms.Inspect)[0].attempts == ((job, 1),) and not idle.commands(ms.Inspect)
    inspected(other, process(job, 21))
    assert not world.answers(request)
    inspected(one, process(job, 11))
    (answer,) = world.answers(request)
    assert [(told.node, [row.pid for row in told.processes]) for told in answer.nodes] == [("n1", [11]), ("n2", [21])]
    assert (answer.users, answer.silent, answer.more) == ({job: "ann"}, (), 0)


def test_nodes_that_do_not_answer_in_time_are_named(world: World) -> None:
    one, _ = world.node("n1", slots=1), world.node("n2", slots=1)
    job = world.submit(ranks=2)
    request = world.ask(ms.ListProcesses())
    inspected(one, process(job, 11))
    world.wait(ms.INSPECT_S + 0.1)
    (answer,) = world.answers(request)
    assert ([told.node for told in answer.nodes], answer.silent) == (["n1"], ("n2",))
    inspected(one, process(job, 11))
    assert len(world.answers(request)) == 1, "what comes too late is dropped"


def test_a_node_that_this_head_has_not_heard_of_is_silent_at_once(world: World) -> None:
    world.node("n1")
    world.submit()
    world.restart()
    assert world.answer(ms.ListProcesses()).silent == ("n1",)


def test_nobody_sees_the_processes_of_others_but_admins(world: World) -> None:
    node = world.node("n1")
    own, foreign = world.submit("ann"), world.submit("bob")
    request = world.ask(ms.ListProcesses(), "ann")
    assert node.commands(ms.Inspect)[-1].attempts == ((own, 1),)
    inspected(node, process(own, 1), process(foreign, 2))
    assert [row.job for row in world.answers(request)[0].nodes[0].processes] == [own], "even if a node tells too much"
    assert refused(world.answer(ms.ListProcesses((str(foreign),)), "ann"))["kind"] == "Refused"
    assert refused(world.answer(ms.ListProcesses(user="bob"), "ann"))["what"].startswith("the processes of bob")
    world.ask(ms.ListProcesses(), "root")
    assert node.commands(ms.Inspect)[-1].attempts == ((own, 1), (foreign, 1))
    world.ask(ms.ListProcesses(user="bob"), "root")
    assert node.commands(ms.Inspect)[-1].attempts == ((foreign, 1),)


def test_a_look_can_be_narrowed_to_nodes_and_widened_to_idle_ones(world: World) -> None:
    one, other = world.node("n1", slots=1), world.node("n2", slots=1)
    world.submit(ranks=2)
    world.ask(ms.ListProcesses(nodes="n2"))
    assert (len(one.commands(ms.Inspect)), len(other.commands(ms.Inspect))) == (0, 1)
    idle = world.node("n3")
    request = world.ask(ms.ListProcesses(machines=True), "bob")
    for node in (one, other, idle):
        assert node.commands(ms.Inspect)[-1].attempts == (), "it tells of its machine, and of no process"
        inspected(node)
    assert [told.machine for told in world.answers(request)[0].nodes] == [MACHINE] * 3
    assert "n2" in str(refused(world.answer(ms.ListProcesses(nodes="n22"))))


def test_without_anything_that_runs_the_answer_is_empty(world: World) -> None:
    world.node("n1")
    assert world.answer(ms.ListProcesses()).nodes == ()


def test_an_answer_is_bounded_and_says_what_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    node = world.node("n1")
    job = world.submit()
    monkeypatch.setattr(ms, "PROCESSES_MAX", 3)
    request = world.ask(ms.ListProcesses())
    inspected(node, *(process(job, pid) for pid in range(3)), more=7)
    (answer,) = world.answers(request)
    assert (len(answer.nodes[0].processes), answer.more) == (3, 7)


def test_questions_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiries, "INQUIRIES_MAX", 2)
    world.node("n1")
    world.submit()
    for _ in range(2):
        world.ask(ms.ListProcesses())
    assert refused(world.answer(ms.ListProcesses()))["kind"] == "Conflict"
    world.wait(3.0)
    assert not world.answers(world.ask(ms.ListProcesses()))


def test_a_full_answer_fits_into_a_message() -> None:
    row = ms.Process(2**53, 50, 2**22, 2**22, 16_383, "R", 123456.78, 123456.78, 2**50, 9_999, "x" * 200)
    told = ms.Inspected("n" * 253, MACHINE, (row,) * ms.PROCESSES_MAX)
    assert len(ms.encode(ms.ProcessesAre((told,), {}))) < ms.MESSAGE_SIZE_MAX_BYTES


# ---- signals


def target(job: int, **words: Any) -> ms.Target:
    return ms.Target(**{"job": job, "node": "", "pid": 0, "rank": -1, **words})


def test_a_process_is_struck_on_its_node_once_the_wish_is_durable(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.disk.slow = True
    request = world.ask(ms.SignalProcesses((target(job, node="n1", pid=77),), 9, "key"))
    assert not node.commands(ms.Strike), "every outside act is an entry first"
    world.flush()
    (strike,) = node.commands(ms.Strike)
    assert (strike.key, strike.signal, strike.targets) == ("key", 9, ((1, target(job, node="n1", pid=77)),))
    world.disk.slow = False
    struck(node, ms.Hit(job, 77, -1, "", "sleep"))
    (answer,) = world.answers(request)
    assert answer.hits == (ms.Hit(job, 77, -1, "", "sleep", "n1"),)
    assert isinstance(ev.decode(world.disk.entries[-1]), ev.ProcessSignalled) and world.replays()


def test_every_node_of_a_job_is_asked_for_a_rank(world: World) -> None:
    one, other = world.node("n1", slots=1), world.node("n2", slots=1)
    job = world.submit(ranks=2)
    request = world.ask(ms.SignalProcesses((target(job, rank=1),), 10, "key"))
    struck(one)
    struck(other, ms.Hit(job, 5, 1))
    assert [(hit.node, hit.rank) for hit in world.answers(request)[0].hits] == [("n2", 1)]


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        (ms.SignalProcesses((), 9, "key"), "UsageError"),
        (ms.SignalProcesses((ms.Target(1, "n1", 5),) * 1_001, 9, "key"), "UsageError"),
        (ms.SignalProcesses((ms.Target(1, "n1", 5),), 0, "key"), "UsageError"),
        (ms.SignalProcesses((ms.Target(1, "n1", 5),), 65, "key"), "UsageError"),
        (ms.SignalProcesses((ms.Target(1, "n1", 5),), 9, ""), "UsageError"),
        (ms.SignalProcesses((ms.Target(1, "n9", 5),), 9, "key"), "NotFound"),
        (ms.SignalProcesses((ms.Target(1, "n2", 5),), 9, "key"), "NotFound"),
        (ms.SignalProcesses((ms.Target(2, "", 0, 0),), 9, "key"), "Conflict"),
        (ms.SignalProcesses((ms.Target(7, "", 0, 0),), 9, "key"), "NotFound"),
    ],
)
def test_a_signal_for_what_is_not_there_is_refused_and_makes_no_entry(
    world: World, wish: ms.SignalProcesses, kind: str
) -> None:
    world.node("n1", slots=1)
    world.submit()
    world.submit()
    world.node("n2", slots=0)
    before = world.state.index
    assert refused(world.answer(wish))["kind"] == kind
    assert world.state.index == before
