"""The tree of files on two heads of this machine, killed again and again: what was acknowledged is there, once."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo.tree import core, locks
from beo.tree import words as w
from beo.tree.session import PRESENT_EVERY_S
from tests.cluster import HEADS, OTHER, ROOT, Cluster, kill, running, send, wait_for
from tests.doses import dose
from tests.scribes import Hand, Scribes
from tests.volumes import await_another_tree, await_equal, tree_of, tree_pid

SEED = 20261126
KILLS = 2
KILLS_SLOW = dose(40)  # each waits until both heads are in step again


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two heads that have a tree; each test finds them in step."""
    with running(tmp_path_factory.mktemp("tree") / "beo", workers=1, heads=2) as cluster:
        Hand(cluster.home).close()  # whose first question starts it
        yield cluster


@pytest.fixture
def hand(pair: Cluster) -> Iterator[Hand]:
    made = Hand(pair.home)
    yield made
    made.close()


def take_over(cluster: Cluster) -> None:
    """Kill the head that acts, and return when the other one does."""
    first = cluster.await_step().name
    cluster.kill(HEADS[first])
    wait_for(lambda: cluster.acting() == OTHER[first], f"head {OTHER[first]} to act")


def check(cluster: Cluster, scribes: Scribes) -> None:
    """Everything that was acknowledged is there, and both heads have the same."""
    assert not (found := scribes.faults()), "\n".join(found)
    cluster.await_step()
    await_equal(tree_of(cluster, "A"), tree_of(cluster, "B"))


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_heads_killed_in_turn_under_writers_lose_nothing_and_do_nothing_twice(pair: Cluster, kills: int) -> None:
    with Scribes(pair.home, SEED + kills) as scribes:
        for _ in range(kills):
            scribes.wait_for_more(20)
            take_over(pair)
        scribes.wait_for_more()
    print(f"{scribes.done} done, longest silence {scribes.longest_s:.2f} s")
    check(pair, scribes)


def test_the_trees_process_alone_is_killed_and_is_there_again(pair: Cluster) -> None:
    with Scribes(pair.home, SEED) as scribes:
        first = pair.await_step().name
        for head in (first, first, OTHER[first]):
            scribes.wait_for_more(20)
            old = tree_pid(pair, head)
            assert old
            kill([old])
            await_another_tree(pair, head, old)
            scribes.wait_for_more()
    print(f"{scribes.done} done, longest silence {scribes.longest_s:.2f} s")
    check(pair, scribes)


def cpu_s(pid: int) -> float:
    """The processor time that a process has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_standby_that_was_started_anew_leaves_the_leaders_process_at_rest(pair: Cluster) -> None:
    first = pair.await_step().name
    old = tree_pid(pair, OTHER[first])
    pair.kill(HEADS[OTHER[first]])
    await_another_tree(pair, OTHER[first], old)
    pair.await_step()
    leader = tree_pid(pair, first)
    assert leader
    before_s = cpu_s(leader)
    time.sleep(1.0)  # the time itself is what is tested
    assert cpu_s(leader) - before_s < 0.5


def test_questions_under_way_are_done_exactly_once_when_the_head_dies(pair: Cluster, hand: Hand) -> None:
    hand.mkdir("/once")
    top = hand.stat("/once").ino
    first = pair.await_step().name
    for number in [hand.begin(w.Make(top, b"old%d" % k, 0o40755)) for k in range(150)]:
        hand.wait(number)
    numbers = []
    for k in range(150):
        numbers += [
            hand.begin(w.Make(top, b"made%d" % k, 0o100644)),
            hand.begin(w.Make(top, b"folder%d" % k, 0o40755)),
            hand.begin(w.Rename(top, b"made%d" % k, top, b"moved%d" % k)),
            hand.begin(w.Remove(top, b"old%d" % k, dir=True)),
        ]
    hand.wait(numbers.pop(0))
    pair.kill(HEADS[first])
    for number in numbers:
        hand.wait(number)  # raises FileExistsError or FileNotFoundError where it was done twice
    there = [name for name, _ in hand.entries("/once")]
    assert sorted(there) == sorted(f"{what}{k}" for what in ("folder", "moved") for k in range(150))
    assert pair.acting() == OTHER[first]


@pytest.mark.slow
def test_locks_and_what_is_open_outlive_a_head(pair: Cluster, hand: Hand) -> None:
    rival = Hand(pair.home)
    hand.mkdir("/kept")
    ino = hand.make("/kept/file")
    hand.ask(w.Open(ino))
    hand.ask(w.Write(ino, 0, b"before"))
    hand.remove("/kept/file")
    locked = hand.make("/kept/locked")
    assert hand.lock(locked, 1)
    assert not rival.lock(locked, 1)
    waiting = rival.begin(w.Lock(locked, 2, locks.WRITE, wait=True))
    take_over(pair)
    assert not rival.lock(locked, 1)
    assert hand.bytes_at(ino, 0, 100) == b"before"
    hand.append(ino, b" and after")
    rival.ask(w.Get(ino))
    time.sleep(0.3)  # every session has been heard of: what is open nowhere goes
    assert hand.bytes_at(ino, 0, 100) == b"before and after"
    hand.ask(w.Unlock(locked, 1))
    assert rival.wait(waiting) == w.Done()
    assert not hand.lock(locked, 1)
    hand.ask(w.Close(ino))
    gone = tree_of(pair, pair.acting()) / "objects" / f"{ino % 256:02x}" / str(ino)
    wait_for(lambda: not gone.exists(), "the bytes of a file without a name to go")
    rival.close()


# Takes a lock, says so, and writes after it has been stopped: until told to, it waits, and gives no sign of life then.
SLEEPER = """
import os, sys, time
from beo.config import home
from beo.tree import words as w
from tests.scribes import Hand
hand = Hand(home())
ino = hand.opened("/lease/file")
assert hand.lock(ino, 1)
print("locked", flush=True)
sys.stdin.readline()
try:
    hand.ask(w.Write(ino, 0, b"too late"))
except OSError as error:
    print(error.errno, flush=True)
else:
    print("written", flush=True)
"""


@pytest.mark.slow
def test_a_session_that_was_stopped_for_too_long_has_lost_its_locks_and_can_write_no_more(
    pair: Cluster, hand: Hand
) -> None:
    hand.mkdir("/lease")
    ino = hand.make("/lease/file")
    words = [sys.executable, "-c", SLEEPER]
    with subprocess.Popen(
        words, env=pair.env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sleeper:
        assert sleeper.stdin and sleeper.stdout
        assert sleeper.stdout.readline() == "locked\n"
        send([sleeper.pid], signal.SIGSTOP)
        began_s = time.monotonic()
        assert not hand.lock(ino, 1)
        take_over(pair)  # which gives it no more time than it had
        wait_for(lambda: hand.lock(ino, 1), "the lock", 60.0)
        assert time.monotonic() - began_s > core.SILENT_S - PRESENT_EVERY_S
        hand.ask(w.Write(ino, 0, b"in time"))
        sleeper.stdin.write("go on\n")
        sleeper.stdin.flush()
        send([sleeper.pid], signal.SIGCONT)
        assert sleeper.stdout.readline() == f"{errno.EIO}\n"
    assert hand.bytes_of("/lease/file") == b"in time"


def test_all_that_was_done_to_them_leaves_both_copies_alike(pair: Cluster, hand: Hand) -> None:
    pair.await_step()
    await_equal(tree_of(pair, "A"), tree_of(pair, "B"))
