"""MPI_Comm_spawn under real wardens: children on the slots of the job, on one node and over two."""

from __future__ import annotations

import os
import random
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo.worker import launch, probe
from tests.test_warden_mpi import Cluster, statuses
from tests.test_warden_steps import Allocation, run

pytest.importorskip("mpi4py")
KIND = probe.contain_kind()
pytestmark = pytest.mark.skipif(KIND == "subreaper", reason="no namespaces here: neither root nor user namespaces")

HEAD = """
import os, sys
from mpi4py import MPI
world, parent = MPI.COMM_WORLD, MPI.Comm.Get_parent()
def say(*words): os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def me(**info): return {"command": sys.executable, "args": [__file__], "info": MPI.Info.Create(info)}
"""
MERGED = """
if parent == MPI.COMM_NULL:
    children = world.Spawn(**me(), maxprocs=3)
    merged = children.Merge()
    say("sum", merged.allreduce(merged.rank), "universe", world.Get_attr(MPI.UNIVERSE_SIZE))
else:
    merged = parent.Merge(high=True)
    merged.allreduce(merged.rank)
    say("child", world.rank, "of", world.size, "number", merged.rank, os.environ["BEO_NODE"], os.environ["BEO_STEP"])
data = bytearray(1 << 20)
merged.Bcast(data, root=merged.size - 1)
merged.Free()
"""
EACH_ITS_OWN = """
if parent == MPI.COMM_NULL:
    infos = [MPI.Info.Create({"wdir": "/tmp"}), MPI.Info.Create({"host": "node02", "unknown": "x"})]
    children = world.Spawn_multiple([sys.executable] * 2, [[__file__, "one"], [__file__, "two"]], [1, 2], infos)
    children.barrier()
else:
    say(world.rank, world.Get_attr(MPI.APPNUM), sys.argv[1], os.getcwd(), os.environ["BEO_NODE"])
    parent.barrier()
"""
REFUSED = """
if parent == MPI.COMM_NULL:
    for words in ({"maxprocs": 9}, {"maxprocs": 1, "command": "/no/such"}, {"maxprocs": 2, **me(host="nodeX")}):
        try:
            world.Spawn(**{**me(), **words})
        except MPI.Exception as error:
            say("an error")
    for turn in range(3):
        world.Spawn(**me(soft="1:3"), maxprocs=8).Disconnect()
    say("went on")
else:
    say("child of", world.size)
    parent.Disconnect()
"""
WAITING = """
if parent == MPI.COMM_NULL:
    children = world.Spawn(**me(), maxprocs=1)
    try:
        world.Spawn(**me(), maxprocs=1)
    except MPI.Exception as error:
        say("an error")
    children.barrier()
else:
    parent.barrier()
    say("child")
"""
FAILING = """
if parent == MPI.COMM_NULL:
    children = world.Spawn(**me(), maxprocs=2)
    children.barrier()
    {parent}
else:
    parent.barrier()
    if world.rank == 1:
        {child}
    {sibling}
"""
NAMES = """
if parent == MPI.COMM_NULL:
    children = world.Spawn(**me(), maxprocs=1)
    port = MPI.Open_port()
    MPI.Publish_name("meeting", port)
    children.send(None, dest=0)
    MPI.COMM_SELF.Accept(port).send("hello", dest=0)
    children.barrier()
    MPI.Unpublish_name("meeting", port)
else:
    parent.recv(source=0)
    for _ in range(100):
        try:
            port = MPI.Lookup_name("meeting")
            break
        except MPI.Exception:
            import time
            time.sleep(0.01)
    say(MPI.COMM_SELF.Connect(port).recv(source=0))
    parent.barrier()
"""


class Job(Cluster):
    """An MPI job of one rank with room for more."""

    def begin(self, folder: Path, program: str, more: tuple[int, ...], **words: Any) -> None:
        """Order it: `more` slots on each node beyond the rank's own."""
        (folder / "program.py").write_text(HEAD + program)
        names = list(self.agents)
        parts = [launch.Part(name, () if n else (0,), more[n], "127.0.0.1") for n, name in enumerate(names)]
        argv = [sys.executable, str(folder / "program.py")]
        attempt = launch.Attempt(1, 1, argv, "/", dict(os.environ), 1, parts, ",".join(names))
        nonce = secrets.token_hex(8)
        for name, agent in self.agents.items():
            message = launch.start_message(attempt, launch.Facts("test", name, "lo"), nonce)
            agent.link.send({**message, **words})

    def lines(self) -> list[str]:
        """What was printed, sorted."""
        return sorted(self.output().decode().splitlines())


def _job(folder: Path, nodes: int) -> Iterator[Job]:
    job = Job(folder, nodes)
    yield job
    for agent in job.agents.values():
        agent.close()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Job]:
    yield from _job(tmp_path, 1)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Job]:
    yield from _job(tmp_path, 2)


def test_spawned_ranks_are_one_world_with_those_who_spawned_them(one: Job, tmp_path: Path) -> None:
    one.begin(tmp_path, MERGED, (3,))
    (result,) = one.results()
    children = [f"child {n} of 3 number {n + 1} node01 1" for n in range(3)]
    assert one.lines() == [*children, "sum 6 universe 4"], one.agents["node01"].output(fd=2)
    assert (result["reason"], statuses([result])) == (None, [0])
    assert [(r["step"], r["rank"], r["status"], r["spawned"]) for r in result["steps"]] == [
        (1, n, 0, True) for n in (1, 2, 3)
    ]


