"""Two heads' trees in one process, over a link that is not to be trusted, with clients that ask until answered.

Everything but the disks is in the hands of a generator of random numbers: when messages arrive, how often, when a disk
has something, who is killed when, and whose turn it is to lead. Time is virtual.
"""

from __future__ import annotations

import errno
import random
import stat
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from beo.compactor import compact
from beo.entries import Entry
from beo.settings import Level
from beo.tree import copying, following, leading
from beo.tree import segments as segments_module
from beo.tree import volume as volume_module
from beo.tree import words as w
from beo.tree.changes import Change
from beo.tree.following import Follower
from beo.tree.leading import Leader
from beo.tree.replay import replay
from beo.tree.tie import Role
from beo.tree.volume import Volume
from tests.tree_world import ROOT_CALLER, do_bytes, look_after

ENOUGH_TURNS = 3_000  # of a world without trouble, after which everything has to be in order
WAIT_S = 20.0


class Crash(BaseException):
    """The process ends here."""


class Clock:
    """What `time` is to the modules under test."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def time_ns(self) -> int:
        """Virtual nanoseconds since 1970."""
        return int(self.now_s * 1e9)

    def clock_gettime(self, _: int) -> float:
        """Virtual seconds."""
        return self.now_s


def small(monkeypatch: pytest.MonkeyPatch, clock: Clock, happened: Counter[str]) -> None:
    """Let little be much, so that a short run meets every limit; count what happens only by that."""
    for name in ("back", "install", "mark_stale", "fetched"):
        _count(monkeypatch, name, happened)
    for module in (leading, following, volume_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(segments_module, "SEGMENT_BYTES", 60_000)
    monkeypatch.setattr(segments_module, "KEPT_BYTES", 60_000)
    monkeypatch.setattr(copying, "UNDER_WAY_BYTES", 60_000)
    monkeypatch.setattr(copying, "MESSAGE_BYTES", 30_000)
    monkeypatch.setattr(copying, "FETCHED_BYTES", 16_000)


def _count(monkeypatch: pytest.MonkeyPatch, name: str, happened: Counter[str]) -> None:
    real = getattr(Volume, name)

    def counted(volume: Volume, *arguments: Any, **named: Any) -> Any:
        happened[name] += bool(arguments[0])
        return real(volume, *arguments, **named)

    monkeypatch.setattr(Volume, name, counted)


class Link:
    """One connection from a leader to the tree of the other head, in place of a wire.Connection."""

    def __init__(self) -> None:
        self.there: deque[bytes] = deque()
        self.back: deque[bytes] = deque()
        self.closed = False

    def send(self, request: int, body: bytes) -> bool:
        """From the leader."""
        assert not self.closed
        self.there.append(body)
        return True

    def receive(self) -> tuple[int, bytes] | None:
        """For the leader."""
        return None

    def close(self) -> None:
        """As a wire.Connection."""
        self.closed = True

    def unregister(self, _: object) -> None:
        """As a wire.Connection."""


class Inbox(Link):
    """A link of which the leader takes what has arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: deque[bytes] = deque()

    def receive(self) -> tuple[int, bytes] | None:
        """For the leader."""
        return (0, self.arrived.popleft()) if self.arrived else None


