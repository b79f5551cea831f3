"""Two heads of one machine: `beo up --heads 2` makes the second as another machine would, and keeps both running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import local, lockfile, machines, pairing
from beo import messages as m
from beo.errors import Conflict, UsageError
from tests.cluster import Cluster, running, wait_for


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node with two heads; they are in step."""
    with running(tmp_path_factory.mktemp("two") / "beo", 1, 1, heads=2) as cluster:
        yield cluster


def views(cluster: Cluster) -> dict[str, m.PairIs]:
    """What each head that answers says of the pair, by its name."""
    found = pairing.views(cluster.home).values()
    return {view.name: view for view in found if isinstance(view, m.PairIs)}


def in_step(cluster: Cluster) -> bool:
    found = views(cluster)
    return len(found) == 2 and any(view.role == "primary" and view.in_step for view in found.values())


def test_the_second_head_has_a_folder_as_on_a_machine_of_its_own(pair: Cluster) -> None:
    one, two = pair.home, pair.home.second
    assert (one.who().name, two.who().name) == ("A", "B")
    assert one.who().others == {"B": two.who().place} and two.who().others == {"A": one.who().place}
    assert one.cluster() == two.cluster()
    assert one.cluster().heads == (one.who().control, two.who().control)
    places = {address for head in one.who().heads.values() for address in (head.control, head.bulk, *head.links)}
    assert len(places) == 6, "three planes of two heads"
    for name in ("head", "admin", "worker"):
        assert one.secret(name) == two.secret(name), "one key of the cluster, whoever answers"
    assert two.config() == one.config(), "settings are those of the first one"


def test_both_know_each_other_and_are_in_step(pair: Cluster) -> None:
    found = views(pair)
    assert sorted(view.role for view in found.values()) == ["primary", "standby"]
    assert {view.primary for view in found.values()} <= {"A", "B"}
    assert [head.name for head in found["A"].heads] == ["A", "B"] == [head.name for head in found["B"].heads]
    assert in_step(pair)


@pytest.mark.parametrize("name", ["head", "head B"])
def test_a_killed_head_comes_back_and_gets_in_step_again(pair: Cluster, name: str) -> None:
    wait_for(lambda: in_step(pair), "both are in step")
    pair.kill_and_await(name)
    wait_for(lambda: in_step(pair), "both are in step again")


def test_a_later_up_keeps_both(pair: Cluster) -> None:
    said: list[str] = []
    pairing.up(pair.home, None, None, None, said.append)
    assert said[0].startswith("already up: 1 node") and said[1].startswith("in step: ")
    pairing.up(pair.home, None, None, 2, said.append)
    with pytest.raises(Conflict, match=r"two heads .*'beo head leave'"):
        pairing.up(pair.home, None, None, 1, said.append)


def test_a_third_head_gets_no_token(pair: Cluster) -> None:
    with pytest.raises(Conflict, match="two heads already"):
        machines.new_token(pair.home, "head", 1, 60.0)


@pytest.mark.slow
def test_down_ends_both_and_up_goes_on_with_both(pair: Cluster) -> None:
    pair.down()
    assert pair.processes() == []
    plan = local.read_plan(pair.home)
    assert plan and plan.heads == 2
    pairing.up(pair.home, None, None, None, lambda _: None)
    assert in_step(pair) and all(lockfile.holder(pair.lock(name)) for name in ("head", "head B"))


def test_a_workers_machine_has_no_heads(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "beo")
    local.write_plan(cluster.home, local.Plan(1, 1, serves=False, name="pc2"))
    with pytest.raises(UsageError, match="this machine is pc2, a worker"):
        pairing.up(cluster.home, None, None, 2, lambda _: None)
