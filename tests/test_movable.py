"""A program that knows nothing of checkpoints goes on elsewhere, its output in one piece: `beo submit --movable`."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.errors import BeoError
from beo.worker import criu
from tests.cluster import ROOT, Cluster, running, wait_for

NUMPY = """
import os, sys, time
import numpy as np
stop, most = sys.argv[1], int(sys.argv[2])
held = np.random.default_rng(2).random(8_000_000)
matrix = np.random.default_rng(1).random((200, 200))
step = 0
while step != most and not os.path.exists(stop):
    matrix = matrix @ matrix
    matrix /= np.abs(matrix).max()
    step += 1
    print(step, repr(float(matrix.sum())), flush=True)
    time.sleep(0.02)
print(repr(float(held.sum())))
"""
PIPELINE = """
n=0; until [ $n = $2 ] || [ -e "$1" ]; do n=$((n+1)); echo $n; sleep 0.02; done |
(while read n; do echo "line $n"; done; echo end)
"""
PROGRAMS = {"numpy": (sys.executable, "-c", NUMPY), "pipeline": ("sh", "-c", PIPELINE, "sh")}


def program(name: str, stop: Path, most: int = -1) -> list[str]:
    """A program that prints a line a step until there is a file `stop`, or for so many steps, and then one more."""
    return [*PROGRAMS[name], str(stop), str(most)]


def expect_undisturbed(name: str, printed: str) -> None:
    """It has printed what it prints when it is left in peace for as many steps."""
    steps = len(printed.splitlines()) - 1
    argv = program(name, Path("/nowhere"), steps)
    assert printed == subprocess.run(argv, capture_output=True, text=True, check=True, timeout=300).stdout


def why_not() -> str:
    """Why no program can be moved here."""
    try:
        criu.find()
    except BeoError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"{why_not()[:200]}: make criu")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("movable") / "beo", workers=2, slots=1) as cluster:
        yield cluster


def test_where_programs_can_be_moved_is_shown(cluster: Cluster) -> None:
    wait_for(lambda: cluster.beo("nodes", "--format", "criu").stdout.split()[1:] == ["yes", "yes"], "both can")


def prints_on(cluster: Cluster, job: int, lines: int) -> None:
    wait_for(lambda: len(cluster.output(job).splitlines()) > lines, "it prints")


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_an_unmodified_program_is_moved_and_its_output_is_that_of_an_undisturbed_run(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    stop = tmp_path / "stop"
    job = cluster.submit(program(name, stop), movable=True)
    for attempt in (1, 2):
        node = cluster.wait_for_state(job, "running", attempt).nodes
        shown = len(cluster.output(job).splitlines())
        prints_on(cluster, job, shown + 20)
        assert cluster.beo("migrate", str(job)).returncode == 0
        assert cluster.wait_for_state(job, "running", attempt + 1).nodes != node
    stop.touch()
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt) == ("done", 3), view
    expect_undisturbed(name, cluster.output(job))


def test_a_script_is_moved_too_and_a_drain_empties_its_node(cluster: Cluster, tmp_path: Path) -> None:
    script, stop = tmp_path / "count.sh", tmp_path / "stop"
    script.write_text(f"#!/bin/sh\n#BEO --movable\nset -- {stop} -1\n{PIPELINE}")
    said = cluster.beo("submit", str(script))
    assert said.returncode == 0, said.stderr
    job = int(re.findall(r"\d+", said.stdout)[0])
    node = cluster.wait_for_state(job, "running").nodes
    wait_for(lambda: "line 10\n" in cluster.output(job), "it prints")
    assert f"job {job} goes on elsewhere" in cluster.beo("drain", node).stdout
    cluster.wait_for_node(node, "drained")
    stop.touch()
    assert [view.state for view in cluster.wait(job)] == ["done"]
    cluster.beo("resume", node)
    expect_undisturbed("pipeline", cluster.output(job))


def test_what_cant_be_moved_goes_on_where_it_is_and_the_log_says_why(cluster: Cluster, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    argv = ["sh", "-c", 'exec 3</dev/fuse; until [ -e "$1" ]; do sleep 0.02; done; echo done', "sh", str(stop)]
    job = cluster.submit(argv, movable=True)
    node = cluster.wait_for_state(job, "running").nodes
    wait_for(lambda: cluster.ranks(job), "it runs")
    cluster.beo("migrate", str(job))
    log = cluster.home.logs / f"{node}.log"
    wait_for(lambda: f"job {job} can't be moved" in log.read_text(), "its agent says why")
    stop.touch()
    (view,) = cluster.wait(job)
    assert (view.state, view.attempt, cluster.output(job)) == ("done", 1, "done\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["-n", "2"], "--movable with several ranks"),
        (["--signal", "USR1"], "--movable with --continue or --signal"),
        (["--out", "x"], "--movable with --in or --out"),
    ],
)
def test_what_makes_no_sense_together_is_refused(cluster: Cluster, words: list[str], error: str) -> None:
    said = cluster.beo("submit", "--movable", *words, "true")
    assert (said.returncode, error in said.stderr) == (2, True), said.stderr


def test_the_root_that_holds_a_program_takes_nothing_of_its_environment(cluster: Cluster) -> None:
    job = cluster.submit(["sh", "-c", "echo $LD_PRELOAD; id -u"], movable=True, env={"LD_PRELOAD": "/nowhere.so"})
    cluster.wait(job)
    assert cluster.output(job).splitlines()[0] == "/nowhere.so"
    assert str(ROOT)