class Head:
    """One head's volume and what it does with it; `disk_is_free` lets what was appended become durable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.part: Leader | Follower | None = None
        self.open()

    def open(self) -> None:
        """Start anew, with what is on the disk."""
        self.disk_is_free = self.dead = False
        self.failures: list[BaseException] = []
        self.volume = Volume(self.folder, lambda index: None, self.failures.append)
        journal: Any = self.volume.journal
        journal._before = self._before
        self.is_up = True

    def _before(self) -> None:
        journal: Any = self.volume.journal
        while not (self.disk_is_free or self.dead or journal._is_awaited or journal._closing):
            time.sleep(0.0002)
        if self.dead:
            raise Crash
        self.volume.segments.sync()

    def flush(self) -> None:
        """Let everything that was appended become durable."""
        self.disk_is_free = True
        deadline_s = time.monotonic() + WAIT_S
        journal: Any = self.volume.journal
        # Until it has swept, too: a process that makes the next snapshot comes thousands of entries later.
        while (
            journal.durable_index < journal.last_index or journal.is_adopting or journal._queue or journal._committing
        ):
            assert time.monotonic() < deadline_s and not self.failures, self.failures
            time.sleep(0.0002)
        self.disk_is_free = False

    def kill(self) -> None:
        """End as by SIGKILL: what is in memory is gone, and what isn't durable may be."""
        self.dead, self.part, self.is_up = True, None, False
        journal: Any = self.volume.journal
        with journal._wake:
            journal._queue.clear()
        journal.close()
        self.volume.store.close()
        self.volume.segments.close()

    def compact(self) -> None:
        """Make a snapshot, as a process beside the tree's would."""
        self.flush()
        volume = self.volume
        volume.store.sync()
        upto = min(volume.store.marked, volume.committed)
        if upto > volume.journal.snapshot_index:
            compact(self.folder / "log", upto, replay)
            volume.journal.adopt_snapshot(upto)
            self.flush()

    def content(self) -> dict[int, bytes]:
        """The bytes of every file."""
        files = {ino: found.size for ino, found in self.volume.state.inodes.items() if found.is_file}
        return {ino: self.volume.store.read(ino, 0, size, size) for ino, size in files.items()}


