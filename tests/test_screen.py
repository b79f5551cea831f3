"""What `beo top` shows, as lines of text."""

from __future__ import annotations

import pytest

from beo import messages as m
from beo.cli import screen
from beo.cli.screen import Snapshot, bar, busy, lines
from tests.fake_head import view

MACHINE = m.Machine(1.25, 4, 16 << 30, 12 << 30)
INFO = m.InfoIs("c" * 32, "A", 3, "ada", "0.1.0", "")


def process(pid: int, cpu_s: float = 1.0, age_s: float = 10.0, memory_bytes: int = 1 << 20, job: int = 7) -> m.Process:
    return m.Process(job, 1, pid, 1, 0 if pid == 1 else -1, "R", cpu_s, age_s, memory_bytes, 1, f"program {pid}")


def node(name: str, state: str = "up", used: int = 1, drain: str = "") -> m.NodeView:
    return m.NodeView(name, state, 2, used, 1 << 34, (7,) if used else (), "h:1", {}, 0.1, "i", drain)


def snapshot(*rows: m.Process, at_s: float = 0.0, **words: object) -> Snapshot:
    told = m.ProcessesAre((m.Inspected("node01", MACHINE, rows),), {7: "ada"})
    fields: dict[str, object] = {
        "info": INFO,
        "nodes": (node("node01"), node("node02", "drained", 0, "by ada: new disk")),
        "jobs": m.JobsAre((view(8, "queued", reason="no room"), view(7, "running", started_s=1000.0))),
        "processes": told,
        "at_s": at_s,
        "wall_s": 1090.0,
    }
    return Snapshot(**{**fields, **words})  # type: ignore[arg-type]


def texts(*arguments: object, **words: object) -> list[str]:
    return [line.text for line in lines(*arguments, **words)]  # type: ignore[arg-type]


def test_the_screen_has_nodes_jobs_and_the_busiest_processes() -> None:
    shown = texts(snapshot(process(1), process(2, cpu_s=9.0)), None, 120, 40)
    assert shown == [
        "beo  cluster cccccccc  head A, epoch 3  user ada",
        "nodes 1 drained, 1 up   slots 1 of 4 ██░░░░░░░░   jobs 1 queued, 1 running",
        "",
        "NODE    STATE    SLOTS              LOAD       MEMORY                    JOBS  DRAIN",
        "node01  up       █████░░░░░ 1 of 2  1.25 of 4  ██░░░░░░░░ 4GiB of 16GiB  7     -",
        "node02  drained  ░░░░░░░░░░ 0 of 2  -          -                         -     by ada: new disk",
        "",
        "JOB  NAME  USER  STATE    RANKS  NODES         TIME  REASON",
        "  7  pi    ada   running      4  node[01-02]  1m30s  -",
        "  8  pi    ada   queued       4  -                -  no room",
        "",
        "PROCESS     USER  RANK  STATE   CPU  MEMORY  TIME  COMMAND",
        "7/node01/2  ada      -  R      90.0    1MiB  0:09  program 2",
        "7/node01/1  ada      0  R      10.0    1MiB  0:01  program 1",
    ]
    assert all(len(line) <= 120 for line in shown)


def test_cpu_is_what_was_used_since_the_last_look() -> None:
    before = snapshot(process(1, 100.0, 200.0), process(2, 1.0, 200.0), at_s=0.0).processes
    now = snapshot(process(1, 100.5, 202.0), process(2, 3.0, 202.0), process(3, 1.0, 4.0), at_s=2.0).processes
    percent = busy(now, before, 2.0)
    assert {pid: round(value) for (_, pid), value in percent.items()} == {1: 25, 2: 100, 3: 25}


def test_a_pid_that_belongs_to_another_process_by_now_is_measured_over_its_own_life() -> None:
    before = snapshot(process(1, 100.0, 200.0)).processes
    assert round(busy(snapshot(process(1, 1.0, 2.0)).processes, before, 2.0)["node01", 1]) == 50


def test_processes_are_sorted_by_cpu_or_by_memory() -> None:
    now = snapshot(process(1, cpu_s=5.0, memory_bytes=1), process(2, cpu_s=1.0, memory_bytes=1 << 30))
    assert texts(now, None, 80, 40)[-2].startswith("7/node01/1")
    assert texts(now, None, 80, 40, by_memory=True)[-2].startswith("7/node01/2")


@pytest.mark.parametrize(("width", "height"), [(20, 5), (80, 24), (200, 100), (1, 1), (40, 0)])
def test_the_screen_keeps_to_its_size(width: int, height: int) -> None:
    many = snapshot(*(process(pid) for pid in range(300)))
    many.nodes = [node(f"node{number:02}") for number in range(50)]
    many.jobs = m.JobsAre(tuple(view(number, "running") for number in range(100)), 20)
    shown = lines(many, None, width, height)
    assert len(shown) <= height and all(len(line.text) <= width for line in shown)
    assert all(at + length <= width for line in shown for at, length, _ in line.parts)


def test_each_part_of_a_crowded_screen_has_some_lines() -> None:
    many = snapshot(*(process(pid) for pid in range(300)))
    many.nodes = [node(f"node{number:02}") for number in range(50)]
    many.jobs = m.JobsAre(tuple(view(number, "running") for number in range(100)))
    shown = texts(many, None, 100, 40)
    for begin in ("node", "  ", "7/node01/"):
        assert sum(line.startswith(begin) for line in shown) >= screen.JOBS_MIN, begin


def test_trouble_and_silent_nodes_are_told_and_states_have_colours() -> None:
    now = snapshot(process(1), trouble="no head answers at h:1: waiting")
    assert [(line.text, line.style) for line in lines(now, None, 80, 40)][2] == (now.trouble, screen.BAD)
    silent = m.ProcessesAre((), {}, ("node02",))
    shown = lines(snapshot(processes=silent), None, 80, 40)
    assert (shown[2].text, shown[2].style) == ("no answer from node02", screen.WARNING)
    assert shown[5].parts == [(8, 2, screen.GOOD)] and shown[6].parts == [(8, 7, screen.WARNING)]


def test_a_command_line_cannot_drive_the_terminal() -> None:
    evil = m.Process(7, 1, 5, 1, 0, "R", 1.0, 2.0, 1, 1, "a\x1b[2Jb\n")
    assert all(line.isprintable() for line in texts(snapshot(evil), None, 200, 40))


@pytest.mark.parametrize(
    ("used", "whole", "drawn"), [(0, 4, "░" * 10), (4, 4, "█" * 10), (1, 1_000, "█" + "░" * 9), (3, 0, "░" * 10)]
)
def test_a_bar_shows_a_share(used: float, whole: float, drawn: str) -> None:
    assert bar(used, whole) == drawn
