"""Programs of on_promote around a real head: started, taken up after a SIGKILL, and ended by `beo down`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import messages as m
from beo import supervisor
from beo.ha import verify
from tests.cluster import Cluster, is_alive, running, wait_for

SETTINGS = """
[[ha.on_promote]]
name = "one"
start = ["/bin/sh", "-c", "echo +one:$BEO_HEAD:$BEO_EPOCH >> {place}/said"]
stop = ["/bin/sh", "-c", "echo -one >> {place}/said"]

[[ha.on_promote]]
name = "pages"
run = ["/bin/sh", "-c", "echo $$ >> {place}/pids; exec sleep 1000"]

[[ha.on_promote]]
start = "/nosuch/program start"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    with running(place / "beo", workers=1, settings=SETTINGS.format(place=place)) as cluster:
        yield cluster
        cluster.down()
        assert (place / "said").read_text().split()[-1] == "-one", "beo down ends them in order"
        assert not any(map(is_alive, pids(place)))


def pids(place: Path) -> list[int]:
    path = place / "pids"
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def view(cluster: Cluster) -> m.PairIs:
    with cluster.client() as own:
        answer = own.request(m.AskPair())
    assert isinstance(answer, m.PairIs)
    return answer


def test_a_head_that_acts_starts_them_and_one_started_again_takes_them_up(cluster: Cluster, place: Path) -> None:
    (pid,) = wait_for(lambda: pids(place), "the program that stays")
    (said,) = (place / "said").read_text().split()
    assert said.startswith("+one:A:") and int(said.rpartition(":")[2]) > 0
    os.kill(cluster.pid("head"), signal.SIGKILL)
    wait_for(
        lambda: "on_promote pages: found" in (cluster.home.logs / "head.log").read_text(), "what the next head finds"
    )
    assert is_alive(pid) and pids(place) == [pid] and (place / "said").read_text().split() == [said]


def test_a_head_tells_how_its_programs_fare_and_what_is_to_be_compared(cluster: Cluster) -> None:
    found = wait_for(lambda: (v := view(cluster)).findings and v, "a finding")
    assert found and "on_promote program can't start: there is no program '/nosuch/program'" in found.findings[0]
    assert found.config[verify.PROGRAMS] == "one up, pages up, program failed" and verify.HOLDS not in found.config
    assert "programs on A: one up, pages up, program failed" in cluster.beo("ha", "status").stdout
    told = verify.told(found, time.time())
    (missing,) = verify.differences(told, told._replace(name="B", config={**told.config, verify.MISSING: ""}))
    assert missing.one == "/nosuch/program missing on A"
    assert found.config["ha.on_promote"].startswith("one, pages, program (") and "sleep" not in str(found.config)
    assert abs(float(found.config[verify.CLOCK]) - time.time()) < 60 and found.config["key.admin"]


SLOW = """
[[ha.on_promote]]
name = "slow"
start = ["/bin/sh", "-c", "echo +slow >> {place}/said"]
stop = ["/bin/sh", "-c", "sleep {seconds}; echo -slow >> {place}/said"]
"""


@pytest.mark.slow
def test_beo_down_waits_for_a_stop_that_takes_longer_than_a_head_usually_may(tmp_path: Path) -> None:
    settings = SLOW.format(place=tmp_path, seconds=supervisor.HEAD_END_S + 1)
    with running(tmp_path / "beo", workers=1, settings=settings) as cluster:
        wait_for(lambda: (tmp_path / "said").exists(), "its start")
        cluster.down()
        assert (tmp_path / "said").read_text().split() == ["+slow", "-slow"]
        assert not (cluster.home.path / "run" / "promoted.json").exists()
