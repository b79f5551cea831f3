"""What ended jobs took, page by page."""

from __future__ import annotations

import time
from typing import Any

import pytest

from beo import events as ev
from beo import messages as ms
from beo.headnode import ledger, views
from beo.headnode.decide import User
from beo.headnode.model import Attempt, Job, PartState
from beo.headnode.state import State
from tests.test_decide import refused
from tests.world import START_S, World, settings, spec


@pytest.fixture
def world() -> World:
    return World()


def pages(world: World, who: str = "ann", **words: Any) -> list[ms.JobRecord]:
    """All rows, asked for as a client does."""
    found: list[ms.JobRecord] = []
    before = 0
    while True:
        answer = world.answer(ms.ListHistory(**{"before": before, **words}), who)
        found += answer.jobs
        if not answer.next:
            return found
        assert before == 0 or answer.next < before
        before = answer.next


def test_a_record_tells_what_a_job_took(world: World) -> None:
    job = world.submit(ranks=3, cpus=2)
    world.boot_s, world.wall_s = world.boot_s + 5, world.wall_s + 5
    nodes = [world.node("n1", slots=4), world.node("n2", slots=2)]
    world.wait(10.0, *nodes)
    for node in nodes:
        node.end(job)
    (row,) = pages(world)
    assert (row.id, row.state, row.exit_code, row.ranks, row.slots, row.nodes) == (job, "done", 0, 3, 6, "n[1-2]")
    assert (round(row.waited_s), round(row.ran_s), row.attempts) == (5, 10, 1)
    assert (row.cpu_s, row.peak_bytes) == (0.3, 1024), "the ranks' CPU time adds up, the peak is the largest rank's"


def test_the_attempts_of_a_job_add_up(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.wait(4.0, node)
    world.answer(ms.Requeue(((job, 1),)))
    node.end(job, 143, "ended")
    world.wait(6.0, node)
    node.end(job)
    (row,) = pages(world)
    assert (row.attempts, round(row.ran_s), row.cpu_s, round(row.waited_s)) == (2, 10, 0.2, 0)


def test_a_job_that_never_ran_waited_all_its_life(world: World) -> None:
    job = world.submit()
    world.wait(7.0)
    world.answer(ms.Cancel((str(job),)))
    (row,) = pages(world)
    assert (row.waited_s, row.ran_s, row.nodes, row.started_s, row.state) == (7.0, 0.0, "", 0.0, "cancelled")


def test_only_what_ended_and_is_meant_is_told(world: World) -> None:
    node = world.node("n1", slots=8)
    ann, bob = [world.submit("ann") for _ in range(3)], [world.submit("bob") for _ in range(2)]
    node.end(ann[0])
    node.end(ann[1], 1)
    world.wait(10.0, node)
    node.end(bob[0])
    assert [row.id for row in pages(world)] == [bob[0], ann[1], ann[0]], "the newest first"
    assert [row.id for row in pages(world, user="ann")] == ann[1::-1]
    assert [row.id for row in pages(world, states=("failed",))] == [ann[1]]
    assert [row.id for row in pages(world, since_s=START_S + 5)] == [bob[0]]
    assert [row.id for row in pages(world, until_s=START_S + 5)] == ann[1::-1]
    assert [row.id for row in pages(world, select=("1-2",))] == ann[1::-1]
    assert "done" in refused(world.answer(ms.ListHistory(states=("running",))))["cure"]
    assert refused(world.answer(ms.ListHistory(("99",))))["kind"] == "NotFound"


def test_how_anothers_job_ended_is_not_told_in_its_words() -> None:
    world = World(settings(private=True))
    node = world.node("n1")
    job = world.submit("ann", name="sim")
    node.end(job, 1, "rank", 0, "a secret word")
    told = {who: pages(world, who)[0] for who in ("ann", "bob", "root")}
    assert {who: (row.name, row.reason) for who, row in told.items()} == {
        "ann": ("sim", "a secret word"),
        "bob": ("-", ""),
        "root": ("sim", "a secret word"),
    }


@pytest.mark.slow
def test_a_hundred_thousand_jobs_are_told_in_pages_of_a_moment_each() -> None:
    state = State()
    result = ev.PartResult((ev.RankResult(0, 0, 1.0, 0.0, 1024),))
    wanted = spec()
    for number in range(1, 100_001):
        attempt = Attempt(1, 1, "", START_S, [PartState("n1", "i", 0, 1, "ended", result)], ended_s=START_S + 1)
        user = "rare" if number % 50_000 == 1 else "ann"
        state.jobs[number] = Job(number, "", user, 0, 0, (), wanted, START_S, "done", [attempt], ended_s=START_S + 1)
    root, found, before, longest_s = User("root", "admin"), 0, 0, 0.0
    while True:
        began_s = time.thread_time()
        page = ledger.page(state, root, ms.ListHistory(before=before), lambda job: "x")
        longest_s = max(longest_s, time.thread_time() - began_s)
        assert len(page.jobs) <= ledger.PAGE_MAX and len(ms.encode(page)) < ms.MESSAGE_SIZE_MAX_BYTES
        found += len(page.jobs)
        if not page.next:
            break
        before = page.next
    assert found == 100_000
    assert longest_s < 0.5, "CPU time of one page, thirty times what it takes"
    rare, before, asked = [], 0, 0
    while before or not asked:
        page = ledger.page(state, root, ms.ListHistory(user="rare", before=before), lambda job: "x")
        rare += [row.id for row in page.jobs]
        before, asked = page.next, asked + 1
    assert rare == [50_001, 1] and asked == 100_000 // ledger.SCAN_MAX


@pytest.mark.parametrize(
    ("event", "job", "node", "meant"),
    [
        (ev.Started(7, 1, (ev.Part("n1", "i", 0, 1), ev.Part("n2", "i", 1, 1)), "", 1.0), 7, "n2", True),
        (ev.Started(7, 1, (ev.Part("n1", "i", 0, 1),), "", 1.0), 0, "n2", False),
        (ev.NodeLost("n1", "i", "", 1.0), 0, "n1", True),
        (ev.NodeLost("n1", "i", "", 1.0), 7, "", False),
        (ev.Forgotten((6, 7), 1.0), 7, "", True),
        (ev.EpochBegan(1, "A", 1.0), 0, "", True),
        (ev.EpochBegan(1, "A", 1.0), 0, "n1", False),
    ],
)
def test_an_event_names_its_job_and_its_nodes(event: ev.Event, job: int, node: str, meant: bool) -> None:
    assert views.names(event, job, node) is meant