class Author:
    """A client with a file of its own, in which nobody else writes, and names that nobody else has."""

    def __init__(self, number: int, rng: random.Random) -> None:
        self.name = b"%d" % number
        self.rng = rng
        self.session = f"the session of author {number}"
        self.number = self.answered = 0
        self.asked: dict[int, w.Question] = {}
        self.ino = 0
        self.log: list[Any] = []  # what was asked to be done, in order
        self.names: list[bytes] = []
        self.may_lose = False  # what was answered, as at level A
        self.ask(w.Begin())
        self.ask(w.Make(w.ROOT, self.name, stat.S_IFREG | 0o644))

    def ask(self, question: w.Question) -> None:
        """Ask something new."""
        self.number += 1
        self.asked[self.number] = question
        if isinstance(question, w.CHANGING):
            self.log.append((self.number, question))

    def go_on(self) -> None:
        """Ask for one more change."""
        if not self.ino:
            return
        rng = self.rng
        size = rng.choice([rng.randrange(1, 200), rng.randrange(1, 8_000), rng.randrange(9_000, 30_000)])
        data = rng.randbytes(16) * (size // 16 + 1)
        match rng.randrange(9):
            case 0:
                self.names.append(b"%s-%d" % (self.name, self.number))
                self.ask(w.Make(w.ROOT, self.names[-1], stat.S_IFDIR | 0o755))
            case 1 if self.names:
                self.ask(w.Remove(w.ROOT, self.names.pop(rng.randrange(len(self.names))), True))
            case 2:
                self.ask(w.Set(self.ino, size=rng.randrange(40_000)))
            case 3 | 4:
                self.ask(w.Write(self.ino, rng.randrange(60_000), data[:size]))
            case 5:
                self.ask(w.Allocate(self.ino, rng.randrange(40_000), size, keep_size=True, punch=True))
            case _:
                self.ask(w.Write(self.ino, 0, data[:size], append=True))

    def questions(self) -> list[w.Ask]:
        """What is to be asked again."""
        settled = min(self.asked) - 1 if self.asked else self.number
        return [w.Ask(self.session, number, settled, ROOT_CALLER, self.asked[number]) for number in self.asked]

    def hear(self, number: int, answer: w.Answer) -> None:
        """Take an answer."""
        question = self.asked.pop(number, None)
        if question is None:
            return
        if isinstance(answer, w.Elsewhere):
            self.asked = dict(sorted({**self.asked, number: question}.items()))
            return
        if self.may_lose and isinstance(answer, w.Over | w.Failed):
            return  # what it builds on was lost
        if isinstance(question, w.Make) and answer == w.Failed(errno.ESTALE):
            pass  # it was made, and by the time of the repeated question it was removed, as was asked for behind it
        else:
            assert not isinstance(answer, w.Over | w.Failed), (question, answer)
        if number == 2:
            assert isinstance(answer, w.AttrIs)
            self.ino = answer.attr.ino
        self.answered = max(self.answered, number)

    def after(self, upto: int) -> tuple[bytes, set[bytes]]:
        """What its file and names are after everything up to a question."""
        data, names = bytearray(), set()
        for number, question in self.log:
            if number > upto:
                break
            match question:
                case w.Make():
                    names.add(question.name)
                case w.Remove():
                    names.remove(question.name)
                case w.Set():
                    assert question.size is not None
                    del data[question.size :]
                    data.extend(bytes(question.size - len(data)))
                case w.Allocate():
                    hole = data[question.offset : question.offset + question.size]
                    data[question.offset : question.offset + len(hole)] = bytes(len(hole))
                case w.Write():
                    offset = len(data) if question.append else question.offset
                    data.extend(bytes(max(0, offset - len(data))))
                    data[offset : offset + len(question.data)] = question.data
        return bytes(data), names

    def check(self, head: Head) -> None:
        """Assert that what was answered is there, and of the rest a beginning, in order, each once."""
        children = head.volume.state.inodes[w.ROOT].children or {}
        names = {name for name in children if name.split(b"-")[0] == self.name}
        ino = children.get(self.name, (0, 0))[0]
        size = head.volume.state.inodes[ino].size if ino else 0
        found = head.volume.store.read(ino, 0, size, size), names
        assert any(found == self.after(upto) for upto in range(self.answered, self.number + 1)), self.name


class World:
    """Heads A and B, authors, and the trouble that they are in."""

    def __init__(self, folder: Path, seed: int, clock: Clock, level: Level = "C") -> None:
        self.level: Level = level
        self.history: dict[bytes, tuple[bytes, Change]] = {}  # of every entry there ever was, the one before it
        self.rng = random.Random(seed)
        self.clock = clock
        self.heads = {name: Head(folder / name) for name in "AB"}
        self.authors = [Author(number, self.rng) for number in range(3)]
        for author in self.authors:
            author.may_lose = level == "A"
        self.leader, self.epoch = "A", 1
        self.both = self.joined = False
        self.link: Inbox | None = None
        self.lead(both=False)

    @property
    def other(self) -> str:
        """Who doesn't lead."""
        return "AB".replace(self.leader, "")

    # ---- roles, as a register would give them

    def role(self) -> Role:
        """The leader's role."""
        return Role(0, True, self.epoch, "there" if self.link else "", self.both, self.clock.now_s + 1e9, 0)

    def lead(self, both: bool) -> None:
        """Let the leader lead, in an epoch of its own."""
        head = self.heads[self.leader]
        self.both = both
        self.connect()
        head.part = Leader(head.volume, self.role(), self.answer, level=self.level)
        self.write_history(head.volume)
        head.part.direct(cast(Any, self.link), self.role(), cast(Any, None))

    def write_history(self, volume: Volume) -> None:
        """Write down what this volume appends from here on."""

        def append(epoch: int, change: Change) -> Entry:
            before = volume.log.last.hash
            entry = Volume.append(volume, epoch, change)
            self.history[entry.hash] = before, change
            return entry

        volume.append = append  # type: ignore[method-assign]

    def next_epoch(self) -> int:
        """The next one of whoever leads: A's are odd, B's even."""
        return self.epoch + 1 + (self.epoch % 2 == (self.leader == "A"))

    def connect(self) -> None:
        """A new connection to the other head, if it is up; what was on its way over another one is lost."""
        head = self.heads[self.other]
        self.link = Inbox() if head.is_up else None
        if head.is_up and not isinstance(head.part, Follower):
            head.part = Follower(head.volume, self.epoch, self.reply, self.level)

    def direct(self, both: bool) -> None:
        """Tell the leader of a change."""
        self.both = both
        self.joined = self.joined and both
        leader = self.heads[self.leader].part
        if isinstance(leader, Leader):
            self.connect()
            leader.direct(cast(Any, self.link), self.role(), cast(Any, None))

    def reply(self, _: bytes, body: bytes) -> None:
        """The follower's words."""
        if self.link:
            self.link.back.append(body)

    def answer(self, peer: bytes, number: int, answer: w.Told) -> None:
        """An answer; some find nobody."""
        if self.rng.random() > 0.05:
            self.authors[int(peer)].hear(number, cast(w.Answer, answer))

    # ---- trouble

    def kill_the_leader(self) -> None:
        """And let the other one lead, if it has everything, or the same one again."""
        self.heads[self.leader].kill()
        if self.joined and self.other_may_lead() and self.rng.random() < 0.7:
            self.take_over()
        else:
            self.epoch = self.next_epoch()
            self.heads[self.leader].open()
            self.restart_follower()
            self.lead(self.both)

    def other_may_lead(self) -> bool:
        """Whether it takes over by itself, being in step."""
        part = self.heads[self.other].part
        return not part.lacks if isinstance(part, Follower) else self.level == "C"

    def take_over(self) -> None:
        """The other head has everything that was said: it leads alone now, and that is looked at."""
        self.leader = self.other
        self.epoch = self.next_epoch()
        self.joined = False
        head = self.heads[self.leader]
        if not head.is_up:
            head.open()
        self.lead(both=False)
        head.flush()
        self.turn_leader()
        self.check(head)

    def check(self, head: Head) -> None:
        """Assert that it has what was said, where that may not be lost, and that its bytes are as its log made them."""
        files: dict[int, bytearray] = {}
        position = head.volume.log.position(head.volume.store.applied)
        changes, at = [], position.hash if position else b""
        while at in self.history:
            at, change = self.history[at]
            changes.append(change)
        assert position and len(changes) == position.idx
        for change in reversed(changes):
            do_bytes(files, change)
        found = head.content()
        assert {ino: bytes(files.get(ino, b"")) for ino in found if ino not in head.volume.stale} == {
            ino: data for ino, data in found.items() if ino not in head.volume.stale
        }
        if self.level != "A":
            for author in self.authors:
                author.check(head)

    def switch_over(self) -> None:
        """The roles change, and both live on."""
        if self.joined and self.heads[self.other].is_up:
            leader = self.heads[self.leader].part
            assert isinstance(leader, Leader)
            if leader.lag(self.clock.now_s)[:2] != (True, 0):
                return  # it waits until the other one has everything
            leader.close(cast(Any, None))
            self.heads[self.leader].part = None
            self.leader = self.other
            self.epoch = self.next_epoch()
            self.lead(both=True)
            self.restart_follower()

    def restart_follower(self) -> None:
        """As after a changed role: with nothing but its disk's."""
        head = self.heads[self.other]
        if head.is_up:
            head.part = Follower(head.volume, self.epoch, self.reply, self.level)

    def kill_the_follower(self) -> None:
        """It comes back later, or at once."""
        head = self.heads[self.other]
        if head.is_up:
            head.kill()
            if self.rng.random() < 0.3:
                head.open()
                self.direct(self.both)
            else:
                self.direct(both=self.rng.random() < 0.3)

    def bring_back_the_follower(self) -> None:
        """It is to be in step again."""
        head = self.heads[self.other]
        if not head.is_up:
            head.open()
        self.direct(both=True)

    def go_alone(self) -> None:
        """Nothing waits for the other head, though it is there."""
        self.direct(both=False)

    def cut(self) -> None:
        """The connection ends, and is made anew."""
        self.direct(self.both)

    # ---- what goes on

    def turn_leader(self) -> None:
        """The leader's turn."""
        part = self.heads[self.leader].part
        assert isinstance(part, Leader)
        part.turn()
        part.tick(self.clock.now_s)
        if self.both and part.lag(self.clock.now_s)[0]:
            self.joined = True

    def turn_follower(self) -> None:
        """The follower's turn."""
        part = self.heads[self.other].part
        if isinstance(part, Follower):
            part.turn()
            part.tick(self.clock.now_s)
            assert not part.trouble, part.trouble

    def deliver(self, trouble: bool) -> None:
        """Some messages arrive, in order; with trouble, a few not at all, or twice."""
        if not self.link:
            return
        link, part = self.link, self.heads[self.other].part
        for queue, take in (
            (link.there, lambda body: part.hear(b"leader", body) if isinstance(part, Follower) else None),
            (link.back, link.arrived.append),
        ):
            for _ in range(self.rng.randrange(8) if trouble else len(queue)):
                if not queue:
                    break
                body = queue.popleft()
                chance = self.rng.random() if trouble else 0.5
                if chance > 0.02:
                    take(body)
                if chance > 0.98:
                    take(body)

    def ask(self) -> None:
        """Some ask something new, or again."""
        for author in self.authors:
            if len(author.asked) < 4 and self.rng.random() < 0.5:
                author.go_on()
        self.ask_all()

    def ask_all(self) -> None:
        """All ask what isn't answered."""
        part = self.heads[self.leader].part
        assert isinstance(part, Leader)
        for number, author in enumerate(self.authors):
            for ask in author.questions():
                part.ask(b"%d" % number, ask)

    def step(self) -> None:
        """Something happens."""
        rng = self.rng
        self.clock.now_s += rng.choice([0.001, 0.01, 0.05, 0.4])
        heads = [head for head in self.heads.values() if head.is_up]
        calm: list[tuple[int, Callable[[], None]]] = [
            (10, self.turn_leader),
            (10, self.turn_follower),
            (10, lambda: self.deliver(True)),
            (4, self.ask),
            (6, lambda: rng.choice(heads).flush()),
            (3, lambda: rng.choice(heads).volume.tick(self.clock.now_s)),
        ]
        trouble: list[tuple[float, Callable[[], None]]] = [
            (0.15, self.kill_the_leader),
            (0.15, self.kill_the_follower),
            (0.4, self.bring_back_the_follower),
            (0.1, self.go_alone),
            (0.1, self.switch_over),
            (0.1, self.cut),
            (0.6, lambda: self.heads[self.leader].compact()),
        ]
        weights, actions = zip(*(calm + trouble), strict=True)
        (action,) = rng.choices(actions, weights)
        action()

    def calm_down(self) -> None:
        """Let everything come to its end without trouble, and assert that both heads have the same, and all of it."""
        self.bring_back_the_follower()
        for _ in range(ENOUGH_TURNS):
            self.clock.now_s += 0.05
            self.ask_all()
            self.turn_leader()
            self.deliver(False)
            for head in self.heads.values():
                head.flush()
                head.volume.tick(self.clock.now_s)
            self.turn_follower()
            self.deliver(False)
            if self.is_quiet():
                break
        else:
            raise AssertionError(f"they don't come into step: {self.describe()}")
        leader, other = self.heads[self.leader], self.heads[self.other]
        assert leader.volume.state.encode() == other.volume.state.encode()
        look_after(leader.volume.state)
        assert leader.content() == other.content()
        for head in (leader, other):
            self.check(head)

    def is_quiet(self) -> bool:
        """Whether nothing is to be done."""
        part = self.heads[self.leader].part
        assert isinstance(part, Leader)
        volumes = [head.volume for head in self.heads.values()]
        ends = {volume.store.applied for volume in volumes} | {volume.log.last.idx for volume in volumes}
        is_in_step, missing, _ = part.lag(self.clock.now_s)
        asked = any(author.asked for author in self.authors)
        return not asked and is_in_step and not missing and len(ends) == 1 and not any(one.stale for one in volumes)

    def describe(self) -> SimpleNamespace:
        """What stands in the way."""
        part = cast(Any, self.heads[self.leader].part)
        return SimpleNamespace(
            lag=part.lag(self.clock.now_s),
            asked=[len(author.asked) for author in self.authors],
            stale=[list(head.volume.stale) for head in self.heads.values()],
            applied=[head.volume.store.applied for head in self.heads.values()],
            last=[head.volume.log.last.idx for head in self.heads.values()],
        )

    def close(self) -> None:
        """Leave nothing running."""
        for head in self.heads.values():
            if head.is_up:
                head.disk_is_free = True
                head.volume.close()
