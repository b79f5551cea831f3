"""Why a job waits, in words."""

from __future__ import annotations

import msgspec
import pytest

from beo import messages as ms
from beo.headnode import acts
from beo.headnode.explain import describe
from beo.settings import FilesConfig
from tests.test_events import FACTS
from tests.world import World, settings


@pytest.fixture
def world() -> World:
    return World()


def test_without_a_node_a_job_says_so(world: World) -> None:
    assert world.why(world.submit()) == ("no node is up: see 'beo nodes'",)


def test_a_job_that_is_too_large_says_what_it_needs_and_what_there_is(world: World) -> None:
    world.node("n1", slots=4)
    world.node("n2", slots=2)
    job = world.submit(ranks=4, cpus=2, nodes=2)
    assert world.why(job) == (
        "needs 4 ranks of 2 slots on 2 nodes; the cluster has 6 slots on 2 nodes: it waits for more nodes",
    )


def test_memory_is_named_where_it_is_asked_for(world: World) -> None:
    world.node("n1", slots=4, mem_bytes=1 << 30)
    (sentence,) = world.why(world.submit(mem_bytes=2 << 30))
    assert sentence.startswith("needs 1 rank with 2GiB each; the cluster has 4 slots on 1 node with 1GiB")


def test_a_job_names_those_in_its_way_and_those_before_it(world: World) -> None:
    world.node("n1", slots=2)
    world.submit(ranks=1)
    world.submit(ranks=2)
    job = world.submit(ranks=2)
    assert world.why(job) == ("waits for 2 ranks: job 1 in the way", "1 job ahead of it in the queue")


def test_many_jobs_in_the_way_are_not_all_named(world: World) -> None:
    world.node("n1", slots=20)
    for _ in range(20):
        world.submit()
    assert world.why(world.submit())[0] == "waits for 1 rank: jobs 1, 2, 3, 4, 5, 6, 7, 8 … in the way"


def test_a_node_that_has_not_told_what_it_runs_is_named(world: World) -> None:
    world.node("n1", slots=2)
    world.restart()
    assert world.why(world.submit()) == ("n1 has not told yet what it runs",)


def test_a_job_behind_a_patient_one_says_so(world: World) -> None:
    node = world.node("n1", slots=2)
    world.submit(ranks=1)
    world.submit(ranks=2)
    world.wait(700.0, node)
    job = world.submit(ranks=1)
    assert world.why(job) == ("waits behind 1 job",)


def test_a_requeued_job_says_what_became_of_its_last_attempt(world: World) -> None:
    node = world.node("n1", slots=1)
    job = world.submit()
    node.obeys = False
    world.submit(priority=9)
    node.gone(job)
    assert world.row(job).state == "queued"
    assert world.why(job)[-1] == "attempt 1 was lost (n1: its warden was killed)"


def test_a_job_on_a_silent_node_says_what_it_waits_for_and_what_would_help(world: World) -> None:
    world.node("n1")
    job = world.submit()
    world.wait(20.0)
    assert world.why(job) == (
        "n1 is silent: attempt 1 may still run there, so it waits until n1 answers or you say 'beo gone n1'",
    )


def test_a_job_that_is_ended_says_by_whom(world: World) -> None:
    node = world.node("n1")
    job = world.submit()
    world.answer(ms.Cancel((str(job),)))
    assert world.why(job) == ("is ended: cancelled by ann",)
    node.end(job, 143, "ended")
    assert world.why(job) == ("cancelled by ann",)


def test_a_job_says_what_the_nodes_lack_that_it_needs() -> None:
    config = msgspec.structs.replace(settings(), files=FilesConfig(mounts={"/home/": "/home"}))
    world = World(config)
    facts = {"contain": "pidns", "lacks": "tree"}
    world.handle(acts.Asked(b"n1", 0, "worker", ms.Join("n1", "i1", "b", "n1:1", "k", 4, 1 << 30, facts, ())))
    world.handle(acts.Asked(b"n1", 0, "worker", ms.Ping("n1", "i1", 1, (), ())))
    world.turn()
    assert world.why(world.submit(cwd="/home/ann")) == ("runs in the tree of files, which n1 can't mount",)
    assert world.job(world.submit(cwd="/homely")).state == "running"


def test_every_event_has_a_sentence() -> None:
    told = {describe(fact) for fact in FACTS}
    assert {kind for kind, _, _, _ in told} == {type(fact).__name__ for fact in FACTS}
    assert all(text for _, _, _, text in told)
    assert ("PartEnded", 1, "n1", "attempt 1: why") in told
    assert ("NodeJoined", 0, "n1", "4 slots, 1GiB, still running 1 attempt") in told
