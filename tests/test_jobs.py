"""The programs in jobs/ give true results under `beo run`, the same on one rank, on two, and over two nodes."""

import importlib.util
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.conftest import Launch

JOBS = Path(__file__).resolve().parent.parent / "jobs"
RANKS = pytest.mark.parametrize("ranks", [1, 2])


def printed(launch: Launch, ranks: int, argv: list[str], stdin: str = "", nodes: int = 0) -> str:
    """What the job wrote on its standard output, once it has ended well."""
    done = launch(ranks, argv, stdin, nodes=nodes)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def value(name: str, output: str) -> float:
    """The number after this name, for outputs such as 'pi 3.14 error 1e-9'."""
    found = re.search(rf"\b{name} (\S+)", output)
    assert found, output
    return float(found[1])


@RANKS
def test_hello_comes_once_from_every_rank(ranks: int, launch: Launch) -> None:
    lines = re.findall(r"hello from rank (\d+) of (\d+) on \S+", printed(launch, ranks, ["hello.py"]))
    assert sorted(lines) == [(str(rank), str(ranks)) for rank in range(ranks)]


def test_hello_names_its_job() -> None:
    argv = [sys.executable, str(JOBS / "hello.py")]
    alone = subprocess.run(argv, env={**os.environ, "BEO_JOB_ID": "17"}, capture_output=True, text=True, timeout=60)
    assert re.fullmatch(r"hello from rank 0 of 1 on \S+, job 17\n", alone.stdout), alone.stderr


@RANKS
@pytest.mark.parametrize(("words", "stdin"), [(["1000000"], ""), ([], "1000000\n")], ids=["argument", "stdin"])
def test_pi_is_right_with_its_intervals_from_either_door(
    ranks: int, words: list[str], stdin: str, launch: Launch
) -> None:
    output = printed(launch, ranks, ["pi.py", *words], stdin)
    assert value("pi", output) == pytest.approx(math.pi, abs=1e-9)
    assert value("error", output) < 1e-9


def test_pi_of_fewer_intervals_than_ranks_is_the_midpoint_rule(launch: Launch) -> None:
    assert value("pi", printed(launch, 2, ["pi.py", "1"])) == pytest.approx(4 / (1 + 0.5**2))


@RANKS
@pytest.mark.parametrize("stdin", ["", "many\n", "0\n", f"{10**13}\n"])
def test_a_number_that_makes_no_sense_ends_every_rank_and_exits_2(ranks: int, stdin: str, launch: Launch) -> None:
    done = launch(ranks, ["pi.py"], stdin)
    assert done.returncode == 2
    assert done.stderr.count("pi: give the number of intervals") == 1


@RANKS
def test_the_token_comes_round_whole_in_every_size(ranks: int, launch: Launch) -> None:
    output = printed(launch, ranks, ["ring.py", "--laps", "3"])
    sizes_bytes = [int(size) for size in re.findall(rf"token of (\d+) bytes: 3 laps of {ranks} ranks", output)]
    assert sizes_bytes == [8, 1 << 10, 1 << 20, 1 << 23]


def test_heat_is_the_known_solution_and_the_same_bit_for_bit_on_any_number_of_ranks(launch: Launch) -> None:
    outputs = [printed(launch, ranks, ["heat2d.py", "--n", "65", "--steps", "400"]) for ranks in (1, 2)]
    assert all(value("error", output) < 1e-12 for output in outputs)
    assert len({re.search(r"steps 400 checksum [0-9a-f]{8}", output)[0] for output in outputs}) == 1  # type: ignore[index]


def test_another_number_of_steps_is_another_checksum(launch: Launch) -> None:
    outputs = [printed(launch, 1, ["heat2d.py", "--n", "10", "--steps", steps]) for steps in ("10", "11")]
    assert len({output.split()[3] for output in outputs}) == 2


def test_heat_goes_on_for_the_seconds_asked_and_reports_on_the_way(launch: Launch) -> None:
    output = printed(launch, 2, ["heat2d.py", "--n", "20", "--seconds", "0.3", "--report-every", "5"])
    assert output.startswith("step 5 after")
    assert value("seconds", output) >= 0.3
    assert value("error", output) < 1e-12


def test_a_plate_with_fewer_rows_than_ranks_is_refused(launch: Launch) -> None:
    done = launch(2, ["heat2d.py", "--n", "1"])
    assert done.returncode == 2
    assert "--n must be 2 (a row for each rank)" in done.stderr


