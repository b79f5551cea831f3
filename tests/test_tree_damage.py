"""The tree of one head: killed again and again, or its disk spoilt; what is wrong is said, and never served."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from beo import child, wire
from beo.config import Home
from beo.errors import BeoError
from beo.headnode import tree as headnode_tree
from beo.headnode.state import State as HeadState
from beo.tree import session
from beo.tree import words as w
from beo.tree.changes import Began, Made, Wrote
from beo.tree.core import Append, Core
from beo.tree.leading import Leader
from beo.tree.state import State
from beo.tree.tie import Role
from beo.tree.volume import Volume
from tests.cluster import Cluster, kill, running, wait_for
from tests.doses import dose
from tests.scribes import Hand, Scribes
from tests.volumes import await_another_tree, tree_pid

KILLS = 6
KILLS_SLOW = dose(100)
FLIPS = 10
SEED = 20261126
LARGE = bytes(range(256)) * 100  # more than an entry has in itself


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("tree") / "beo", workers=1) as made:
        Hand(made.home).close()
        yield made


@pytest.mark.parametrize("kills", [KILLS, pytest.param(KILLS_SLOW, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_kills_of_the_only_head_lose_nothing_that_was_acknowledged(cluster: Cluster, kills: int) -> None:
    dice = random.Random(SEED)
    cluster.kill("supervisor")  # it would wait longer and longer before it starts a head that ends so often
    with Scribes(cluster.home, SEED + kills) as scribes:
        for _ in range(kills):
            scribes.wait_for_more(3)
            time.sleep(dice.uniform(0, 0.1))
            cluster.kill_head_and_restart(lambda: None)
        scribes.wait_for_more(3)
    print(f"{scribes.done} done, longest silence {scribes.longest_s:.2f} s")
    cluster.up()
    assert not (found := scribes.faults()), "\n".join(found)


def test_the_trees_process_ends_with_its_head(cluster: Cluster) -> None:
    Hand(cluster.home).close()
    old = wait_for(lambda: tree_pid(cluster, "A"), "a tree")
    cluster.kill("head")
    wait_for(lambda: not Path(f"/proc/{old}").exists() or tree_pid(cluster, "A") != old, "its end", 1.0)


def test_who_was_quiet_while_the_tree_was_started_anew_says_first_what_he_has_open(cluster: Cluster) -> None:
    hand, rival = Hand(cluster.home), Hand(cluster.home)
    ino = hand.make("/quiet")
    hand.ask(w.Open(ino))
    hand.ask(w.Write(ino, 0, b"mine"))
    hand.remove("/quiet")
    old = tree_pid(cluster, "A")
    assert old
    kill([old])
    await_another_tree(cluster, "A", old)
    rival.ask(w.Get(w.ROOT))
    time.sleep(0.3)  # the quiet one's connection is made anew meanwhile, by itself
    for _ in range(3):
        assert hand.bytes_at(ino, 0, 10) == b"mine"
        time.sleep(0.1)
    hand.close()
    rival.close()


def test_a_question_that_is_lost_alone_is_asked_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "AGAIN_S", 0.5)
    monkeypatch.setattr(session, "PRESENT_EVERY_S", 0.1)  # by their answers the head is heard of all the time
    hand = Hand(cluster.home, patience_s=5.0)
    hand.ask(w.Get(w.ROOT))
    send = wire.Connection.send
    lost: list[int] = []

    def lose(self: wire.Connection, request: int, body: bytes, timeout_s: float = 0.0) -> bool:
        if not lost and isinstance(w.ask_decoder.decode(body).question, w.Get):
            lost.append(request)
            return True
        return send(self, request, body, timeout_s)

    monkeypatch.setattr(wire.Connection, "send", lose)
    hand.ask(w.Get(w.ROOT))
    assert lost
    hand.close()


# ---- what a spoilt disk comes to


def grown(folder: Path) -> list[bytes]:
    """A volume on a disk as a kill leaves it: nothing is in the store yet. Returns what its three files hold."""
    folder.mkdir()
    volume = Volume(folder, lambda index: None, _raise)
    volume.append(1, Began("s" * 16, 1, 0, 5))
    contents = [LARGE, b"short", LARGE[::-1]]
    volume.state.apply(Began("s" * 16, 1, 0, 5))
    for number, data in enumerate(contents):
        for change in (
            Made("", 0, 0, 5, w.ROOT, b"f%d" % number, 0o100644, 0, 0),
            Wrote("", 0, 0, 5, number + 2, 0, len(data), data),
        ):
            volume.state.apply(change)
            volume.append(1, change)
    wait_for(lambda: volume.journal.durable_index == volume.journal.last_index, "the disk")
    volume.journal.close()
    volume.segments.close()
    return contents


def _raise(error: BaseException) -> None:
    raise error


def served(folder: Path) -> list[bytes]:
    """What the files of a volume hold, as a head would serve them after a start."""
    volume = Volume(folder, lambda index: None, _raise)
    try:
        volume.commit(volume.journal.last_index)
        sizes = {ino: found.size for ino, found in volume.state.inodes.items() if found.is_file}
        return [volume.store.read(ino, 0, size, size) for ino, size in sorted(sizes.items())]
    finally:
        volume.close()


def test_what_a_kill_left_unwritten_is_served(tmp_path: Path) -> None:
    assert grown(tmp_path / "tree") == served(tmp_path / "tree")


@pytest.mark.parametrize("where", ["data", "log"])
def test_one_flipped_bit_is_named_or_does_no_harm(tmp_path: Path, where: str) -> None:
    contents = grown(tmp_path / "tree")
    files = [path for path in sorted((tmp_path / "tree" / where).iterdir()) if path.stat().st_size]
    dice = random.Random(SEED)
    refused = 0
    for number in range(FLIPS):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(tmp_path / "tree", copy)
        path = copy / where / dice.choice(files).name
        data = bytearray(path.read_bytes())
        at = dice.randrange(len(data))
        data[at] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            found = served(copy)
        except BeoError as refusal:
            said = str(refusal)
            assert str(copy) in said, f"{path.name} at {at}: it says not where"
            refused += 1
        else:
            assert found == contents, f"{path.name} at {at}: something else is served"
    print(f"{refused} of {FLIPS} refused")
    assert refused or where == "log"  # most bytes of a database that is nearly empty mean nothing


# ---- one head of a pair, in one process


def test_a_leader_whose_follower_is_nowhere_any_more_leaves_nothing_closed_in_its_loop(tmp_path: Path) -> None:
    public, secret = wire.new_keypair()
    volume = Volume(tmp_path / "tree", lambda index: None, _raise)
    poller = wire.Poller()
    context = wire.new_context()
    connection = wire.Connection("127.0.0.1:1", public, secret, context)
    connection.register(poller)
    role = Role(1, True, 1, "127.0.0.1:1", False, 0.0, 0)
    leader = Leader(volume, role, lambda peer, number, answer: None)
    leader.direct(connection, role, poller)
    leader.direct(None, Role(2, True, 1, "", False, 0.0, 0), poller)
    assert not poller.sockets
    volume.close()
    context.destroy(linger=0)


# ---- the head, which starts it


def test_a_head_that_ends_waits_for_no_tree_that_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headnode_tree, "ARGV", ("-c", "import signal; signal.pause()"))
    monkeypatch.setattr(child, "END_S", 0.2)
    tree = headnode_tree.Tree(Home(tmp_path))
    tree.want()
    os.kill(tree._child.pid, signal.SIGSTOP)
    tree.close()


def test_a_head_that_can_start_no_tree_lives_on_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = os.posix_spawn
    failing = iter([OSError(errno.EAGAIN, "no more processes")])

    def fail(*words: Any, **options: Any) -> int:
        for error in failing:
            raise error
        return spawn(*words, **options)

    monkeypatch.setattr(headnode_tree, "ARGV", ("-c", "import signal; signal.pause()"))
    monkeypatch.setattr(os, "posix_spawn", fail)
    tree = headnode_tree.Tree(Home(tmp_path))
    tree.want()
    tree.tick(HeadState())
    assert tree._child.pid
    tree.close()


def test_a_tree_that_is_started_for_the_first_time_is_given_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(headnode_tree, "ARGV", ("-c", "import signal; signal.pause()"))
    monkeypatch.setattr(headnode_tree, "STARTING_S", 0.3)
    tree = headnode_tree.Tree(Home(tmp_path))
    tree.want()
    tree.direct(True, 1, "", True, 0.0)
    time.sleep(0.1)
    assert tree.lag() == (False, -1, 0.0)
    assert wait_for(lambda: tree.lag()[2], "the end of patience", 1.0) > 0.2
    tree.close()


# ---- who serves, without any disk


def asked(core: Core, number: int, question: w.Question, settled: int = 0, now_s: float = 1.0) -> int:
    """Ask, and return how many changes that made."""
    ask = w.Ask("s" * 16, number, settled, w.Caller(0, 0), question)
    return sum(isinstance(effect, Append) for effect in core.ask(b"peer", ask, now_s, 5))


def test_a_question_that_comes_after_the_answer_to_its_repetition_is_not_done_again() -> None:
    core = Core(State.new(), 0.0)
    asked(core, 1, w.Begin())
    asked(core, 2, w.Make(w.ROOT, b"file", 0o100644), 1)
    assert asked(core, 3, w.Write(2, 0, b"line", append=True), 2) == 1
    assert asked(core, 3, w.Write(2, 0, b"line", append=True), 2) == 0
    assert asked(core, 4, w.Set(2, mode=0o600), 3) == 1
    assert asked(core, 3, w.Write(2, 0, b"line", append=True), 2) == 0  # by a connection that was thought dead
    assert core.state.inodes[2].size == 4


def test_who_serves_was_stopped_himself_and_ends_no_session_for_that() -> None:
    core = Core(State.new(), 0.0)
    asked(core, 1, w.Begin())
    asked(core, 2, w.Make(w.ROOT, b"file", 0o100644), 1)
    asked(core, 3, w.Lock(2, 1, "w"), 2)
    for now_s in (2.0, 3.0, 40.0, 40.05, 41.1):
        core.tick(now_s, 5)
    assert core.state.locks
    for now_s in range(42, 60):
        core.tick(now_s, 5)
    assert not core.state.locks
