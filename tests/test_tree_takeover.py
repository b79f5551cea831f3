"""The tree of files on two heads of this machine, killed again and again: what was acknowledged is there, once."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from beo import messages as ms
from beo import pairing
from beo.tree import locks
from beo.tree import words as w
from tests.cluster import PATIENCE_S, Cluster, kill, running, send, wait_for
from tests.scribes import Hand, Scribes
from tests.volumes import await_another_tree, await_equal, tree_of, tree_pid

LOCKS = {"A": "head", "B": "head B"}
SEED = 20261126


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two heads that have a tree; each test finds them in step."""
    with running(tmp_path_factory.mktemp("tree") / "beo", workers=1, heads=2) as cluster:
        yield cluster


@pytest.fixture
def hand(pair: Cluster) -> Iterator[Hand]:
    made = Hand(pair.home)
    yield made
    made.close()


def acting(cluster: Cluster) -> str:
    """The head that acts, "" while none does."""
    found = [view for view in pairing.views(cluster.home).values() if isinstance(view, ms.PairIs)]
    return next((view.name for view in found if view.role == "primary"), "")


def in_step(cluster: Cluster) -> str:
    """Wait until both heads are in step; return the one that acts."""

    def found() -> str:
        views = [view for view in pairing.views(cluster.home).values() if isinstance(view, ms.PairIs)]
        return next((view.name for view in views if view.role == "primary" and view.in_step), "")

    return wait_for(found, "both heads in step", 2 * PATIENCE_S)


def other(head: str) -> str:
    return "B" if head == "A" else "A"


def take_over(cluster: Cluster) -> None:
    """Kill the head that acts, and return when the other one does."""
    first = in_step(cluster)
    cluster.kill(LOCKS[first])
    wait_for(lambda: acting(cluster) == other(first), f"head {other(first)} to act")


def check(cluster: Cluster, scribes: Scribes) -> None:
    """Everything that was acknowledged is there, and both heads have the same."""
    assert not (found := scribes.faults()), "\n".join(found)
    in_step(cluster)
    await_equal(tree_of(cluster, "A"), tree_of(cluster, "B"))


def test_heads_killed_in_turn_under_writers_lose_nothing_and_do_nothing_twice(pair: Cluster) -> None:
    with Scribes(pair.home, SEED) as scribes:
        for _ in range(3):
            scribes.wait_for_more(20)
            take_over(pair)
        scribes.wait_for_more()
    print(f"{scribes.done} done, longest silence {scribes.longest_s:.2f} s")
    check(pair, scribes)


def test_the_trees_process_alone_is_killed_and_is_there_again(pair: Cluster) -> None:
    with Scribes(pair.home, SEED + 1) as scribes:
        for count in range(6):
            first = in_step(pair)
            head = other(first) if count % 3 == 2 else first
            scribes.wait_for_more(20)
            old = tree_pid(pair, head)
            assert old
            kill([old])
            await_another_tree(pair, head, old)
            scribes.wait_for_more()
    print(f"{scribes.done} done, longest silence {scribes.longest_s:.2f} s")
    check(pair, scribes)