def test_spawned_ranks_spread_over_the_nodes_of_the_job(two: Job, tmp_path: Path) -> None:
    two.begin(tmp_path, MERGED, (1, 2))
    results = two.results()
    nodes = ["node01", "node02", "node02"]
    children = [f"child {n} of 3 number {n + 1} {node} 1" for n, node in enumerate(nodes)]
    assert two.lines() == [*children, "sum 6 universe 4"]
    assert [result["reason"] for result in results] == [None, None]
    assert [[rank["rank"] for rank in result["steps"]] for result in results] == [[1], [2, 3]]


def test_every_program_of_a_spawn_has_its_own_words_folder_and_host(two: Job, tmp_path: Path) -> None:
    two.begin(tmp_path, EACH_ITS_OWN, (1, 2))
    two.results()
    assert two.lines() == ["0 0 one /tmp node01", "1 1 two / node02", "2 1 two / node02"]


@pytest.mark.slow  # of waiting
def test_a_spawn_for_which_no_slots_get_free_is_an_error_after_a_while(one: Job, tmp_path: Path) -> None:
    one.begin(tmp_path, WAITING, (1,))
    (result,) = one.results()
    assert one.lines() == ["an error", "child"]
    assert (result["reason"], statuses([result])) == (None, [0])


def test_a_spawn_that_can_not_be_is_an_error_at_the_caller_and_never_a_hang(one: Job, tmp_path: Path) -> None:
    one.begin(tmp_path, REFUSED, (3,))
    (result,) = one.results()
    assert one.lines() == ["an error"] * 3 + ["child of 3"] * 9 + ["went on"]
    assert (result["reason"], statuses([result])) == (None, [0])
    assert all(rank["status"] == 0 for rank in result["steps"])


@pytest.mark.parametrize(
    ("child", "reason", "status"),
    [
        ("world.Abort(9)", "step 1: rank 1 called MPI_Abort", 9),
        ("os.kill(os.getpid(), 9)", "step 1: rank 1 was killed by SIGKILL", 137),
        ("os._exit(3)", "step 1: rank 1 ended between MPI_Init and MPI_Finalize", 3),
    ],
)
def test_a_spawned_rank_that_fails_ends_the_attempt_like_any_other(
    two: Job, tmp_path: Path, child: str, reason: str, status: int
) -> None:
    program = FAILING.format(parent="children.recv(source=0)", child=child, sibling="world.recv(source=world.rank)")
    two.begin(tmp_path, program, (1, 1))
    results = two.results()
    assert all(result["reason"].startswith(reason) for result in results), results
    assert [result["culprit"] for result in results] == [2, 2]
    assert results[0]["status"] == status


def test_the_job_lasts_as_long_as_the_last_spawned_rank(two: Job, tmp_path: Path) -> None:
    program = FAILING.format(
        parent="children.Disconnect()",
        child="pass",
        sibling="parent.Disconnect(); import time; time.sleep(0.5); say('last words'); sys.exit(4)",
    )
    two.begin(tmp_path, program, (0, 2))
    results = two.results()
    assert two.lines() == ["last words"] * 2
    assert statuses(results) == [0]
    assert [result["reason"] for result in results] == [None, None]
    assert [rank["status"] for rank in results[1]["steps"]] == [4, 4]


def test_a_published_name_is_known_to_all_worlds_of_the_job(two: Job, tmp_path: Path) -> None:
    two.begin(tmp_path, NAMES, (0, 1))
    results = two.results()
    assert two.lines() == ["hello"], [agent.output(fd=2) for agent in two.agents.values()]
    assert [result["reason"] for result in results] == [None, None]


@pytest.mark.parametrize("seed", range(2))
def test_spawned_ranks_meet_over_agents_that_forget_and_repeat(tmp_path: Path, seed: int) -> None:
    job = Job(tmp_path, 2, random.Random(seed))
    try:
        job.begin(tmp_path, MERGED, (1, 2))
        results = job.results()
        assert job.lines()[-1] == "sum 6 universe 4" and len(job.lines()) == 4
        assert [result["reason"] for result in results] == [None, None]
    finally:
        for agent in job.agents.values():
            agent.close()


@pytest.mark.parametrize(
    ("child", "code", "reason"),
    [
        ("say('child', world.rank)", 0, []),
        ("world.Abort(9)", 9, ["reason: step 2: rank 1 called MPI_Abort"]),
        ("os.kill(os.getpid(), 9)", 137, ["reason: step 2: rank 1 was killed by SIGKILL"]),
    ],
)
def test_what_a_step_spawns_belongs_to_it_and_its_end_is_not_the_jobs(
    tmp_path: Path, child: str, code: int, reason: list[str]
) -> None:
    allocation = Allocation(tmp_path, 2)
    try:
        program = FAILING.format(
            parent="children.recv(source=0)" if code else "pass",
            child=child,
            sibling="world.recv(source=0)" if code else "pass",
        )
        (tmp_path / "program.py").write_text(HEAD + program)
        step = run([sys.executable, str(tmp_path / "program.py")], mpi=True)
        allocation.batch(tmp_path, f"{step}; echo code $?; {run(['echo', 'next'], ranks=4)}")
        results = allocation.results()
        lines = [line for line in allocation.output().decode().splitlines() if line not in ("child 1", "next")]
        assert lines[-1] == f"code {code}"
        assert [line.startswith(start) for line, start in zip(lines, reason, strict=False)] == [True] * len(reason)
        assert allocation.output().count(b"next\n") == 4, "the slots of the broken step are free again"
        assert allocation.output().count(b"child 1\n") == (not code)
        assert [(result["reason"], statuses([result])) for result in results] == [(None, [0]), (None, [])]
    finally:
        for agent in allocation.agents.values():
            agent.close()
