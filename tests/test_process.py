"""The agent's side of a warden: that it is dead is said only when it is, and all that it held with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.worker import probe
from beo.worker.process import Link, attach, is_dead
from tests.wardens import Agent, alive, wait_for

KIND = probe.contain_kind()

pytestmark = pytest.mark.skipif(KIND == "subreaper", reason="no namespaces here: neither root nor user namespaces")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "warden", KIND)
    yield agent
    agent.close()


def _running(agent: Agent) -> int:
    """Start a rank that goes on; its number outside."""
    agent.start(["sleep", "1000"])
    return agent.pids()["0"]


def test_a_stopped_warden_is_not_dead_however_often_it_does_not_answer(agent: Agent) -> None:
    rank = _running(agent)
    everything = agent.processes()
    for pid in everything:
        os.kill(pid, signal.SIGSTOP)
    links: list[Link | None] = []
    try:
        links = [attach(str(agent.folder)) for _ in range(20)]
        assert None in links, "its backlog never got full"
        assert not is_dead(str(agent.folder))
        assert alive([rank])
    finally:
        for link in links:
            if link:
                link.close()
        for pid in everything:
            os.kill(pid, signal.SIGCONT)
    agent.reattach()
    assert agent.wait("state")["phase"] == "running"


def test_a_warden_that_hung_up_on_nonsense_is_not_dead_and_can_be_found_again(agent: Agent) -> None:
    rank = _running(agent)
    agent.link._connection.send(b"\xff\xff\xff\xff this is no message")
    wait_for(lambda: agent.poll(0.01) is not None and agent.link.closed, "the warden to hang up")
    assert not is_dead(str(agent.folder))
    assert alive([rank])
    agent.reattach()
    assert agent.wait("state")["job"] == 1


@pytest.mark.parametrize("victim", ["keeper", "PID 1"])
def test_when_a_warden_is_said_to_be_dead_its_ranks_are_dead(agent: Agent, victim: str) -> None:
    agent.start(["sh", "-c", "for i in $(seq 50); do sleep 1000 & done; wait"])
    wait_for(lambda: len(agent.processes()) > 50, "all its processes to run")
    everything = agent.processes()
    os.kill(agent.keeper if victim == "keeper" else int(agent.hello["pid"]), signal.SIGKILL)
    wait_for(lambda: is_dead(str(agent.folder)), "its death to be seen")
    assert alive(everything) == []


def test_a_folder_in_which_a_warden_never_came_to_life_is_dead(tmp_path: Path) -> None:
    assert is_dead(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert is_dead(str(tmp_path / "empty"))


def test_a_number_that_another_process_has_now_is_not_taken_for_the_warden(tmp_path: Path) -> None:
    (tmp_path / "pids").write_text(f"{os.getpid()} 1\n{os.getppid()} 2\n")
    assert is_dead(str(tmp_path))
