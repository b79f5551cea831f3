"""The server of a tree, in memory: small, without permissions (the kernel has checked them), for tests of a mount.

`FakeTree` answers every question of `beo.tree.words`; a `FakeLine` is one node's way to it, with what that node has
open and locked. Several lines may be used by a thread each.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from beo.tree import words
from beo.tree.mount import serve
from beo.tree.mounting import Mount
from beo.tree.words import WHOLE, Answer, Attr, AttrIs, Caller, Done, Failed, Question

SLOW_S = 0.1  # that a slow tree takes for each answer


class No(Exception):
    """Why a question fails, as an errno."""


@dataclass
class Node:
    """An inode. data: of a file; entries: of a directory, name -> (inode, place)."""

    ino: int
    mode: int
    uid: int
    gid: int
    rdev: int = 0
    nlink: int = 1
    parent: int = 0
    target: bytes = b""
    data: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0

    @property
    def size(self) -> int:
        """In bytes, as stat(2) has it."""
        return len(self.target) if stat.S_ISLNK(self.mode) else len(self.data)

    @property
    def attr(self) -> Attr:
        """What is known of it."""
        blocks = (self.size + 511) // 512
        return Attr(
            self.ino,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.size,
            self.mtime_ns,
            self.ctime_ns,
            self.atime_ns,
            blocks,
            self.rdev,
        )


@dataclass
class Held:
    """A lock that somebody has, or waits for."""

    session: int
    question: words.Lock
    number: int = 0

    def blocks(self, other: Held) -> bool:
        """Whether the other can't be had as long as this one is."""
        mine, his = self.question, other.question
        same = (self.session, mine.owner) == (other.session, his.owner)
        apart = mine.end < his.start or his.end < mine.start
        return mine.whole == his.whole and not same and not apart and "w" in (mine.kind, his.kind)


