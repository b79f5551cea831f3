"""Two volumes, one leading and one following: what was said is on both, whoever leads next, and they end the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from beo import votes
from beo.entries import BEGINNING
from beo.ha.log import Log
from beo.settings import Level
from beo.tree import copying, leading
from beo.tree import words as w
from beo.tree.changes import Changed
from beo.tree.copying import Condition, Window
from tests.tree_pair import Clock, Inbox, World, small


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory, where there is such a place: much is synced."""
    found = Path(tempfile.mkdtemp(prefix="beo-tree-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield found
    shutil.rmtree(found)


def run(folder: Path, seed: int, steps: int, level: Level = "C") -> Counter[str]:
    """One world, from its beginning through trouble to its end; return what has happened in it."""
    happened: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        small(patch, clock, happened)
        world = World(folder / str(seed), seed, clock, level)
        try:
            for _ in range(steps):
                world.step()
            world.calm_down()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        finally:
            world.close()
        shutil.rmtree(folder / str(seed))
        return happened


def test_what_was_said_is_on_both_whatever_happens(folder: Path) -> None:
    happened: Counter[str] = Counter()
    for seed in range(30):
        happened += run(folder, seed, 400)
    assert all(happened[name] for name in ("back", "install", "mark_stale", "fetched")), "all of it has happened"


@pytest.mark.parametrize("level", ["A", "B"])
def test_at_levels_a_and_b_both_end_alike_and_nothing_is_torn_whatever_happens(folder: Path, level: Level) -> None:
    """At B nothing that was said is lost, either: the world looks after that."""
    happened: Counter[str] = Counter()
    for seed in range(2_000, 2_010):
        happened += run(folder, seed, 400, level)
    assert all(happened[name] for name in ("back", "install", "mark_stale", "fetched")), "all of it has happened"


@pytest.mark.slow
@pytest.mark.parametrize("level", ["A", "B"])
@pytest.mark.parametrize("part", range(3))
def test_the_same_for_a_long_time(folder: Path, level: Level, part: int) -> None:
    for seed in range(3_000 + 10 * part, 3_010 + 10 * part):
        run(folder, seed, 1_000, level)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_what_was_said_is_on_both_whatever_happens_for_a_long_time(folder: Path, part: int) -> None:
    for seed in range(1_000 + 20 * part, 1_020 + 20 * part):
        run(folder, seed, 1_000)


# ---- one thing at a time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    small(monkeypatch, found, Counter())
    return found


@pytest.fixture
def world(folder: Path, clock: Clock) -> Iterator[World]:
    found = World(folder, 0, clock)
    yield found
    found.close()


def leader_of(world: World) -> Any:
    return world.heads[world.leader].part


def follower_of(world: World) -> Any:
    return world.heads[world.other].part


def written(world: World, count: int, size: int = 20_000) -> int:
    """Let one author write, alone at first; return his file's inode."""
    author = world.authors[0]
    for _ in range(3):
        world.ask_all()
        world.heads[world.leader].flush()
        world.turn_leader()
    for _ in range(count):
        author.ask(w.Write(author.ino, 0, b"x" * size, append=True))
        world.ask_all()
        world.heads[world.leader].flush()
        world.turn_leader()
    return author.ino


def test_a_head_with_stale_inodes_is_not_in_step_however_much_of_the_log_it_has(world: World) -> None:
    written(world, 1)
    world.direct(both=True)
    leader, last = leader_of(world), world.heads["A"].volume.log.last.idx
    assert world.link

    def in_step(stale: int, match: int) -> bool:
        assert world.link
        world.link.arrived.append(copying.encode(Condition(1, stale, 1 << 40, 1 << 40, match)))
        world.link.arrived.append(copying.encode(votes.Appended("", 1, 0.0, last, True, 0, "life")))
        world.turn_leader()
        is_in_step, _, _ = leader.lag(world.clock.now_s)
        return bool(is_in_step)

    assert not in_step(stale=0, match=last - 1)  # that was said before the last entry came without its data
    assert not in_step(stale=1, match=last)
    assert in_step(stale=0, match=last)


def test_what_was_said_alone_in_an_earlier_life_is_on_the_other_head_before_they_are_in_step(world: World) -> None:
    """The process was started anew, and its store is behind what it had said."""
    written(world, 3)
    world.direct(both=True)
    last = world.heads["A"].volume.log.last.idx
    assert world.heads["A"].volume.store.marked < last
    world.heads["A"].kill()
    world.heads["A"].open()
    world.lead(both=True)
    assert world.link
    for match, expected in ((last - 1, False), (last, True)):
        world.link.arrived.append(copying.encode(Condition(1, 0, 1 << 40, 1 << 40, match)))
        world.link.arrived.append(copying.encode(votes.Appended("", 1, 0.0, match, True, 0, "life")))
        world.turn_leader()
        assert leader_of(world).lag(world.clock.now_s)[0] is expected


def test_stale_inodes_are_fetched_though_a_tail_that_is_to_be_taken_back_is_still_there(world: World) -> None:
    ino = written(world, 3)
    leader, other = world.heads["A"], world.heads["B"]
    world.bring_back_the_follower()
    for _ in range(50):
        world.clock.now_s += 0.1
        world.turn_leader()
        world.deliver(False)
        other.flush()
        world.turn_follower()
    assert other.volume.log.last == leader.volume.log.last
    change = Changed("", 0, 0, 5, ino, mode=0o100600)
    other.volume.append(1, change)  # a tail that nobody else has,
    other.flush()
    other.kill()
    other.open()
    other.volume.mark_stale([ino])  # and what it lacks
    world.bring_back_the_follower()
    for _ in range(50):
        world.clock.now_s += 0.1
        world.turn_leader()
        world.deliver(False)
        other.flush()
        world.turn_follower()
    assert not other.volume.stale


def test_a_piece_that_is_older_than_what_was_done_since_is_asked_for_again(world: World) -> None:
    ino = written(world, 3)
    world.calm_down()
    volume = world.heads["B"].volume
    before = world.heads["B"].content()
    volume.mark_stale([ino])
    world.clock.now_s += 10
    world.turn_follower()
    assert world.link
    newest = volume.state.inodes[ino].version
    want = copying.Want(world.epoch, ino, 0, newest)
    assert copying.encode(want) in world.link.back
    old = copying.Piece(world.epoch, ino, 0, 3, b"old", newest - 1)
    follower_of(world).hear(b"leader", copying.encode(old))
    assert volume.stale and world.heads["B"].content() == before
    world.link.back.clear()
    world.clock.now_s += 0.1
    world.turn_follower()
    assert copying.encode(want) in world.link.back


def test_an_inode_of_which_a_part_was_fetched_is_fetched_anew_when_a_snapshot_is_installed(world: World) -> None:
    """What the snapshot skips was never done to the part that was fetched before."""
    ino = written(world, 3)
    world.calm_down()
    world.go_alone()
    leader, volume, follower = world.heads["A"].volume, world.heads["B"].volume, follower_of(world)
    volume.mark_stale([ino])
    author = world.authors[0]
    author.ask(w.Write(author.ino, 0, b"y" * 20_000))
    world.ask_all()
    world.heads["A"].flush()
    world.turn_leader()
    assert world.link and leader.log.last.idx == volume.log.last.idx + 1
    wanted: list[int] = []
    for heard in (
        votes.Append("", world.epoch, 0.0, 0.0, volume.log.last, (), volume.committed, volume.log.last.idx),
        copying.Piece(world.epoch, ino, 0, 60_000, b"x" * copying.FETCHED_BYTES, volume.store.applied),
        votes.Part("", world.epoch, leader.log.last, 0, len(leader.state.encode()), leader.state.encode()),
    ):
        world.link.back.clear()
        world.clock.now_s += 10
        follower.hear(b"leader", copying.encode(heard))
        follower.turn()
        words = [copying.to_leader.decode(body) for body in world.link.back]
        wanted.append(next(word.offset for word in words if isinstance(word, copying.Want)))
    assert wanted == [0, copying.FETCHED_BYTES, 0]
    world.link.back.clear()
    world.calm_down()


def test_entries_count_as_under_way_with_all_their_bytes() -> None:
    """What a follower's journal can't take at once would be refused by it."""
    log = Log(BEGINNING, BEGINNING, lambda first, limit: [], lambda index: None)
    for _ in range(1_500):
        log.append(1, bytes(8_000))
    window = Window(log, lambda index: 0)
    taken = 0
    while entries := window.entries(taken + 1, 2_048, 1 << 20):
        taken += len(entries)
    assert copying.UNDER_WAY_BYTES <= taken * 8_000 <= copying.UNDER_WAY_BYTES + copying.MESSAGE_BYTES
    window.matched(taken)
    assert not window.under_way_bytes
    assert window.entries(taken + 1, 2_048, 1 << 20)
    window.again(taken)
    assert not window.under_way_bytes


def test_a_leader_takes_its_connection_out_of_the_loop_when_the_other_head_is_elsewhere(world: World) -> None:
    heard: list[str] = []

    class Loud(Inbox):
        def unregister(self, _: object) -> None:
            heard.append("unregistered")

        def close(self) -> None:
            heard.append("closed")

    leader, role = leader_of(world), world.role()
    leader.direct(Loud(), msgspec.structs.replace(role, other="here"), None)
    heard.clear()
    leader.direct(None, msgspec.structs.replace(role, other=""), None)
    assert heard == ["unregistered", "closed"]


def test_whoever_waits_for_an_answer_is_sent_elsewhere_by_a_leader_that_ends(world: World) -> None:
    ino = written(world, 1)
    said: list[tuple[bytes, int, w.Answer]] = []
    leader = leader_of(world)
    leader._answer = lambda *answer: said.append(answer)
    session = world.authors[0].session
    for number, question in ((100, w.Lock(ino, 1, "w")), (101, w.Lock(ino, 2, "w", wait=True)), (102, w.Get(ino))):
        leader.ask(b"0", w.Ask(session, number, 99, w.Caller(0, 0), question))
    leader.close(None)
    assert sorted(said) == [(b"0", number, w.Elsewhere()) for number in (100, 101, 102)]


def test_while_nothing_is_taken_in_nobodys_silence_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, say, or the other head hangs."""
    ino = written(world, 1)
    leader, session = leader_of(world), world.authors[0].session
    leader.ask(b"0", w.Ask(session, 100, 99, w.Caller(0, 0), w.Lock(ino, 1, "w")))
    with monkeypatch.context() as patch:
        patch.setattr(leading, "BACKLOG_MAX_BYTES", -1)
        for _ in range(60):
            world.clock.now_s += 1.0
            leader.tick(world.clock.now_s)
    leader.tick(world.clock.now_s)
    assert world.heads["A"].volume.state.locks
