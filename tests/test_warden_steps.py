"""Steps under real wardens: what a job's own processes start, on one node and on two with a toy relay between them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo.worker import launch, probe
from tests.test_warden_mpi import Cluster, statuses

KIND = probe.contain_kind()
pytestmark = pytest.mark.skipif(KIND == "subreaper", reason="no namespaces here: neither root nor user namespaces")
PYTHON = sys.executable
ROOT = str(Path(__file__).resolve().parent.parent)

CLIENT = """
import json, os, sys
from beo.worker.caller import Caller, StepError, environment, exit_code, knock
request = {"cwd": "/", "env": environment(os.environ), "ranks": 1, "nodes": 0, "cpus": 1, "on": None, "mpi": False,
           "stdin": False, "overlap": False, **json.loads(sys.argv[1])}
try:
    ended = Caller(knock(os.environ["BEO_STEPS"])).call(request)
except StepError as error:
    print("refused:", error, flush=True)
    sys.exit(99)
if ended["reason"]:
    print("reason:", ended["reason"], flush=True)
sys.exit(exit_code(ended))
"""


class Allocation(Cluster):
    """A batch job over some nodes, each with so many slots: its script is a shell's, with STEP as a client of steps."""

    def batch(self, folder: Path, script: str, slots: int = 2, **words: Any) -> None:
        """Order the job: one process on the first node, a warden on every node."""
        names = list(self.agents)
        (folder / "client.py").write_text(CLIENT)
        env = {**os.environ, "PYTHONPATH": ROOT, "STEP": f"{PYTHON} {folder}/client.py", "SHELL_TRACE": ""}
        parts = [launch.Part(name, () if n else (0,), slots) for n, name in enumerate(names)]
        attempt = launch.Attempt(1, 1, ["sh", "-c", script], "/", env, 1, parts, ",".join(names), batch=True)
        nonce = secrets.token_hex(8)
        for name, agent in self.agents.items():
            tmp = folder / f"tmp-{name}"
            shutil.rmtree(tmp, ignore_errors=True)
            message = launch.start_message(attempt, launch.Facts("test", name, "lo", tmp=str(tmp)), nonce)
            agent.link.send({**message, "grace_s": 0.2, **words})


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Allocation]:
    yield from _allocation(tmp_path, 1)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Allocation]:
    yield from _allocation(tmp_path, 2)


def _allocation(folder: Path, nodes: int) -> Iterator[Allocation]:
    allocation = Allocation(folder, nodes)
    yield allocation
    for agent in allocation.agents.values():
        agent.close()


def run(argv: list[str], **words: Any) -> str:
    """The script's words for running a step."""
    return f"$STEP '{json.dumps({'argv': argv, **words})}'"


def test_a_step_runs_on_the_slots_of_the_job_and_its_output_and_code_come_back(one: Allocation, tmp_path: Path) -> None:
    one.batch(tmp_path, run(["sh", "-c", "echo rank $BEO_RANK of $BEO_SIZE; exit 3"], ranks=2) + "; echo code $?")
    (result,) = one.results()
    lines = one.output().decode().splitlines()
    assert sorted(lines) == ["code 3", "rank 0 of 2", "rank 1 of 2"] and lines[-1] == "code 3"
    assert statuses([result]) == [0]
    assert [(rank["step"], rank["rank"], rank["status"]) for rank in result["steps"]] == [(1, 1, 3), (1, 2, 3)]


def test_a_step_spreads_over_the_nodes_of_the_job(two: Allocation, tmp_path: Path) -> None:
    two.batch(tmp_path, run(["sh", "-c", "echo $BEO_RANK $BEO_LOCAL_RANK $BEO_NODE"], ranks=4) + "; echo code $?")
    results = two.results()
    lines = two.output().decode().splitlines()
    assert sorted(lines[:-1]) == ["0 0 node01", "1 1 node01", "2 0 node02", "3 1 node02"] and lines[-1] == "code 0"
    assert [len(result["ranks"]) for result in results] == [1, 0]
    assert [[rank["rank"] for rank in result["steps"]] for result in results] == [[1, 2], [3, 4]]
    assert not any(result["reason"] for result in results)
