"""Steps and spawned ranks on a real cluster of two nodes, by the command line, while agents and nodes are killed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import submission
from tests.cluster import ROOT, Cluster, running, wait_for

RUN = f"{sys.executable} -m beo.front run"
# Every rank prints its own lines slowly enough that agents can be killed in between.
LINES = "i=0; while [ $i -lt 150 ]; do echo $BEO_RANK $i; i=$((i+1)); sleep 0.02; done"
SPAWN = """
import os, sys
from mpi4py import MPI
parent = MPI.Comm.Get_parent()
if parent == MPI.COMM_NULL:
    merged = MPI.COMM_WORLD.Spawn(sys.executable, [__file__, *sys.argv[1:]], maxprocs=2).Merge()
    print("sum", merged.allreduce(merged.rank), flush=True)
else:
    merged = parent.Merge(high=True)
    merged.allreduce(merged.rank)
    print("child on", os.environ["BEO_NODE"], flush=True)
merged.Free()
MPI.Finalize()
sys.exit(int(sys.argv[1]) if parent != MPI.COMM_NULL else 0)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("steps") / "beo") as made:
        yield made


def script(folder: Path, text: str) -> str:
    path = folder / "job.sh"
    path.write_text(f"#!/bin/sh\n#BEO -n 4\n{text}\n")
    return str(path)


def submitted(cluster: Cluster, *words: str) -> int:
    done = cluster.beo("submit", "-q", *words)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_script_over_two_nodes_runs_steps_on_both_and_show_lists_them(cluster: Cluster, tmp_path: Path) -> None:
    text = f"{RUN} -n 4 sh -c 'echo $BEO_RANK $BEO_NODE'; {RUN} -n 2 sh -c 'exit 3' || echo code $?"
    job = submitted(cluster, script(tmp_path, text))
    [view] = cluster.wait(job)
    assert (view.state, view.exit_code, view.nodes) == ("done", 0, "node[01-02]")
    lines = cluster.output(job).splitlines()
    assert sorted(lines) == ["0 node01", "1 node01", "2 node02", "3 node02", "code 3"]
    [detail] = json.loads(cluster.beo("show", str(job), "--json").stdout)
    [attempt] = detail["attempts"]
    assert [(rank["step"], rank["rank"], rank["status"]) for rank in attempt["steps"]] == [
        *((1, n, 0) for n in range(1, 5)),
        *((2, n, 3) for n in (5, 6)),
    ]
    assert "step 2, rank 6: status 3" in cluster.beo("show", str(job)).stdout
    assert all(node.used == 0 for node in map(cluster.node, ("node01", "node02")))


@pytest.mark.parametrize(("code", "state"), [(0, "done"), (6, "failed")])
def test_a_job_with_room_spawns_ranks_on_both_nodes_and_their_code_is_its_own(
    cluster: Cluster, tmp_path: Path, code: int, state: str
) -> None:
    pytest.importorskip("mpi4py")
    program = tmp_path / "spawn.py"
    program.write_text(SPAWN)
    done = cluster.beo("run", "-n", "1", "--slots", "3", sys.executable, str(program), str(code))
    assert sorted(done.stdout.splitlines()) == ["child on node01", "child on node02", "sum 3"], done.stderr
    assert done.returncode == code
    with cluster.client() as own:
        [detail] = own.show(["last"])
    assert (detail.view.state, detail.spec.slots) == (state, 3)
    ended = [rank for result in detail.attempts[-1].results for rank in result.steps]
    assert [(rank.rank, rank.status, rank.spawned) for rank in ended] == [(1, code, True), (2, code, True)]


def test_agents_killed_in_the_middle_of_a_steps_output_lose_and_double_no_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    job = submitted(cluster, script(tmp_path, f"{RUN} -n 4 sh -c '{LINES}'; echo code $?"))
    wait_for(lambda: "3 5\n" in cluster.output(job), "the step prints")
    cluster.kill_and_await("node02")
    cluster.kill_and_await("node01", "node02")
    assert cluster.job(job).state == "running", "it ended before all was killed: make it longer"
    [view] = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 1), view.reason
    found = cluster.output(job).splitlines()
    for rank in "0123":
        assert [line for line in found if line.startswith(f"{rank} ")] == [f"{rank} {n}" for n in range(150)]
    assert found[-1] == "code 0" and len(found) == 601


def test_a_lost_node_ends_the_steps_and_the_script_and_the_job_begins_again(cluster: Cluster, tmp_path: Path) -> None:
    text = f"echo attempt $BEO_ATTEMPT; [ $BEO_ATTEMPT = 2 ] || {RUN} -n 4 sh -c 'echo up; exec sleep 1000'"
    job = submitted(cluster, "--requeue", "auto", script(tmp_path, text))
    wait_for(lambda: cluster.output(job).count("up\n") == 4, "the step runs")
    cluster.kill_worker("node02")
    [view] = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 2), view.reason
    cluster.wait_for_node("node02", "up")


def test_a_job_that_asks_for_more_slots_than_there_are_says_so_and_waits(cluster: Cluster) -> None:
    job = submitted(cluster, "-n", "1", "--slots", "9", "true")
    why = cluster.beo("queue", str(job)).stdout
    assert "needs 1 rank and 9 slots in all; the cluster has 4 slots on 2 nodes" in why
    assert cluster.beo("cancel", str(job)).returncode == 0


def test_slots_is_an_option_everywhere(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "own.sh"
    path.write_text("#!/bin/sh\n#BEO -n 1 --slots 3\ntrue\n")
    job = submitted(cluster, str(path))
    cluster.wait(job)
    with cluster.client() as own:
        [detail] = own.show([str(job)])
    assert detail.spec.slots == 3 and submission.new_spec(["true"], cwd=str(ROOT), slots=2).slots == 2
    assert "3 slots in all" in cluster.beo("show", str(job)).stdout