class FakeTree:
    """All inodes, and who has what open and locked."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.asked: dict[str, int] = {}  # kind of question -> how many
        self.delay_s = 0.0  # until an answer is told
        self.nodes = {words.ROOT: Node(words.ROOT, stat.S_IFDIR | 0o755, 0, 0, nlink=2, parent=words.ROOT)}
        self.lines: list[FakeLine] = []
        self._last_ino = words.ROOT
        self._place = 0
        self._locks: dict[int, list[Held]] = {}
        self._waits: dict[int, list[Held]] = {}
        self._now_ns = 0

    def ask(self, session: int, number: int, caller: Caller, question: Question) -> None:
        """Answer one session's question, at once or later, to its line."""
        kind = type(question).__name__
        self.asked[kind] = self.asked.get(kind, 0) + 1
        self._now_ns = time.time_ns()
        try:
            answer = self._answer(session, number, caller, question)
        except No as no:
            answer = Failed(no.args[0])
        if answer is not None:
            self.lines[session].take(number, answer)

    def _answer(self, session: int, number: int, caller: Caller, q: Question) -> Answer | None:
        match q:
            case words.Look():
                return AttrIs(self._entry(q.parent, q.name).attr)
            case words.Get():
                return AttrIs(self._node(q.ino).attr)
            case words.List():
                return self._list(q)
            case words.Target():
                return words.TargetIs(self._node(q.ino).target)
            case words.Read():
                return words.DataIs(bytes(memoryview(self._node(q.ino).data)[q.offset : q.offset + q.size]))
            case words.Space():
                return words.SpaceIs(1 << 40, 1 << 39, len(self.nodes), 1_000_000)
            case words.Make():
                return AttrIs(self._make(caller, q).attr)
            case words.Link():
                return AttrIs(self._link(q).attr)
            case words.Remove():
                return self._remove(q)
            case words.Rename():
                return self._rename(q)
            case words.Set():
                return AttrIs(self._set(q).attr)
            case words.Write():
                return words.Written(self._write(q).attr)
            case words.Allocate():
                return AttrIs(self._allocate(q).attr)
            case words.Open():
                return AttrIs(self._open(session, q).attr)
            case words.Close():
                return self._close(session, q)
            case _:
                return self._about_locks(session, number, q)

    # ---- names

    def _node(self, ino: int) -> Node:
        if ino not in self.nodes:
            raise No(errno.ESTALE)
        return self.nodes[ino]

    def _dir(self, ino: int) -> Node:
        node = self._node(ino)
        if not stat.S_ISDIR(node.mode):
            raise No(errno.ENOTDIR)
        return node

    def _entry(self, parent: int, name: bytes) -> Node:
        entries = self._dir(parent).entries
        if name not in entries:
            raise No(errno.ENOENT)
        return self._node(entries[name][0])

    def _list(self, q: words.List) -> words.Listing:
        node = self._dir(q.ino)
        # Names get places in rising order, and a dict keeps the order in which they came.
        behind = [(name, ino, place) for name, (ino, place) in node.entries.items() if place > q.after]
        listed = tuple(words.Named(name, place, self._node(ino).attr) for name, ino, place in behind[: q.limit])
        return words.Listing(listed, node.parent, end=len(behind) <= q.limit)

    def _put(self, parent: Node, name: bytes, node: Node) -> None:
        self._place += 1
        parent.entries.pop(name, None)
        parent.entries[name] = (node.ino, self._place)
        parent.mtime_ns = parent.ctime_ns = node.ctime_ns = self._now_ns
        if stat.S_ISDIR(node.mode):
            node.parent = parent.ino
            parent.nlink += 1

    def _take(self, parent: Node, name: bytes) -> Node:
        node = self._entry(parent.ino, name)
        del parent.entries[name]
        parent.mtime_ns = parent.ctime_ns = node.ctime_ns = self._now_ns
        if stat.S_ISDIR(node.mode):
            parent.nlink -= 1
        return node

    def _drop(self, node: Node) -> None:
        node.nlink -= 2 if stat.S_ISDIR(node.mode) else 1
        if not node.nlink and not any(node.ino in line.opened for line in self.lines):
            del self.nodes[node.ino]

    def _make(self, caller: Caller, q: words.Make) -> Node:
        parent = self._dir(q.parent)
        if q.name in parent.entries:
            raise No(errno.EEXIST)
        self._last_ino += 1
        node = Node(self._last_ino, q.mode, caller.uid, caller.gid, q.rdev, target=q.target)
        node.nlink = 2 if stat.S_ISDIR(q.mode) else 1
        node.atime_ns = node.mtime_ns = self._now_ns
        if parent.mode & stat.S_ISGID:
            node.gid = parent.gid
            node.mode |= stat.S_ISGID if stat.S_ISDIR(q.mode) else 0
        self.nodes[node.ino] = node
        self._put(parent, q.name, node)
        return node

    def _link(self, q: words.Link) -> Node:
        node, parent = self._node(q.ino), self._dir(q.parent)
        if stat.S_ISDIR(node.mode):
            raise No(errno.EPERM)
        if q.name in parent.entries:
            raise No(errno.EEXIST)
        node.nlink += 1
        self._put(parent, q.name, node)
        return node

    def _remove(self, q: words.Remove) -> Done:
        parent, node = self._dir(q.parent), self._entry(q.parent, q.name)
        if q.dir != stat.S_ISDIR(node.mode):
            raise No(errno.ENOTDIR if q.dir else errno.EISDIR)
        if node.entries:
            raise No(errno.ENOTEMPTY)
        self._drop(self._take(parent, q.name))
        return Done()

    def _rename(self, q: words.Rename) -> Done:
        old, new = self._dir(q.parent), self._dir(q.new_parent)
        node = self._entry(q.parent, q.name)
        there = self._entry(q.new_parent, q.new_name) if q.new_name in new.entries else None
        if q.exchange and not there:
            raise No(errno.ENOENT)
        if there and q.keep:
            raise No(errno.EEXIST)
        if there is node:
            return Done()
        if there and not q.exchange:
            self._remove(words.Remove(q.new_parent, q.new_name, dir=stat.S_ISDIR(node.mode)))
        self._take(old, q.name)
        if there and q.exchange:
            self._take(new, q.new_name)
            self._put(old, q.name, there)
        self._put(new, q.new_name, node)
        return Done()

    # ---- files

    def _set(self, q: words.Set) -> Node:
        node = self._node(q.ino)
        if q.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | q.mode
        node.uid = node.uid if q.uid is None else q.uid
        node.gid = node.gid if q.gid is None else q.gid
        if q.size is not None:
            self._resize(node, q.size)
        if q.atime_ns is not None:
            node.atime_ns = self._now_ns if q.atime_ns == -1 else q.atime_ns
        if q.mtime_ns is not None:
            node.mtime_ns = self._now_ns if q.mtime_ns == -1 else q.mtime_ns
        node.ctime_ns = self._now_ns
        return node

    def _resize(self, node: Node, size: int) -> None:
        if size > 1 << 30:
            raise No(errno.EFBIG)
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        node.mtime_ns = node.ctime_ns = self._now_ns

    def _write(self, q: words.Write) -> Node:
        node = self._node(q.ino)
        offset = len(node.data) if q.append else q.offset
        if offset > len(node.data):
            self._resize(node, offset)
        node.data[offset : offset + len(q.data)] = q.data
        node.mtime_ns = node.ctime_ns = self._now_ns
        return node

    def _allocate(self, q: words.Allocate) -> Node:
        node = self._node(q.ino)
        end = q.offset + q.size
        if q.punch:
            inside = range(q.offset, min(end, len(node.data)))
            node.data[inside.start : inside.stop] = bytes(len(inside))
            node.mtime_ns = node.ctime_ns = self._now_ns
        elif end > len(node.data) and not q.keep_size:
            self._resize(node, end)
        return node

    def _open(self, session: int, q: words.Open) -> Node:
        node = self._node(q.ino)
        self.lines[session].opened.add(q.ino)
        if q.truncate:
            self._resize(node, 0)
        return node

    def _close(self, session: int, q: words.Close) -> Done:
        opened = self.lines[session].opened
        if q.ino not in opened:
            raise No(errno.EBADF)
        opened.remove(q.ino)
        node = self._node(q.ino)
        if not node.nlink and not any(q.ino in line.opened for line in self.lines):
            del self.nodes[q.ino]
        return Done()

    # ---- locks

    def _about_locks(self, session: int, number: int, q: Question) -> Answer | None:
        match q:
            case words.Lock():
                return self._lock(Held(session, q, number))
            case words.Blocker():
                wanted = Held(session, words.Lock(q.ino, q.owner, q.kind, q.start, q.end))
                held = [each.question for each in self._locks.get(q.ino, []) if each.blocks(wanted)]
                return (
                    words.BlockerIs(held[0].kind, held[0].start, held[0].end, held[0].pid)
                    if held
                    else words.BlockerIs("u")
                )
            case words.Unlock():
                self._cancel(lambda each: (each.session, each.question.owner) == (session, q.owner), q.ino)
                self._lock(Held(session, words.Lock(q.ino, q.owner, "u", 0, WHOLE, q.whole)))
                return Done()
            case words.Present() | words.Begin() | words.Leave():
                return Done()
            case words.CancelLock():
                for ino in list(self._waits):
                    self._cancel(lambda each: (each.session, each.number) == (session, q.number), ino)
                return Done()
        raise No(errno.ENOSYS)

    def _lock(self, wanted: Held) -> Answer | None:
        q = wanted.question
        held = self._locks.setdefault(q.ino, [])
        if q.kind != "u" and any(each.blocks(wanted) for each in held):
            if not q.wait:
                raise No(errno.EAGAIN)
            self._waits.setdefault(q.ino, []).append(wanted)
            return None
        left: list[Held] = []
        for each in held:
            left += self._without(each, wanted)
        self._locks[q.ino] = [*left, wanted] if q.kind != "u" else left
        waits, self._waits[q.ino] = self._waits.get(q.ino, []), []
        for each in waits:
            answer = self._lock(each)
            if answer:
                self.lines[each.session].take(each.number, answer)
        return Done()

    def _without(self, held: Held, wanted: Held) -> list[Held]:
        """What is left of a lock where its owner sets another."""
        mine, his = held.question, wanted.question
        same = (held.session, mine.owner, mine.whole) == (wanted.session, his.owner, his.whole)
        if not same or mine.end < his.start or his.end < mine.start:
            return [held]
        parts = [(mine.start, his.start - 1), (his.end + 1, mine.end)]
        return [
            Held(held.session, words.Lock(mine.ino, mine.owner, mine.kind, start, end, mine.whole, pid=mine.pid))
            for start, end in parts
            if start <= end
        ]

    def _cancel(self, chosen: object, ino: int) -> None:
        assert callable(chosen)
        waits = self._waits.get(ino, [])
        self._waits[ino] = [each for each in waits if not chosen(each)]
        for each in waits:
            if chosen(each):
                self.lines[each.session].take(each.number, Failed(errno.EINTR))