def test_four_ranks_on_two_nodes_are_one_world(launch: Launch) -> None:
    lines = re.findall(r"hello from rank (\d+) of 4", printed(launch, 4, ["hello.py"]))
    assert sorted(lines) == ["0", "1", "2", "3"]


def test_the_token_comes_round_whole_between_nodes(launch: Launch) -> None:
    assert "token of 8388608 bytes: 3 laps of 2 ranks" in printed(launch, 2, ["ring.py", "--laps", "3"], nodes=2)


def test_heat_is_the_same_bit_for_bit_over_two_nodes(launch: Launch) -> None:
    argv = ["heat2d.py", "--n", "65", "--steps", "400"]
    outputs = [printed(launch, 2, argv, nodes=nodes) for nodes in (1, 2)]
    assert len({output.split()[3] for output in outputs}) == 1


def test_stars_keep_their_energy_and_are_the_same_bit_for_bit_on_any_number_of_ranks(launch: Launch) -> None:
    outputs = [printed(launch, ranks, ["nbody.py", "--n", "11", "--steps", "60"]) for ranks in (1, 2)]
    assert all(value("drift", output) < 1e-4 for output in outputs)
    assert len(set(outputs)) == 1 and "steps 60 checksum" in outputs[0]
    assert printed(launch, 1, ["nbody.py", "--n", "11", "--steps", "61"]) != outputs[0]


def test_the_farm_finds_the_volume_of_a_ball_and_the_same_points_on_any_number_of_ranks(launch: Launch) -> None:
    outputs = [printed(launch, ranks, ["montecarlo.py", "--tasks", "70"]) for ranks in (1, 2)]
    assert len(set(outputs)) == 1
    spread = float(re.search(r"± (\S+)", outputs[0])[1])  # type: ignore[index]
    assert abs(value("volume", outputs[0]) - value("exact", outputs[0])) < 5 * spread < 0.1
    assert value("exact", outputs[0]) == pytest.approx(8 * math.pi**2 / 15)
    assert printed(launch, 1, ["montecarlo.py", "--tasks", "70", "--seed", "2"]) != outputs[0]


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["nbody.py", "--n", "1"], "--n must be 2 (a star for each rank)"),
        (["montecarlo.py", "--tasks", "0"], "--tasks must be 1 to"),
        (["montecarlo.py", "--seed", "-1"], "--seed must be 0 or more"),
    ],
)
def test_stars_and_farms_that_make_no_sense_are_refused(argv: list[str], why: str, launch: Launch) -> None:
    done = launch(2, argv)
    assert done.returncode == 2 and why in done.stderr


def granularity() -> types.ModuleType:
    """The program as a module: without MPI."""
    found = importlib.util.spec_from_file_location("granularity", JOBS / "granularity.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_granularity_finds_the_law_in_times_that_follow_it_and_the_best_number_of_ranks() -> None:
    law = granularity()
    ranks = [1, 2, 4, 8]
    work_s, messages_s = law.fit(ranks, [9.0 / n + 0.25 * (n - 1) for n in ranks])
    assert work_s == pytest.approx(9.0) and messages_s == pytest.approx(0.25)
    assert law.best(9.0, 0.25) == 6
    assert law.best(1.0, 2.0) == 1
    assert law.best(1.0, 0.0) == law.RANKS_MAX


@pytest.mark.slow
def test_granularity_prints_a_row_for_each_grain_and_draws_it(launch: Launch, tmp_path: Path) -> None:
    picture = tmp_path / "law.svg"
    argv = ["granularity.py", "--units", "40000", "--grains", "1000", "20000", "--plot", str(picture)]
    lines = printed(launch, 2, argv).splitlines()
    assert lines[0].split() == ["grain", "T(1)", "s", "T(2)", "s", "messages", "µs", "best"]
    assert [line.split()[0] for line in lines[1:3]] == ["1000", "20000"]
    assert all(float(word) >= 0 for line in lines[1:3] for word in line.rstrip("+").split())
    assert lines[3] == f"drawn in {picture}" and "<svg" in picture.read_text()
    assert launch(1, ["granularity.py", "--grains", "0"]).returncode == 2
    for path in (tmp_path / "no" / "law.svg", tmp_path / "law.nonsense"):
        done = launch(1, ["granularity.py", "--plot", str(path)])
        assert done.returncode == 2 and f"granularity: can't draw into '{path}'" in done.stderr
        assert "Traceback" not in done.stderr
