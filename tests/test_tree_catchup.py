"""A head that was away takes what it lacks, however much that is, and both copies of the tree are alike again.

Most of it with a leader and a follower in this process, whose limits are small; at the end with real heads.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beo import compaction, wire
from beo.tree import decide, segments
from beo.tree import words as w
from beo.tree.changes import Began
from beo.tree.decide import Room
from beo.tree.following import Follower
from beo.tree.leading import Leader
from beo.tree.tie import Role
from beo.tree.volume import Volume
from tests import volumes
from tests.cluster import HEADS, OTHER, Cluster, running, send, wait_for
from tests.scribes import ROOT, Hand, Scribes
from tests.test_tree_takeover import check
from tests.volumes import await_equal, tree_of, tree_pid

SEED = 20261126
SESSION = "s" * 16
STEP_S = 30.0


class Two:
    """A leader and a follower with a volume each, and the way between them, in one thread."""

    def __init__(self, folder: Path) -> None:
        self.folders = [folder / "one", folder / "other"]
        self._public, self._secret = wire.new_keypair()
        self._context = wire.new_context()
        self.epoch = 0
        self.now_s = time.monotonic()
        self.leading = self._open(0)
        self.lead()
        self.do(Began(SESSION, 1, 0, 1))
        self._number = 1

    def _open(self, number: int) -> Volume:
        return Volume(self.folders[number], lambda index: None, self._failed)

    def _failed(self, error: BaseException) -> None:
        raise error

    def role(self, other: str = "", both: bool = False) -> Role:
        """A role of the leader."""
        return Role(1, True, self.epoch, other or self.address, both, float("inf"), 0)

    def lead(self, again: bool = False) -> None:
        """Let a new epoch of the leader begin, alone; or, again, the same with another process."""
        if not again:
            self.epoch += 2
            self.following: Volume | None = None
            self._poller = wire.Poller()
            self.address = ""
        self.leader = Leader(self.leading, self.role(), lambda peer, number, answer: None)

    def join(self) -> None:
        """The follower is there: it copies from now on."""
        self.following = self._open(1)
        self._server = wire.Server("127.0.0.1:0", self._secret, lambda key: True)
        self.follower = Follower(self.following, self.epoch, self._reply)
        self._server.register(self._poller)
        self.connect()

    def connect(self, both: bool = False) -> None:
        """Let the leader speak to the follower."""
        self.address = self._server.address
        connection = wire.Connection(self.address, self._public, self._secret, self._context)
        connection.register(self._poller)
        self.leader.direct(connection, self.role(both=both), self._poller)

    def _reply(self, peer: bytes, body: bytes) -> None:
        self._server.send(peer, 0, body)

    def leave(self) -> None:
        """The follower is gone."""
        assert self.following
        self.address = ""
        self.leader.direct(None, self.role(), self._poller)
        self._server.close()
        self.following.close()
        self.following = None
        self._poller = wire.Poller()

    def turn(self) -> None:
        """Let both do what is due."""
        self._poller.poll(2)
        now_s = time.monotonic()
        if self.following:
            for peer, _, _, body in self._server.receive():
                self.follower.hear(peer, body)
            self.follower.turn()
            self.follower.tick(now_s)
            self.following.tick(now_s)
        self.leader.turn()
        self.leader.tick(now_s)
        self.leading.tick(now_s)
        if self.following and not self.leader.lag(now_s)[1]:
            assert not self.following.stale, "it is told to lack nothing"

    def turned(self) -> bool:
        """The same, for a condition."""
        self.turn()
        return True

    def do(self, change: object) -> None:
        """Make a change of the leader's tree."""
        about = self.leading.state.apply(change)  # type: ignore[arg-type]
        self.leading.append(self.epoch, change)  # type: ignore[arg-type]
        self.about = about

    def ask(self, question: w.Question) -> int:
        """Let the leader's tree change by a question; return the inode that it is about."""
        self._number += 1
        ask = w.Ask(SESSION, self._number, self._number - 1, ROOT, question)
        change = decide.decide(self.leading.state, ask, time.time_ns(), Room())
        if change:
            self.do(change)
        while self.leading.pending_bytes > 1 << 20:
            self.turn()
        return self.about

    def make(self, name: bytes) -> int:
        """Make a file."""
        return self.ask(w.Make(w.ROOT, name, 0o100644))

    @property
    def is_compacting(self) -> bool:
        """Whether the leader's journal gets a snapshot just now."""
        return bool(self.leading._compaction._run) or self.leading.journal.is_adopting

    def settle(self) -> None:
        """Return when the follower has everything, and both have it in their stores."""
        assert self.following

        def is_whole() -> bool:
            self.turn()
            missing = self.leader.lag(time.monotonic())[1]
            assert self.following
            ends = {self.following.store.applied, self.leading.store.applied, self.leading.log.last.idx}
            return not missing and len(ends) == 1

        wait_for(is_whole, "the follower has everything", STEP_S)
        assert not (found := volumes.differences(*self.folders)), "\n".join(found)

    def close(self) -> None:
        """End it."""
        if self.following:
            self.leave()
        self.leading.close()
        self._context.destroy(linger=0)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    """With small limits: of 400 KB of data the leader keeps 100, and of 200 entries 40."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 50_000)
    monkeypatch.setattr(segments, "KEPT_BYTES", 100_000)
    made = Two(tmp_path)
    yield made
    made.close()


def busy(two: Two, dice: random.Random, count: int) -> None:
    """Write, overwrite, cut, punch, rename and remove."""
    top = two.leading.state.inodes[w.ROOT].children
    assert top is not None
    for _ in range(count):
        names = sorted(top)
        name = dice.choice(names) if names else b""
        ino = top[name][0] if name else 0
        data = dice.randbytes(1) * dice.choice((10, 3_000, 9_000, 40_000))
        kind = dice.randrange(8) if len(names) > 5 else 0
        if kind == 0 and len(names) < 40:
            ino = two.make(b"%d" % two.leading.log.last.idx)
            two.ask(w.Write(ino, 0, data))
        elif kind in (1, 2, 3) and ino:
            two.ask(w.Write(ino, dice.randrange(60_000), data))
        elif kind == 4 and ino:
            two.ask(w.Set(ino, size=dice.randrange(60_000)))
        elif kind == 5 and ino:
            two.ask(w.Allocate(ino, dice.randrange(20_000), 20_000, keep_size=True, punch=True))
        elif kind == 6 and ino:
            two.ask(w.Rename(w.ROOT, name, w.ROOT, dice.choice(names)))
        elif kind == 7 and ino:
            two.ask(w.Remove(w.ROOT, name))
        if not dice.randrange(20):
            two.turn()


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
def test_what_was_done_meanwhile_comes_by_entries_by_whole_files_or_by_a_snapshot(
    two: Two, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice = random.Random(SEED + seed)
    if seed % 2:
        monkeypatch.setattr(compaction, "ENTRIES_MIN", 40)
    busy(two, dice, 50)
    for _ in range(3):
        two.join()
        busy(two, dice, 30)  # while it comes in step
        two.settle()
        busy(two, dice, 30)
        if dice.random() < 0.5:
            two.settle()
        two.leave()
        busy(two, dice, dice.choice((10, 100, 300)))
        if seed % 2:
            wait_for(lambda: two.turned() and not two.is_compacting, "snapshots")
        two.leading._sync_s = 0.0
        two.leading.tick(time.monotonic())
    two.join()
    two.settle()


def test_a_follower_whose_folder_was_wiped_begins_anew(two: Two) -> None:
    busy(two, random.Random(SEED), 100)
    two.join()
    two.settle()
    two.leave()
    shutil.rmtree(two.folders[1])
    two.leading.tick(time.monotonic() + 10)
    two.join()
    two.settle()


def test_what_is_spoilt_in_the_leaders_log_comes_from_its_store(two: Two) -> None:
    ino = two.make(b"file")
    two.ask(w.Write(ino, 0, b"x" * 20_000))
    wait_for(lambda: two.turned() and two.leading.store.applied == two.leading.log.last.idx, "the store")
    [path] = (two.folders[0] / "data").iterdir()
    data = bytearray(path.read_bytes())
    data[1_000] ^= 1
    path.write_bytes(data)
    two.join()
    two.settle()


def test_a_leader_that_lost_what_it_had_sent_commits_nothing_that_the_follower_has_otherwise(two: Two) -> None:
    busy(two, random.Random(SEED), 20)
    two.join()
    two.settle()
    two.leader.direct(None, two.role(both=True), two._poller)
    assert two.following
    two.leading.journal.append_copy = lambda entry: None  # type: ignore[method-assign]  # its disk takes no more
    two.make(b"lost")
    lost = two.leading.log.last
    wait_for(lambda: two.turned() and two.following.log.last == lost, "the follower has it")  # type: ignore[union-attr]
    for closing in (two.leading.journal, two.leading.segments, two.leading.store):
        closing.close()  # as the process's end does
    two.leader.close(two._poller)
    two.leading = two._open(0)
    assert two.leading.log.last.idx == lost.idx - 1
    two.lead(again=True)
    two.connect(both=True)
    two.make(b"other")
    for _ in range(100):
        two.turn()
        if two.leading.committed >= lost.idx:
            assert two.following.log.position(lost.idx) == two.leading.log.position(lost.idx)
    two.settle()


class Killed(Exception):
    """The follower's process ends here."""


