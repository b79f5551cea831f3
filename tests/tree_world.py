"""A tree for tests: its pure core with a toy shell around it, which keeps the bytes, and looks after what must hold."""

from __future__ import annotations

import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec

from beo.tree import words as w
from beo.tree.changes import Allocated, Change, Changed, Reaped, Wrote, decode, encode
from beo.tree.core import Append, Core, Effect, Say, SayData, Speech
from beo.tree.state import State

ROOT_CALLER = w.Caller(0, 0)
NOW_NS = 1_700_000_000_000_000_000  # a time at which something happens


def do_bytes(files: dict[int, bytearray], change: Change) -> None:
    """Do what a change does to the bytes of files: as the store has to, in a few lines."""
    match change:
        case Wrote():
            end = change.offset + change.size
            found = files.setdefault(change.ino, bytearray())
            found.extend(bytes(max(0, end - len(found))))
            found[change.offset : end] = change.data
        case Changed() if change.size is not None:
            found = files.setdefault(change.ino, bytearray())
            del found[change.size :]
            found.extend(bytes(change.size - len(found)))
        case Allocated():
            found = files.setdefault(change.ino, bytearray())
            if change.punch:
                hole = range(min(change.offset, len(found)), min(change.offset + change.length, len(found)))
                found[hole.start : hole.stop] = bytes(len(hole))
            found.extend(bytes(max(0, change.size - len(found))))
        case Reaped():
            for ino in change.inos:
                files.pop(ino, None)


@dataclass
class Client:
    """A session, which has an answer to everything before it asks for the next thing."""

    tree: Tree
    session: str
    number: int = 0
    last: w.Ask | None = None
    remembers: bool = False

    def ask(self, question: w.Question, caller: w.Caller = ROOT_CALLER, settled: int | None = None) -> Any:
        """Ask, and return the answer; None where there is none yet."""
        self.number += 1
        self.last = w.Ask(
            self.session, self.number, self.number - 1 if settled is None else settled, caller, question, self.remembers
        )
        return self.tree.ask(self.last)

    def again(self) -> Any:
        """Ask the last question again, as after a connection has ended."""
        assert self.last
        return self.tree.ask(self.last)

    def attr(self, question: w.Question, caller: w.Caller = ROOT_CALLER) -> w.Attr:
        """Ask, and return what is known of the inode that it came to."""
        answer = self.ask(question, caller)
        assert isinstance(answer, w.AttrIs | w.Written), (question, answer)
        return answer.attr

    def make(self, name: bytes, parent: int = w.ROOT, mode: int = stat.S_IFREG | 0o644) -> int:
        """Make a file, and return its inode."""
        return self.attr(w.Make(parent, name, mode)).ino


@dataclass
class Tree:
    """A core, whose log is durable at once; `log` has its changes, `said` what was answered, each as it came."""

    log: list[Change] = field(default_factory=list)
    files: dict[int, bytearray] = field(default_factory=dict)
    said: list[Say] = field(default_factory=list)
    now_s: float = 0.0
    now_ns: int = NOW_NS
    state: State = field(default_factory=State.new)
    shadow: State = field(default_factory=State.new)  # made by the changes alone
    clients: list[Client] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core = Core(self.state, self.now_s)

    def client(self, remembers: bool = False) -> Client:
        """Begin a session."""
        client = Client(self, f"session {len(self.clients):08d}", remembers=remembers)
        self.clients.append(client)
        assert client.ask(w.Begin()) == w.Done()
        return client

    def ask(self, ask: w.Ask) -> Any:
        """Ask, and return the answer; None where there is none yet."""
        before = len(self.said)
        self.now_ns += 1
        self.perform(self.core.ask(ask.session.encode(), ask, self.now_s, self.now_ns))
        for say in self.said[before:]:
            if say.number == ask.number and say.peer == ask.session.encode():
                return say.answer
        return None

    def tick(self, seconds: float = 0.0) -> None:
        """Let time pass."""
        self.now_s += seconds
        self.now_ns += int(seconds * 1e9) + 1
        self.perform(self.core.tick(self.now_s, self.now_ns))

    def perform(self, effects: list[Effect]) -> None:
        """Keep the changes, and what is said for them."""
        for effect in effects:
            assert isinstance(effect, Append)
            change = decode(encode(effect.change))
            assert change == effect.change
            self.log.append(change)
            self.shadow.apply(change)
            do_bytes(self.files, change)
        self.said += [self.say(speech) for speech in self.core.durable(self.state.index, self.now_s)]

    def say(self, speech: Speech) -> Say:
        """Say what a shell has to say."""
        if isinstance(speech, SayData):
            data = bytes(self.files.get(speech.ino, b""))[: speech.length].ljust(speech.length, b"\0")
            return Say(speech.peer, speech.number, w.DataIs(data[speech.offset :][: speech.size]))
        assert isinstance(speech, Say)
        return speech

    def take_over(self) -> None:
        """Let another head serve it: one that has a copy of the log and no more."""
        self.state = State.decode(self.shadow.encode())
        self.core = Core(self.state, self.now_s)


def look_after(state: State) -> None:
    """Assert what holds in every tree, whatever was done to it."""
    names: Counter[int] = Counter()
    folders: Counter[int] = Counter()  # directories in a directory
    for ino, inode in state.inodes.items():
        assert 0 < ino < state.next_ino
        assert inode.is_dir == stat.S_ISDIR(inode.mode) == bool(inode.parent)
        assert bool(inode.target) == stat.S_ISLNK(inode.mode)
        if inode.children is None:
            continue
        assert inode.size == len(inode.children)
        places = [place for _, place in inode.children.values()]
        assert places == sorted(set(places)), "places of names grow, and each has its own"
        for name, (child, _) in inode.children.items():
            assert 0 < len(name) <= w.NAME_MAX_BYTES and b"/" not in name and name not in (b".", b"..")
            names[child] += 1
            if state.inodes[child].is_dir:
                folders[ino] += 1
                assert state.inodes[child].parent == ino
    for ino, inode in state.inodes.items():
        is_named = ino == w.ROOT or names[ino] > 0
        assert (ino in state.loose) != is_named, "loose is what has no name"
        if inode.is_dir:
            assert names[ino] <= 1 and inode.nlink == (2 + folders[ino] if is_named else 0)
            assert not inode.children or is_named, "a directory without a name is empty"
        else:
            assert inode.nlink == names[ino]
    used: dict[int, tuple[int, int]] = {}
    for inode in state.inodes.values():
        size, inodes = used.get(inode.uid, (0, 0))
        used[inode.uid] = size + (0 if inode.is_dir else inode.size), inodes + 1
    assert {uid: (found.size_bytes, found.inodes) for uid, found in state.used.items()} == used
    for ino, held in state.locks.items():
        assert held and ino in state.inodes
        assert all(lock.owner[0] in state.sessions for lock in held)
    for session in state.sessions.values():
        assert not any(session.is_settled(number) for number in session.answered)


def assert_same(tree: Tree) -> None:
    """Assert that the changes alone make the core's tree, byte for byte, and that a snapshot of it is that again."""
    data = tree.state.encode()
    assert data == tree.shadow.encode()
    assert State.decode(data).encode() == data
    assert msgspec.structs.asdict(State.decode(data)) == msgspec.structs.asdict(tree.state)
