"""Two copies of the tree of which one is not whole: who reads waits or is told, nobody gets wrong bytes, and it heals.

And what a level of `[files]` means between them, and what becomes of a disk that is full in the middle of it. One thing
at a time, in virtual time (tree_pair.py).
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from beo import votes
from beo.child import PARENT
from beo.errors import BeoError
from beo.tree import orphans, wiped
from beo.tree import store as store_module
from beo.tree import volume as volume_module
from beo.tree import words as w
from beo.tree.following import Follower
from tests.tree_pair import Clock, Head, World, small
from tests.tree_world import ROOT_CALLER

SESSION = "the session of whoever asks here"
READ_S = 60.0  # of virtual time


class Duo(World):
    """The same two heads, and one who asks and waits for the answer while both have their turns."""

    def __init__(self, folder: Path, clock: Clock, level: Any = "C") -> None:
        super().__init__(folder, 0, clock, level)
        self.authors.clear()
        self.number = 0
        self.answers: dict[int, w.Answer] = {}
        self.ask_for(w.Begin())

    def answer(self, peer: bytes, number: int, answer: w.Told) -> None:
        """Keep it."""
        assert not isinstance(answer, w.Leased)
        self.answers[number] = answer

    def begin(self, question: w.Question) -> int:
        """Ask."""
        self.number += 1
        part: Any = self.heads[self.leader].part
        part.ask(b"0", w.Ask(SESSION, self.number, 0, ROOT_CALLER, question))
        return self.number

    def turn(self, flush: str = "AB") -> None:
        """Let both do what is due; flush: whose disks write."""
        self.clock.now_s += 0.05
        for turn in (self.turn_leader, self.turn_follower):
            turn()
            self.deliver(False)
        for name in flush:
            if self.heads[name].is_up:
                self.heads[name].flush()
                self.heads[name].volume.tick(self.clock.now_s)

    def turns(self, count: int) -> None:
        """So many."""
        for _ in range(count):
            self.turn()

    def ask_for(self, question: w.Question) -> Any:
        """Ask, and return the answer."""
        number = self.begin(question)
        for _ in range(int(READ_S / 0.05)):
            if number in self.answers:
                return self.answers[number]
            self.turn()
        raise AssertionError(f"no answer to {question}")

    def make(self, name: bytes, data: bytes) -> int:
        """Make a file with these bytes."""
        ino: int = self.ask_for(w.Make(w.ROOT, name, stat.S_IFREG | 0o644)).attr.ino
        self.write(ino, 0, data)
        return ino

    def write(self, ino: int, offset: int, data: bytes) -> None:
        """Write."""
        assert isinstance(self.ask_for(w.Write(ino, offset, data)), w.Written)

    def bytes_of(self, ino: int) -> Any:
        """All bytes of a file, as the leader tells them, or what it says instead."""
        answer = self.ask_for(w.Read(ino, 0, 1 << 20))
        return answer.data if isinstance(answer, w.DataIs) else answer

    def join(self) -> None:
        """Let both be in step."""
        self.bring_back_the_follower()
        self.turns(10)
        part: Any = self.heads[self.leader].part
        assert part.lag(self.clock.now_s)[:2] == (True, 0)

    def lose(self, head: str, ino: int) -> None:
        """Let a head have other bytes than it should of an inode, and know of it."""
        volume = self.heads[head].volume
        volume.mark_stale([ino])
        volume.store.put(ino, 0, b"wrong" * 100, 500)

    def kill_and_take_over(self, forced: bool = False) -> None:
        """The leader is killed, and the other head leads alone; forced: since an operator said so."""
        self.heads[self.leader].kill()
        self.leader = self.other
        self.epoch = self.next_epoch() + (forced << votes.GENERATION_SHIFT)
        self.lead(both=False)

    def alike(self) -> None:
        """Assert that both heads have the same, when everything has come to its end."""
        self.bring_back_the_follower()
        self.turns(60)
        one, other = (self.heads[name].volume for name in "AB")
        assert one.log.last == other.log.last and not one.stale and not other.stale
        assert self.heads["A"].content() == self.heads["B"].content()
        for head in self.heads.values():
            self.check(head)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory, where there is such a place: much is synced."""
    found = Path(tempfile.mkdtemp(prefix="beo-pair-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    yield found
    shutil.rmtree(found)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    small(monkeypatch, found, Counter())
    return found


@pytest.mark.parametrize("made", [1, 20])  # entries: with so many, a snapshot would have to come
def test_what_a_forced_away_head_has_is_kept_until_an_operator_wipes_it(
    tmp_path: Path, clock: Clock, made: int
) -> None:
    duo = Duo(tmp_path, clock)
    ino = duo.make(b"file", b"before" * 2_000)
    duo.join()
    duo.go_alone()
    duo.heads["B"].kill()
    duo.write(ino, 0, b"alone" * 3_000)
    duo.turns(3)
    here = duo.heads["A"].volume.log.last
    duo.heads["B"].open()
    duo.kill_and_take_over(forced=True)  # before A had marked how far its store was
    for k in range(made):
        duo.make(b"%d" % k, b"of the forced one")
        duo.heads["B"].compact()
        duo.turn()
    duo.heads["A"].open()
    duo.direct(both=False)
    for _ in range(20):
        duo.turn_leader()
        duo.deliver(False)
        part = part_of(duo, "A")
        part.turn()
        part.tick(duo.clock.now_s)
        duo.deliver(False)
        duo.clock.now_s += 0.05
    assert "rejoin --wipe" in part.trouble and not part_of(duo, "B").lag(duo.clock.now_s)[0]
    assert duo.heads["A"].volume.log.last == here
    assert duo.heads["A"].volume.content(ino, 1 << 30, tmp_path / "content")
    assert (tmp_path / "content").read_bytes() == b"alone" * 3_000
    duo.close()


@pytest.fixture
def duo(tmp_path: Path, clock: Clock) -> Iterator[Duo]:
    made = Duo(tmp_path, clock)
    yield made
    made.close()


def part_of(duo: Duo, head: str) -> Any:
    return duo.heads[head].part


# ---- a leader that is not whole itself


def test_a_leader_fetches_what_is_stale_from_the_other_head_and_who_reads_waits_for_it(
    duo: Duo, caplog: pytest.LogCaptureFixture
) -> None:
    ino = duo.make(b"file", b"right" * 20_000)
    duo.join()
    duo.lose("B", ino)
    duo.kill_and_take_over()
    assert duo.bytes_of(ino) == w.Failed(errno.EIO)
    [told] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "/file" in told and "other head" in told and "start that one" in told
    assert "start the other head" in part_of(duo, "B").stale
    duo.bring_back_the_follower()
    duo.turn()
    assert part_of(duo, "B").lag(duo.clock.now_s)[0] is False, "one head has all of it, and not the one that leads"
    assert duo.bytes_of(ino) == b"right" * 20_000
    assert not part_of(duo, "B").stale
    duo.alike()


def test_what_is_written_to_a_stale_file_before_it_is_fetched_is_in_it_afterwards(duo: Duo) -> None:
    ino, other = duo.make(b"file", b"right" * 20_000), duo.make(b"other", b"o" * 30_000)
    duo.join()
    for one in (ino, other):
        duo.lose("B", one)
    duo.kill_and_take_over()
    duo.write(ino, 50, b"new")
    duo.write(ino, 100_000, b"behind" * 5_000)
    duo.ask_for(w.Set(other, size=10))
    duo.bring_back_the_follower()
    duo.write(ino, 60, b"newer")
    data = bytearray(b"right" * 20_000 + b"behind" * 5_000)
    data[50:53], data[60:65] = b"new", b"newer"
    assert duo.bytes_of(ino) == bytes(data)
    assert duo.bytes_of(other) == b"o" * 10
    duo.alike()


def test_who_reads_what_is_being_fetched_is_sent_to_the_next_leader(duo: Duo) -> None:
    ino = duo.make(b"file", b"right")
    duo.join()
    duo.lose("B", ino)
    duo.kill_and_take_over()
    duo.bring_back_the_follower()
    number = duo.begin(w.Read(ino, 0, 5))
    part_of(duo, "B").turn()
    assert number not in duo.answers
    part_of(duo, "B").close(None)
    assert duo.answers[number] == w.Elsewhere()


def test_the_other_head_that_never_answers_makes_who_reads_wait_only_so_long(duo: Duo) -> None:
    ino = duo.make(b"file", b"right")
    duo.join()
    duo.lose("B", ino)
    duo.kill_and_take_over()
    duo.bring_back_the_follower()
    duo.heads["A"].part = None  # it is stopped
    began_s = duo.clock.now_s
    assert duo.bytes_of(ino) == w.Failed(errno.EIO)
    assert 9.0 < duo.clock.now_s - began_s < 12.0


@pytest.mark.parametrize("cure", ["cut to nothing", "removed"])
def test_a_file_that_neither_head_has_is_named_and_can_be_put_anew(
    duo: Duo, caplog: pytest.LogCaptureFixture, cure: str
) -> None:
    ino = duo.make(b"file", b"right" * 20_000)
    duo.join()
    for head in "AB":
        duo.lose(head, ino)
    duo.turns(30)
    assert part_of(duo, "A").lag(duo.clock.now_s)[:2] == (True, 0), "the other head has no more of it to come"
    assert not part_of(duo, "B").lacks
    assert duo.bytes_of(ino) == w.Failed(errno.EIO)
    assert "neither head has all its bytes (put" not in caplog.text and "neither head has all its bytes" in caplog.text
    if cure == "removed":
        duo.ask_for(w.Remove(w.ROOT, b"file"))
    else:
        duo.ask_for(w.Set(ino, size=0))
        duo.write(ino, 10, b"anew")
        assert duo.bytes_of(ino) == bytes(10) + b"anew"
    duo.turns(30)
    for one in duo.heads.values():
        one.kill()
        one.open()
        assert not one.volume.stale
    duo.epoch = duo.next_epoch()
    duo.lead(both=False)
    duo.alike()


def test_a_head_that_an_operator_has_forced_gets_from_the_other_what_both_had_before(duo: Duo) -> None:
    """The other one has more, which is not the cluster's any more; what it had in common it gives all the same."""
    ino, changed = duo.make(b"file", b"right" * 10_000), duo.make(b"changed", b"before" * 5_000)
    duo.join()
    duo.go_alone()
    duo.heads["B"].kill()
    duo.write(changed, 0, b"alone")
    duo.turns(3)
    duo.heads["B"].open()
    for one in (ino, changed):
        duo.lose("B", one)
    here = duo.heads["A"].volume.log.last
    duo.kill_and_take_over(forced=True)
    duo.make(b"another", b"of the forced one")
    duo.heads["A"].open()
    duo.direct(both=False)
    for _ in range(30):
        duo.turn_leader()
        duo.deliver(False)
        part = part_of(duo, "A")
        part.turn()
        part.tick(duo.clock.now_s)
        duo.deliver(False)
        duo.clock.now_s += 0.05
        duo.heads["B"].flush()
    assert "is not the primary's" in part_of(duo, "A").trouble
    assert duo.heads["A"].volume.log.last == here, "nothing of it is taken back without an operator"
    assert list(duo.heads["B"].volume.stale) == [changed]
    duo.heads["A"].part = None
    assert duo.bytes_of(ino) == b"right" * 10_000


# ---- a disk that is full


class Disk:
    """A disk that has no room for small files that are replaced, as long as `is_full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self.refused = 0
        for module in (volume_module, store_module):
            monkeypatch.setattr(module, "write_durably", self._guarded(module.write_durably))

    def _guarded(self, real: Callable[..., None]) -> Callable[..., None]:
        def write(path: Path, data: bytes, mode: int) -> None:
            if self.is_full:
                self.refused += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            real(path, data, mode)

        return write


def test_a_mark_that_finds_no_room_is_written_when_there_is_some(duo: Duo, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    ino = duo.make(b"file", b"x" * 20_000)
    volume = duo.heads["A"].volume
    disk.is_full = True
    for _ in range(5):
        duo.clock.now_s += 10
        volume.tick(duo.clock.now_s)
    assert disk.refused >= 5 and volume.full and volume.store.marked < volume.store.applied
    duo.write(ino, 0, b"y")
    disk.is_full = False
    duo.clock.now_s += 10
    volume.tick(duo.clock.now_s)
    duo.turn()
    assert not volume.full and volume.store.marked
    assert duo.bytes_of(ino) == b"y" + b"x" * 19_999


def test_entries_without_their_data_wait_until_it_can_be_written_down_that_they_are(
    duo: Duo, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    ino = duo.make(b"file", b"x" * 20_000)
    duo.join()
    duo.go_alone()
    duo.heads["B"].kill()
    for k in range(10):
        duo.write(ino, k * 1_000, b"%d" % k * 20_000)  # more than the log's data may be
    duo.heads["A"].volume.store.sync()
    duo.heads["A"].volume.segments.forget(duo.heads["A"].volume.store.marked)
    duo.heads["B"].open()
    disk.is_full = True
    duo.direct(both=False)
    duo.turns(20)
    other = duo.heads["B"].volume
    assert disk.refused and not other.stale and other.log.last != duo.heads["A"].volume.log.last
    disk.is_full = False
    duo.alike()


def test_a_snapshot_or_a_fetched_file_that_finds_no_room_comes_again(duo: Duo, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    ino = duo.make(b"file", b"x" * 20_000)
    duo.join()
    duo.go_alone()
    duo.heads["B"].kill()
    for k in range(10):
        duo.write(ino, k, b"%d" % k * 100)
        duo.heads["A"].compact()
    duo.heads["B"].open()
    disk.is_full = True
    duo.direct(both=False)
    duo.turns(30)
    assert disk.refused > 1, "it is tried again"
    disk.is_full = False
    duo.join()
    duo.lose("B", ino)
    put = duo.heads["B"].volume.store.put
    full = [3]

    def refuse(*arguments: Any) -> None:
        full[0] -= 1
        if full[0] >= 0:
            raise OSError(errno.ENOSPC, "no room")
        put(*arguments)

    monkeypatch.setattr(duo.heads["B"].volume.store, "put", refuse)
    duo.turns(200)
    assert full[0] < 0
    duo.alike()


# ---- levels


def level(tmp_path: Path, clock: Clock, which: str) -> Duo:
    made = Duo(tmp_path, clock, which)
    made.join()
    return made


@pytest.mark.parametrize(
    ("which", "what"), [("A", "its own disk"), ("B", "that the other has it"), ("C", "both disks")]
)
def test_an_answer_waits_at_each_level_for_what_it_promises(
    tmp_path: Path, clock: Clock, which: str, what: str
) -> None:
    duo = level(tmp_path, clock, which)
    number = duo.begin(w.Make(w.ROOT, b"file", stat.S_IFREG | 0o644))
    waits_for = {"its own disk": "A", "that the other has it": "A", "both disks": "AB"}[what]
    duo.turn(flush="")
    duo.turn(flush="")
    assert number not in duo.answers, "it is on no disk"
    if which == "B":
        duo.link, link = None, duo.link  # cut
        duo.heads["A"].flush()
        duo.link = link
    for _ in range(5):
        duo.turn(flush=waits_for)
    assert number in duo.answers
    if which == "C":
        number = duo.begin(w.Make(w.ROOT, b"other", stat.S_IFREG | 0o644))
        for _ in range(5):
            duo.turn(flush="A")
        assert number not in duo.answers, "the other one's disk has not written it"
        duo.turns(3)
        assert number in duo.answers
    duo.alike()
    duo.close()


@pytest.mark.parametrize("which", ["A", "B", "C"])
def test_a_cut_link_holds_a_writer_up_until_the_primary_goes_on_alone_but_at_level_a(
    tmp_path: Path, clock: Clock, which: str
) -> None:
    duo = level(tmp_path, clock, which)
    assert duo.link
    duo.link.send = lambda request, body: True  # type: ignore[method-assign]  # nothing arrives any more
    number = duo.begin(w.Make(w.ROOT, b"file", stat.S_IFREG | 0o644))
    for _ in range(20):
        duo.turn()
    assert (number in duo.answers) == (which == "A")
    duo.go_alone()
    duo.turns(2)
    assert number in duo.answers
    duo.alike()
    duo.close()


def test_at_level_a_what_the_dead_primary_alone_had_is_lost_and_both_are_alike_again(
    tmp_path: Path, clock: Clock
) -> None:
    duo = level(tmp_path, clock, "A")
    kept, cut = duo.make(b"kept", b"k" * 30_000), duo.make(b"cut", b"c" * 30_000)
    gone = duo.make(b"gone", b"g" * 9_000)
    duo.turns(5)
    assert duo.link
    duo.link.send = lambda request, body: True  # type: ignore[method-assign]
    duo.write(kept, 5, b"lost")
    duo.ask_for(w.Set(cut, size=3))
    duo.make(b"lost", b"l" * 20_000)
    duo.ask_for(w.Remove(w.ROOT, b"gone"))
    duo.turns(5)
    duo.heads["A"].volume.store.sync()
    assert gone not in duo.heads["A"].volume.state.inodes and not duo.heads["A"].volume.store.path(gone).exists()
    duo.kill_and_take_over()
    for ino, data in ((kept, b"k" * 30_000), (cut, b"c" * 30_000), (gone, b"g" * 9_000)):
        assert duo.bytes_of(ino) == data
    duo.write(kept, 0, b"on")
    duo.heads["A"].open()
    duo.alike()
    assert duo.bytes_of(kept) == b"on" + b"k" * 29_998
    assert duo.bytes_of(gone) == b"g" * 9_000
    duo.close()


@pytest.mark.parametrize(("which", "lacks"), [("A", 0), ("B", 1), ("C", 0)])
def test_a_standby_whose_process_ended_may_lead_again_at_level_b_only_when_it_has_all(
    tmp_path: Path, clock: Clock, which: str, lacks: int
) -> None:
    duo = level(tmp_path, clock, which)
    head: Head = duo.heads["B"]
    duo.make(b"file", b"x")
    head.kill()
    head.open()
    head.part = Follower(head.volume, duo.epoch, duo.reply, duo.level)
    assert head.part.lacks == lacks
    duo.direct(both=True)
    duo.turns(10)
    assert not part_of(duo, "B").lacks
    duo.close()


def test_a_standby_that_lacks_more_than_level_a_allows_says_so(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beo.tree.following.ASYNC_LAG", 20)
    duo = level(tmp_path, clock, "A")
    follower = part_of(duo, "B")
    monkeypatch.setattr(duo.heads["B"].volume, "mark_stale", lambda inos: False)
    monkeypatch.setattr(
        follower,
        "_with_data",
        lambda message: type(message)(
            message.head, message.epoch, message.t, message.lease_s, message.previous, (), message.commit, message.last
        ),
    )
    for k in range(40):
        duo.ask_for(w.Make(w.ROOT, b"%d" % k, stat.S_IFREG | 0o644))
        if k == 10:
            assert not follower.lacks
    assert follower.lacks > 20
    duo.close()


# ---- what a head had alone


def test_what_is_taken_back_is_put_aside_before_with_the_files_as_they_were(tmp_path: Path, clock: Clock) -> None:
    duo = level(tmp_path, clock, "A")
    ino = duo.make(b"file", b"before" * 3_000)
    duo.ask_for(w.Make(w.ROOT, b"folder", stat.S_IFDIR | 0o755))
    duo.turns(5)
    assert duo.link
    duo.link.send = lambda request, body: True  # type: ignore[method-assign]
    duo.write(ino, 6, b"ALONE")
    duo.ask_for(w.Rename(w.ROOT, b"file", w.ROOT, b"renamed"))
    duo.make(b"new", b"n" * 20_000)
    duo.kill_and_take_over()
    duo.heads["A"].open()
    duo.alike()
    folder = duo.heads["A"].folder / "orphans"
    [path] = orphans.files(folder)
    found = orphans.read(path)
    told = [(one.what, one.path) for one in found]
    assert told == [
        ("wrote 5 bytes at 6", "/renamed"),
        ("moved to /renamed", "/file"),
        ("made", "/new"),
        ("wrote 20000 bytes at 0", "/new"),
    ]
    assert orphans.count(folder) == 4 and all(one.whole and one.sure for one in found)
    gone = orphans.bring_out(path, found, tmp_path / "out")
    again = orphans.bring_out(path, found, tmp_path / "out")
    assert (tmp_path / "out" / "renamed").read_bytes() == b"beforeALONEe" + b"before" * 2_998
    assert (tmp_path / "out" / "new").read_bytes() == b"n" * 20_000
    assert set(gone.values()) & set(again.values()) == set(), "what is there is not overwritten"
    assert not orphans.files(duo.heads["B"].folder / "orphans")
    duo.close()


def test_what_was_never_acknowledged_has_a_list_that_nobody_is_bothered_with(duo: Duo) -> None:
    duo.join()
    duo.begin(w.Make(w.ROOT, b"file", stat.S_IFREG | 0o644))
    duo.heads["A"].flush()
    duo.kill_and_take_over()
    duo.heads["A"].open()
    duo.alike()
    folder = duo.heads["A"].folder / "orphans"
    assert not orphans.count(folder)
    [path] = orphans.files(folder, orphans.UNSAID)
    assert [one.path for one in orphans.read(path)] == ["/file"]


def test_the_files_of_a_cut_are_bounded_and_say_when_they_are_not_whole(
    duo: Duo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphans, "CONTENT_MAX_BYTES", 1_000)
    monkeypatch.setattr(orphans, "CHANGES_MAX", 3)
    duo.make(b"file", b"x" * 30_000)
    duo.make(b"other", b"y" * 10)
    volume = duo.heads["A"].volume
    volume.put_aside(1, volume.committed)
    [path] = orphans.files(duo.heads["A"].folder / "orphans")
    found = orphans.read(path)
    assert [one.whole for one in found] == [True, False, True, True] and found[-1].what == "1 more"
    assert path.with_suffix("").joinpath(found[1].content).read_bytes() == b"x" * 1_000


@pytest.mark.parametrize("snapshots", [False, True])
def test_what_a_wiped_head_had_alone_is_found_in_what_was_put_aside(
    tmp_path: Path, clock: Clock, snapshots: bool
) -> None:
    duo = Duo(tmp_path, clock)
    duo.make(b"both", b"of both")
    duo.join()
    duo.go_alone()
    duo.heads["B"].kill()
    ino = duo.make(b"alone", b"a" * 20_000)
    duo.turns(3)
    duo.heads["A"].kill()
    home = tmp_path / "home"
    shutil.copytree(tmp_path / "A", home / "head.old-1" / "tree")
    duo.heads["B"].open()
    duo.leader, duo.epoch = "B", duo.epoch + (1 << votes.GENERATION_SHIFT)
    duo.lead(both=False)
    for k in range(4):
        duo.make(b"%d" % k, b"of the forced one")
        if snapshots:
            duo.heads["B"].compact()
            duo.turn(flush="B")
    duo.heads["B"].kill()
    shutil.copytree(tmp_path / "B", home / "head" / "tree")
    told = wiped.look(home, home / "head")
    found = [one for path in orphans.files(home / "head" / "tree" / "orphans") for one in orphans.read(path)]
    lost = [(one.what, one.path) for one in found if "both" not in one.path]
    assert lost == [("made", "/alone"), ("wrote 20000 bytes at 0", "/alone")]
    assert bool(told) == snapshots and all(one.sure != snapshots for one in found)
    [path] = orphans.files(home / "head" / "tree" / "orphans")
    assert path.with_suffix("").joinpath(str(ino)).read_bytes() == b"a" * 20_000
    assert not wiped.look(home, home / "head"), "once"
    assert orphans.count(home / "head" / "tree" / "orphans") == len(found)


def test_a_wiped_tree_that_is_damaged_is_told_of_and_harms_nothing(tmp_path: Path) -> None:
    for folder in ("head.old-1", "head"):
        log = tmp_path / folder / "tree" / "log"
        log.mkdir(parents=True)
        (log / "journal.db").write_bytes(b"nonsense" * 1_000)
    [told] = wiped.look(tmp_path, tmp_path / "head")
    assert "head.old-1" in told and "is not known" in told


@pytest.mark.parametrize("text", [b"nonsense\n", b'{"index": 1}\n', b"\xff\xfe"])
def test_a_list_that_is_none_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text)
    with pytest.raises(BeoError, match=r"x\.jsonl can't be read"):
        orphans.read(path)


def test_a_trees_process_whose_head_ended_before_it_had_begun_ends_too(tmp_path: Path) -> None:
    """It was left over for ever, beside the next one: of a death before it asks to be told, nothing tells it."""
    words = [sys.executable, "-P", "-m", "beo.tree.server"]
    script = "import subprocess, sys; print(subprocess.run(sys.argv[1:], timeout=20).returncode)"
    env = {**os.environ, "BEO_DIR": str(tmp_path), PARENT: str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=env, timeout=30)
    assert done.stdout == "1\n" and not done.stderr