class FakeLine:
    """One node's way to a tree."""

    def __init__(self, tree: FakeTree) -> None:
        self._tree = tree
        self._session = len(tree.lines)
        tree.lines.append(self)
        self.opened: set[int] = set()
        self._answers: list[tuple[float, int, Answer]] = []
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def next_at(self) -> float:
        """When the next answer is due."""
        return min((at for at, _, _ in self._answers), default=float("inf"))

    @property
    def silent_s(self) -> float:
        """It is heard at any time."""
        return 0.0

    def filenos(self) -> list[int]:
        """What rings when another thread's question has let an answer come."""
        return [self._bell]

    def send(self, number: int, caller: Caller, question: Question) -> None:
        """Ask."""
        with self._tree.guard:
            self._tree.ask(self._session, number, caller, question)

    def take(self, number: int, answer: Answer) -> None:
        """Have an answer ready; for the tree."""
        self._answers.append((time.monotonic() + self._tree.delay_s, number, answer))
        os.eventfd_write(self._bell, 1)

    def receive(self) -> list[tuple[int, Answer]]:
        """Return what is answered."""
        try:
            os.eventfd_read(self._bell)
        except BlockingIOError:
            pass
        with self._tree.guard:
            now = time.monotonic()
            due = [(number, answer) for at, number, answer in self._answers if at <= now]
            self._answers = [each for each in self._answers if each[0] > now]
        return due


def main(arguments: list[str]) -> None:
    """Serve one tree at several folders, one node each, until SIGTERM. First argument: "plain" or "slow"."""
    kind, *folders = arguments
    tree = FakeTree()
    tree.delay_s = SLOW_S if kind == "slow" else 0.0
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    nodes: list[threading.Thread] = []
    for folder in folders:
        line = FakeLine(tree)
        node = threading.Thread(target=serve, args=(Mount(), line, Path(folder), stopped.is_set))
        node.start()
        nodes.append(node)
    for node in nodes:
        while node.is_alive():
            node.join(0.1)  # in between, the signal is seen


if __name__ == "__main__":
    main(sys.argv[1:])
