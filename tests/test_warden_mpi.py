"""Real MPI programs under wardens: one node, and two in namespaces of their own with a toy relay in place of agents."""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo.worker import launch, probe
from tests.wardens import PATIENCE_S, Agent

pytest.importorskip("mpi4py")
KIND = probe.contain_kind()
pytestmark = pytest.mark.skipif(KIND == "subreaper", reason="no namespaces here: neither root nor user namespaces")

HELLO = """
from mpi4py import MPI
world = MPI.COMM_WORLD
print("hello", world.rank, world.size, world.allreduce(world.rank), flush=True)
"""
MEGABYTE = """
from mpi4py import MPI
world = MPI.COMM_WORLD
data = bytearray(1 << 20)
after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
for turn in range(4):
    request = world.Isend(bytes([world.rank + turn]) * (1 << 20), dest=after)
    world.Recv(data, source=before)
    request.Wait()
    assert data == bytes([before + turn]) * (1 << 20)
world.Barrier()
print(world.allreduce(1), world.Split_type(MPI.COMM_TYPE_SHARED).size, flush=True)
"""
WAIT = """
from mpi4py import MPI
world = MPI.COMM_WORLD
world.Barrier()
print("up", flush=True)
{then}
world.recv(source=world.rank)  # never comes
"""


class Cluster:
    """Some nodes, and the relay between their wardens: it forgets, repeats and holds back what it carries."""

    def __init__(self, folder: Path, nodes: int, chaos: random.Random | None = None) -> None:
        self.agents = {name: Agent(folder / name, KIND, name) for name in (f"node{i:02}" for i in range(1, nodes + 1))}
        self._chaos = chaos
        self._late: list[tuple[str, dict[str, Any]]] = []
        self._carried = dict.fromkeys(self.agents, 0)

    def start(self, program: str, ranks_per_node: int, **words: Any) -> None:
        """Order an attempt of `ranks_per_node` ranks on every node."""
        names = list(self.agents)
        attempt = launch.Attempt(
            job=1,
            attempt=1,
            argv=[sys.executable, "-c", program],
            cwd="/",
            env=dict(os.environ),
            size=len(names) * ranks_per_node,
            parts=[
                launch.Part(name, tuple(range(i * ranks_per_node, (i + 1) * ranks_per_node)))
                for i, name in enumerate(names)
            ],
            nodes_folded=",".join(names),
        )
        nonce = secrets.token_hex(8)
        for name, agent in self.agents.items():
            message = launch.start_message(attempt, launch.Facts("test", name, "lo"), nonce)
            agent.link.send({**message, **words})

    def relay(self) -> None:
        """Carry what the wardens have said so far."""
        for name, agent in self.agents.items():
            if not agent.link.closed:
                agent.poll(0.002)
            for message in agent.heard[self._carried[name] :]:
                if message["op"] in ("peer", "peer_ack"):
                    words: dict[str, Any] = {
                        key: message[key] for key in ("op", "job", "attempt", "seq", "body") if key in message
                    }
                    self._carry(message["to"], {**words, "from": name})
            self._carried[name] = len(agent.heard)

    def _carry(self, to: str, message: dict[str, Any]) -> None:
        chance = self._chaos.random() if self._chaos else 1.0
        if chance < 0.2:
            return
        if chance < 0.4:
            self._late.append((to, message))
            return
        self.agents[to].link.send(message)
        for late_to, late in self._late:
            self.agents[late_to].link.send(late)
        self._late.clear()
        if chance < 0.6:
            self.agents[to].link.send(message)

    def output(self) -> bytes:
        """What all ranks have printed on stdout."""
        return b"".join(agent.output() for agent in self.agents.values())

    def results(self) -> list[dict[str, Any]]:
        """Relay until every node's part has ended; their results in order."""
        deadline = time.monotonic() + 4 * PATIENCE_S
        while True:
            self.relay()
            ended = [[m for m in agent.heard if m["op"] == "ended"] for agent in self.agents.values()]
            if all(ended):
                return [messages[0]["result"] for messages in ended]
            assert time.monotonic() < deadline, [agent.heard[-3:] for agent in self.agents.values()]

    def until_printed(self, text: bytes, count: int) -> None:
        """Relay until the ranks have printed `text` so many times."""
        deadline = time.monotonic() + 4 * PATIENCE_S
        while self.output().count(text) < count:
            self.relay()
            assert time.monotonic() < deadline, [a.output(fd=2) for a in self.agents.values()]


