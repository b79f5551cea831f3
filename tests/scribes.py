"""Those who write in the tree of files while it is hurt, and know afterwards what has to be in it.

    with Scribes(cluster.home, seed) as scribes:
        cluster.kill("head")
    assert not scribes.faults()

Each has a session and a directory of its own and does one thing after another there; all append to one file. What a
scribe was told is done, it believes; `faults` holds that against what a session that is new then sees.

python -m tests.scribes SEED STOP: the same on another host until the file STOP is there; says what was seen, as JSON.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from beo import config
from beo.errors import BeoError
from beo.tree import locks
from beo.tree import words as w
from beo.tree.files import Files
from beo.tree.locate import Locator
from beo.tree.session import Session

ROOT = w.Caller(0, 0)
PATIENCE_S = 90.0  # longer than any fault of a test, with what heals it
NAMES = 12  # in each scribe's directory
LARGE_BYTES = 200_000  # more than an entry of the log has in itself
SILENCE_S = 0.3  # longer ones are written down
SHARED = "shared"  # a file to which all append


class Hand(Files):
    """The tree by paths and by questions. For one thread."""

    def __init__(self, home: config.Home, secret: str = "admin", patience_s: float = PATIENCE_S) -> None:
        """Begin a session of its own."""
        key = home.secret(secret)
        super().__init__(Session(Locator(home, patience_s), home.cluster().key, key), ROOT, patience_s)

    def ask(self, question: w.Question) -> w.Answer:
        """Ask and wait for the answer; a Failed is raised as OSError."""
        return self._ask(question, type(question).__name__)

    def begin(self, question: w.Question) -> int:
        """Ask, and return the number for `wait`."""
        return self._session.ask(self._caller, question)

    def wait(self, number: int) -> w.Answer:
        """Wait for the answer to a question."""
        return self._wait(number, "")

    def make(self, path: str) -> int:
        """Make an empty file; return its inode."""
        parent, name = self._parent(path)
        answer = self.ask(w.Make(parent, name, 0o100666))
        assert isinstance(answer, w.AttrIs)
        return answer.attr.ino

    def opened(self, path: str) -> int:
        """Open a file; return its inode."""
        ino = self.stat(path).ino
        self.ask(w.Open(ino))
        return ino

    def append(self, ino: int, data: bytes) -> None:
        """Write behind the end of a file."""
        self.ask(w.Write(ino, 0, data, append=True))

    def bytes_of(self, path: str) -> bytes:
        """All bytes of a file."""
        return b"".join(self.read(path))

    def bytes_at(self, ino: int, offset: int, size: int) -> bytes:
        """Bytes of an inode, be it without a name by now."""
        answer = self.ask(w.Read(ino, offset, size))
        assert isinstance(answer, w.DataIs)
        return answer.data

    def lock(self, ino: int, owner: int, kind: str = locks.WRITE) -> bool:
        """Take or give a lock of the whole file, without waiting; False: somebody has it."""
        try:
            self.ask(w.Lock(ino, owner, kind))
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return False
            raise
        return True


class Scribe(threading.Thread):
    """One who writes, and what it believes: `files` by name, `folders`, and how many records it appended."""

    def __init__(self, home: config.Home, number: int, seed: int, excused: Collection[int] = ()) -> None:
        """Take who it is. excused: numbers of errno that are no fault; then nothing was done."""
        super().__init__(name=f"scribe {number}")
        self.files: dict[str, bytes] = {}
        self.folders: dict[str, bool] = {}
        self.records = 0
        self.done = 0
        self.refused = 0
        self.wrong: list[str] = []
        self.silences: list[tuple[float, float]] = []  # (when it ended, how long), by time.monotonic
        self.longest_s = 0.0
        self.stop = threading.Event()
        self._home, self._number = home, number
        self._dice = random.Random(seed * 1_000 + number)
        self._excused = excused
        self._base = f"/{seed}"
        self._folder = f"{self._base}/scribe{number}"

    def run(self) -> None:
        """Do one thing after another until it is told to stop."""
        try:
            hand = Hand(self._home)
            hand.mkdir(self._folder)
            self._shared = hand.opened(f"{self._base}/{SHARED}")
            kept = f"{self._folder}/kept"
            self._kept, self._kept_bytes = hand.make(kept), b""
            hand.ask(w.Open(self._kept))
            while not self.stop.is_set():
                began_s = time.monotonic()
                self._one(hand)
                self._note(began_s)
                time.sleep(self._dice.uniform(0, 0.004))
            self.files["kept"] = self._kept_bytes
            hand.close()
        except (OSError, BeoError) as error:
            self.wrong.append(f"{self.name} ended: {error!r}")

    def _note(self, began_s: float) -> None:
        now_s = time.monotonic()
        if now_s - began_s > SILENCE_S:
            self.silences.append((now_s, now_s - began_s))
        self.longest_s = max(self.longest_s, now_s - began_s)
        self.done += 1

    def _one(self, hand: Hand) -> None:
        does = self._dice.choices(
            (self._put, self._move, self._remove, self._fold, self._append, self._keep, self._look),
            (6, 3, 2, 2, 4, 4, 2),
        )[0]
        try:
            does(hand)
        except OSError as error:
            if error.errno in self._excused:
                self.refused += 1
                time.sleep(0.05)
                return
            self.wrong.append(f"{self.name}, {does.__name__}: {error!r}")

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _data(self) -> bytes:
        size = self._dice.choice((0, 10, 3_000, 9_000, 40_000, LARGE_BYTES))
        return (b"%d.%d " % (self._number, self.done)) * (size // 6)

    def _put(self, hand: Hand) -> None:
        name, data = f"f{self._dice.randrange(NAMES)}", self._data()
        hand.write(self._path(name), iter([data]))
        self.files[name] = data

    def _move(self, hand: Hand) -> None:
        if self.files:
            old, new = self._dice.choice(sorted(self.files)), f"f{self._dice.randrange(NAMES)}"
            hand.rename(self._path(old), self._path(new))
            data = self.files.pop(old)
            self.files[new] = data

    def _remove(self, hand: Hand) -> None:
        if self.files:
            name = self._dice.choice(sorted(self.files))
            hand.remove(self._path(name))
            del self.files[name]

    def _fold(self, hand: Hand) -> None:
        name = f"d{self._dice.randrange(4)}"
        if name in self.folders:
            hand.remove(self._path(name))
            del self.folders[name]
        else:
            hand.mkdir(self._path(name))
            self.folders[name] = True

    def _append(self, hand: Hand) -> None:
        hand.append(self._shared, b"%d %d\n" % (self._number, self.records))
        self.records += 1

    def _keep(self, hand: Hand) -> None:
        """Write into the file that is held open all the time."""
        data, offset = self._data(), self._dice.randrange(len(self._kept_bytes) + 1)
        if data:
            hand.ask(w.Write(self._kept, offset, data))
            self._kept_bytes = self._kept_bytes[:offset] + data + self._kept_bytes[offset + len(data) :]

    def _look(self, hand: Hand) -> None:
        if self.files:
            name = self._dice.choice(sorted(self.files))
            if hand.bytes_of(self._path(name)) != self.files[name]:
                self.wrong.append(f"{self.name} reads something else in {name} than it wrote")
        offset = self._dice.randrange(len(self._kept_bytes) + 1)
        if hand.bytes_at(self._kept, offset, 5_000) != self._kept_bytes[offset : offset + 5_000]:
            self.wrong.append(f"{self.name} reads something else in what it holds open")

    def faults(self, hand: Hand) -> list[str]:
        """What is otherwise than this one believes, as a hand sees it now."""
        there = dict(hand.list(self._folder))
        wrong = list(self.wrong)
        if sorted(there) != sorted([*self.files, *self.folders]):
            wrong.append(f"{self.name}: there is {sorted(there)}, not {sorted([*self.files, *self.folders])}")
        for name, data in self.files.items():
            if name in there and (found := hand.bytes_of(self._path(name))) != data:
                at = next((k for k, pair in enumerate(zip(found, data, strict=False)) if pair[0] != pair[1]), "its end")
                wrong.append(f"{self.name}: {name} has {len(found)} bytes, not {len(data)}, or others from {at} on")
        return wrong


class Scribes:
    """Several, for as long as a `with` lasts."""

    def __init__(self, home: config.Home, seed: int, count: int = 2, excused: Collection[int] = ()) -> None:
        """Nobody writes yet. seed: names their directory, too."""
        self._home, self._seed = home, seed
        self.all = [Scribe(home, number, seed, excused) for number in range(count)]

    def __enter__(self) -> Scribes:
        """Let them begin, and return when each has done something."""
        hand = Hand(self._home)
        hand.mkdir(f"/{self._seed}")
        hand.make(f"/{self._seed}/{SHARED}")
        hand.close()
        for scribe in self.all:
            scribe.start()
        while not all(scribe.done or not scribe.is_alive() for scribe in self.all):
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        """Return when all have ended."""
        for scribe in self.all:
            scribe.stop.set()
        for scribe in self.all:
            scribe.join()

    @property
    def done(self) -> int:
        """How many things they were told are done."""
        return sum(scribe.done for scribe in self.all)

    @property
    def longest_s(self) -> float:
        """The longest silence that one of them has met."""
        return max(scribe.longest_s for scribe in self.all)

    def wait_for_more(self, count: int = 10, timeout_s: float = PATIENCE_S) -> None:
        """Return when each has done so many things more."""
        before = [scribe.done for scribe in self.all]
        deadline_s = time.monotonic() + timeout_s
        while any(one.done < was + count and one.is_alive() for one, was in zip(self.all, before, strict=True)):
            assert time.monotonic() < deadline_s, f"in {timeout_s:g} s they did {self.done - sum(before)} things"
            time.sleep(0.01)

    def faults(self) -> list[str]:
        """What is otherwise than they believe, as a new session sees it; when they have ended."""
        hand = Hand(self._home)
        wrong = [fault for scribe in self.all for fault in scribe.faults(hand)]
        lines = [tuple(map(int, line.split())) for line in hand.bytes_of(f"/{self._seed}/{SHARED}").splitlines()]
        for number, scribe in enumerate(self.all):
            found = [record for who, record in lines if who == number]
            if found != list(range(scribe.records)):
                wrong.append(f"{scribe.name} appended {scribe.records} records, there are {len(found)}: {found[-20:]}")
        hand.close()
        return wrong


class Seen(msgspec.Struct):
    """What scribes on another host have seen."""

    faults: list[str]
    done: int
    refused: int
    silences: list[tuple[float, float]]
    longest_s: float


def main(arguments: list[str]) -> None:
    """Write until a file is there."""
    seed, stop = int(arguments[0]), Path(arguments[1])
    with Scribes(config.home(), seed, excused=(errno.ENOSPC,)) as scribes:
        while not stop.exists():
            time.sleep(0.05)
    silences = sorted(silence for scribe in scribes.all for silence in scribe.silences)
    refused = sum(scribe.refused for scribe in scribes.all)
    seen = Seen(scribes.faults(), scribes.done, refused, silences, scribes.longest_s)
    print(msgspec.json.encode(seen).decode())
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
