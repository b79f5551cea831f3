"""What a node sees of an attempt's processes, and that a signal never hits any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from beo import messages as ms
from beo.worker import contain, processes
from beo.worker.processes import Inmates
from tests.cluster import is_alive, wait_for

# A root as a warden's PID 1 is one: it has two children in sessions of their own, each with a child in its group.
ROOT = "for n in 1 2; do setsid sh -c 'sleep 60 & exec sleep 61' & done; wait"


@contextmanager
def tree() -> Iterator[tuple[int, list[int]]]:
    """The root's pid, and those of the two leaders below it."""
    root = subprocess.Popen(["sh", "-c", ROOT])
    try:
        wait_for(lambda: len(contain.descendants(root.pid)) == 4 and all(map(_sleeps, _below(root.pid))), "the tree")
        yield root.pid, sorted(contain.children()[root.pid])
    finally:
        for pid in [*contain.descendants(root.pid), root.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        root.wait()


def _below(root: int) -> list[int]:
    return contain.descendants(root)


def _sleeps(pid: int) -> bool:
    return processes._command(pid).startswith("sleep")


def test_a_look_tells_of_every_process_below_the_root_and_of_no_other() -> None:
    with tree() as (root, leaders):
        assert [row.command for row in processes.look([Inmates(7, 2, leaders[0], {})], 9)[0]] == ["sleep 60"]
        rows, more = processes.look([Inmates(7, 2, root, {leaders[1]: 1})], 100)
        assert sorted(row.pid for row in rows) == sorted(contain.descendants(root)) and more == 0
        found = {row.pid: row for row in rows}
        assert [found[pid].rank for pid in leaders] == [-1, 1]
        leader = found[leaders[1]]
        assert (leader.job, leader.attempt, leader.parent, leader.state) == (7, 2, root, "S")
        assert leader.command == "sleep 61" and leader.threads == 1 and leader.memory_bytes > 10_000
        assert 0 <= leader.cpu_s < 10 and 0 <= leader.age_s < 60


def test_a_look_is_bounded() -> None:
    with tree() as (root, _):
        rows, more = processes.look([Inmates(7, 1, root, {})], 3)
        assert (len(rows), more) == (3, 1)
        rows, more = processes.look([Inmates(7, 1, root, {}), Inmates(8, 1, root, {})], 6)
        assert (len(rows), more) == (6, 2)


def test_cpu_time_and_threads_are_those_of_the_process() -> None:
    program = "import threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(60,)).start()\n"
    child = subprocess.Popen([sys.executable, "-c", program + "x = 0\nwhile True: x += 1"])
    try:

        def row() -> ms.Process:
            rows, _ = processes.look([Inmates(1, 1, os.getpid(), {child.pid: 0})], 1_000)
            return next(row for row in rows if row.pid == child.pid)

        wait_for(lambda: row().threads == 4 and row().cpu_s > 0.1, "it has three more threads, and computes")
        assert row().cpu_s <= row().age_s + 1
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(("word", "shown"), [(b"x" * 5_000, b"x"), (b"\xff\xfe" * 300, "\ufffd".encode())])
def test_a_command_line_is_cut_and_always_text(word: bytes, shown: bytes) -> None:
    program = "import sys, time; print(flush=True); time.sleep(60)"
    talker = subprocess.Popen([sys.executable, "-c", program, word], stdout=subprocess.PIPE)
    assert talker.stdout
    try:
        talker.stdout.readline()
        text = processes._command(talker.pid)
        assert len(text.encode()) <= processes.COMMAND_MAX_BYTES and shown in text.encode()
    finally:
        talker.kill()
        talker.communicate()


def test_one_process_is_hit_and_named() -> None:
    with tree() as (root, leaders):
        (hit,) = processes.hit(Inmates(7, 1, root, {leaders[0]: 0}), ms.Target(7, "n1", leaders[0]), signal.SIGKILL)
        assert (hit.pid, hit.rank, hit.trouble, hit.command) == (leaders[0], 0, "", "sleep 61")
        wait_for(lambda: not is_alive(leaders[0]), "it is dead")
        assert is_alive(leaders[1])


def test_a_rank_is_hit_with_its_process_group() -> None:
    with tree() as (root, leaders):
        children = contain.children()[leaders[1]]
        hits = processes.hit(Inmates(7, 1, root, {leaders[1]: 3}), ms.Target(7, "", 0, 3), signal.SIGKILL)
        assert [(hit.pid, hit.rank) for hit in hits] == [(leaders[1], 3), (children[0], -1)]
        wait_for(lambda: not any(map(is_alive, [leaders[1], *children])), "rank and child are dead")
        assert is_alive(leaders[0])


def test_a_rank_of_another_node_is_no_trouble_here() -> None:
    with tree() as (root, _):
        assert processes.hit(Inmates(7, 1, root, {}), ms.Target(7, "", 0, 3), signal.SIGKILL) == []
    assert processes.hit(None, ms.Target(7, "", 0, 3), signal.SIGKILL) == []


def test_an_attempt_that_is_over_is_told() -> None:
    (hit,) = processes.hit(None, ms.Target(7, "n1", 5), signal.SIGKILL)
    assert hit.trouble == "job 7 doesn't run here any more"


@pytest.mark.parametrize("which", ["stranger", "root", "gone", "none", "huge"])
def test_no_other_process_is_ever_hit(which: str) -> None:
    stranger, gone = subprocess.Popen(["sleep", "60"]), subprocess.Popen(["true"])
    gone.wait()
    try:
        with tree() as (root, _):
            pid = {"stranger": stranger.pid, "root": root, "gone": gone.pid, "none": 0, "huge": 1 << 40}[which]
            (hit,) = processes.hit(Inmates(7, 1, root, {}), ms.Target(7, "n1", pid), signal.SIGKILL)
            assert hit.trouble == f"no process {pid} of job 7 runs here"
            assert is_alive(stranger.pid) and is_alive(root)
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_number_that_is_given_away_again_meanwhile_is_not_hit(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens between the pidfd and the look: the signal goes to the process that both of them saw."""
    with tree() as (root, leaders):
        real: Callable[[int], int] = os.pidfd_open

        def die_and_be_followed(pid: int) -> int:
            fd = real(pid) if moment == "before" else -1
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: not is_alive(pid), "it is dead")
            # Another process of this attempt has its number now, as far as any look at /proc can tell.
            monkeypatch.setattr(contain, "below", lambda *_: [pid])
            return fd if moment == "before" else real(pid)

        monkeypatch.setattr(os, "pidfd_open", die_and_be_followed)
        (hit,) = processes.hit(Inmates(7, 1, root, {}), ms.Target(7, "n1", leaders[0]), signal.SIGTERM)
        monkeypatch.undo()
        assert hit.trouble and is_alive(leaders[1])


def test_the_machine_tells_how_busy_it_is() -> None:
    machine = processes.machine()
    assert machine.load >= 0 and machine.cores >= 1 and 0 < machine.mem_free_bytes <= machine.mem_bytes