@pytest.mark.parametrize("where", ["journal.install", "segments.truncate_after", "store.drop", "store.mark"])
@pytest.mark.parametrize("is_done", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_follower_that_is_killed_while_it_takes_a_snapshot_goes_on_after_it(
    two: Two, monkeypatch: pytest.MonkeyPatch, where: str, is_done: bool
) -> None:
    monkeypatch.setattr(compaction, "ENTRIES_MIN", 40)
    dice = random.Random(SEED)
    busy(two, dice, 60)
    two.join()
    two.settle()
    assert two.following
    here = two.following.log.last.idx
    two.leave()
    for _ in range(20):
        busy(two, dice, 100)
        two.leading._sync_s = 0.0
        two.turn()
        wait_for(lambda: two.turned() and not two.is_compacting, "snapshots")
        if two.leading.log.cut.idx > here:
            break
    two.join()
    assert two.following and two.leading.log.cut.idx > two.following.log.last.idx
    part, method = where.split(".")
    owner = getattr(two.following, part)
    does = getattr(owner, method)

    def die(*arguments: object) -> None:
        if is_done:
            does(*arguments)
        raise Killed

    monkeypatch.setattr(owner, method, die)
    with pytest.raises(Killed):
        two.settle()
    monkeypatch.undo()
    two.following._compaction.stop()
    # A connection that is only forgotten, not closed, may stop all others of its context: so says libzmq's monitor.
    two.leader.close(two._poller)
    for closing in (two.following.journal, two.following.segments, two.following.store, two._server):
        closing.close()  # as the process's end does
    two.lead()
    two.join()
    two.settle()


# ---- real heads


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("tree") / "beo", workers=1, heads=2) as cluster:
        Hand(cluster.home).close()
        cluster.await_step()
        yield cluster