def statuses(results: list[dict[str, Any]]) -> list[int]:
    return [rank["status"] for result in results for rank in result["ranks"]]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, 1)
    yield cluster
    for agent in cluster.agents.values():
        agent.close()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, 2)
    yield cluster
    for agent in cluster.agents.values():
        agent.close()


def test_two_ranks_on_one_node_say_hello(one: Cluster) -> None:
    one.start(HELLO, 2)
    assert statuses(one.results()) == [0, 0]
    assert sorted(one.output().splitlines()) == [b"hello 0 2 1", b"hello 1 2 1"]


def test_a_megabyte_goes_round_on_one_node(one: Cluster) -> None:
    one.start(MEGABYTE, 2)
    assert statuses(one.results()) == [0, 0]
    assert one.output() == b"2 2\n" * 2


def test_four_ranks_on_two_nodes_pass_megabytes_and_know_who_shares_memory(two: Cluster) -> None:
    two.start(MEGABYTE, 2)
    assert statuses(two.results()) == [0, 0, 0, 0]
    assert two.output() == b"4 2\n" * 4


def test_a_relay_that_forgets_repeats_and_reorders_changes_nothing(two: Cluster) -> None:
    two._chaos = random.Random(7)
    two.start(HELLO, 1)
    assert statuses(two.results()) == [0, 0]
    assert sorted(two.output().splitlines()) == [b"hello 0 2 1", b"hello 1 2 1"]


def test_agents_that_are_replaced_are_noticed_by_no_rank(two: Cluster) -> None:
    two.start(WAIT.format(then="import sys; world.Barrier(); sys.exit(world.allreduce(1))"), 1)
    for agent in two.agents.values():
        agent.reattach()
    two.until_printed(b"up", 2)
    for agent in two.agents.values():
        agent.reattach()
    deadline = time.monotonic() + PATIENCE_S
    while not all(any(m.get("phase") == "ended" or m["op"] == "ended" for m in a.heard) for a in two.agents.values()):
        two.relay()
        assert time.monotonic() < deadline
    assert two.output() == b"up\n" * 2


def test_a_killed_rank_ends_the_attempt_on_every_node(two: Cluster) -> None:
    two.start(WAIT.format(then=""), 2)
    two.until_printed(b"up", 4)
    victim = two.agents["node02"].pids()["3"]
    killed_at = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    first, second = two.results()
    assert time.monotonic() - killed_at < 5
    assert statuses([first, second]) == [137] * 4
    for result in (first, second):
        assert (result["reason"], result["culprit"], result["status"]) == ("rank 3 was killed by SIGKILL", 3, 137)


def test_mpi_abort_ends_every_node_with_its_code(two: Cluster) -> None:
    two.start(WAIT.format(then="if world.rank == 1: world.Abort(7)"), 1)
    first, second = two.results()
    assert statuses([second]) == [7] and statuses([first]) == [137]
    for result in (first, second):
        assert (result["culprit"], result["status"]) == (1, 7)
        assert result["reason"].startswith("rank 1 called MPI_Abort")


def test_a_rank_that_leaves_without_finalize_ends_the_attempt(one: Cluster) -> None:
    one.start(WAIT.format(then="import os\nif world.rank == 1: os._exit(3)"), 2)
    result = one.results()[0]
    assert statuses([result]) == [137, 3]
    assert (result["reason"], result["culprit"]) == ("rank 1 ended between MPI_Init and MPI_Finalize", 1)


def test_a_node_whose_program_is_missing_does_not_leave_the_other_waiting(two: Cluster) -> None:
    two.start("import os\nif os.environ['BEO_RANK'] == '1': os._exit(4)\n" + HELLO, 1)
    first, second = two.results()
    assert statuses([first, second]) == [137, 4]
    assert first["reason"] == "rank 1 has left while other ranks wait for it in a PMI barrier"


def test_a_rank_that_talks_nonsense_ends_the_attempt_with_a_clear_reason(one: Cluster) -> None:
    one.start("import os, time\nos.write(int(os.environ['PMI_FD']), b'\\xffwhat?\\n')\ntime.sleep(1000)", 2)
    result = one.results()[0]
    assert "sent a PMI line that isn't text" in result["reason"]


def test_mpi_comm_spawn_is_refused_and_does_not_hang(one: Cluster) -> None:
    program = """
from mpi4py import MPI
import sys
MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
try:
    MPI.COMM_WORLD.Spawn(sys.executable, ["-c", "pass"], maxprocs=1)
except MPI.Exception as error:
    print("refused", flush=True)
"""
    one.start(program, 2)
    one.results()
    assert b"refused" in one.output()