@pytest.mark.slow
def test_a_standby_whose_tree_was_wiped_is_in_step_again(pair: Cluster) -> None:
    away = OTHER[pair.await_step().name]
    with Scribes(pair.home, SEED) as scribes:
        scribes.wait_for_more(30)
        pair.kill("supervisor")
        tree = tree_pid(pair, away)
        pair.kill(HEADS[away])
        wait_for(lambda: tree_pid(pair, away) is None, f"the end of {tree}")
        shutil.rmtree(tree_of(pair, away))
        scribes.wait_for_more(10)
        pair.up()
        scribes.wait_for_more(10)
    check(pair, scribes)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_standby_that_was_away_for_400_mb_and_thousands_of_files_is_in_step_again(pair: Cluster) -> None:
    away = OTHER[pair.await_step().name]
    hand = Hand(pair.home)
    hand.mkdir("/much")
    hand.write("/much/before", iter([b"b" * (1 << 20)] * 20))
    pids = [pair.pid(HEADS[away]), tree_pid(pair, away) or 0]
    send(pids, signal.SIGSTOP)
    try:
        for k in range(400):
            hand.write(f"/much/large{k % 100}", iter([b"%04d" % k * (1 << 18)]))
        top = hand.stat("/much").ino
        for start in range(0, 6_000, 500):
            for number in [hand.begin(w.Make(top, b"s%d" % k, 0o100644)) for k in range(start, start + 500)]:
                hand.wait(number)
            for k in range(start, start + 500, 2):
                hand.wait(hand.begin(w.Remove(top, b"s%d" % k)))
    finally:
        send(pids, signal.SIGCONT)
    began_s = time.monotonic()
    pair.await_step()
    print(f"in step after {time.monotonic() - began_s:.1f} s")
    await_equal(tree_of(pair, "A"), tree_of(pair, "B"))
    for k in range(300, 400):
        assert hand.bytes_of(f"/much/large{k % 100}") == b"%04d" % k * (1 << 18)
    hand.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_gigabytes_of_writes_leave_no_more_than_the_log_may_keep(pair: Cluster) -> None:
    pair.await_step()
    hand = Hand(pair.home)
    hand.mkdir("/turnover")
    longest_s, began_s = 0.0, time.monotonic()
    for k in range(250):
        one_s = time.monotonic()
        hand.write(f"/turnover/{k % 10}", iter([b"%07d\n" % k * (1 << 17)] * 8))
        longest_s = max(longest_s, time.monotonic() - one_s)
    took_s = time.monotonic() - began_s
    print(f"2 GB in {took_s:.0f} s, the longest 8 MB took {longest_s:.2f} s")
    top = hand.stat("/turnover").ino
    for start in range(0, 30_000, 500):  # many entries that are small
        kinds = (w.Make(top, b"s", 0o100644), w.Remove(top, b"s"))
        for number in [hand.begin(kinds[k % 2]) for k in range(start, start + 500)]:
            hand.wait(number)
    pair.await_step()
    for head in ("A", "B"):
        folders = {name: tree_of(pair, head) / name for name in ("data", "log")}
        sizes = {name: sum(path.stat().st_size for path in folder.iterdir()) for name, folder in folders.items()}
        print(head, {name: f"{size >> 20} MiB" for name, size in sizes.items()})
        assert sizes["data"] < segments.KEPT_BYTES + 2 * segments.SEGMENT_BYTES
        assert sizes["log"] < 100 << 20
    await_equal(tree_of(pair, "A"), tree_of(pair, "B"))
    hand.close()
