"""The tree as its log has made it: inodes, names, locks, and what sessions have been answered. Pure.

`apply` is the only thing that changes it, and never decides: of one log every head makes the same tree, byte for byte.
The bytes of files are not here but in the store (store.py), which follows the same log.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence

import msgspec

from beo.errors import Internal
from beo.tree import locks
from beo.tree.changes import (
    Allocated,
    Began,
    Change,
    Changed,
    Ended,
    Linked,
    Locked,
    Made,
    Moved,
    Reaped,
    Removed,
    Settled,
    Wrote,
)
from beo.tree.locks import Held
from beo.tree.words import ROOT, Attr

FORMAT = 1
ROOT_MODE = stat.S_IFDIR | 0o1777  # as /tmp has it: everybody may begin, nobody may take away what is another's


class Inode(msgspec.Struct, array_like=True):
    """One file, directory or other. children: of a directory, name -> (inode, place); parent: of a directory alone.

    version: the last entry that changed its bytes.
    """

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    rdev: int = 0
    target: bytes = b""
    parent: int = 0
    children: dict[bytes, tuple[int, int]] | None = None
    version: int = 0

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return self.children is not None

    @property
    def is_file(self) -> bool:
        """Whether it has bytes of its own in the store."""
        return stat.S_ISREG(self.mode)


class Session(msgspec.Struct, array_like=True):
    """What a client's questions came to: number -> inode, of those behind `settled`, which it may send again.

    beyond: up to here all are settled, too, but these that are `waiting`, as it was written down last.
    """

    settled: int = 0
    answered: dict[int, int] = {}
    beyond: int = 0
    waiting: tuple[int, ...] = ()

    def is_settled(self, number: int) -> bool:
        """Whether the answer to a question has come."""
        return number <= self.settled or (number <= self.beyond and number not in self.waiting)


class Used(msgspec.Struct, array_like=True):
    """What a user's files take: their sizes, and how many inodes they are."""

    size_bytes: int = 0
    inodes: int = 0


class State(msgspec.Struct):
    """The whole tree after entry `index` of its log."""

    format: int = FORMAT
    index: int = 0
    next_ino: int = ROOT + 1
    inodes: dict[int, Inode] = {}
    loose: dict[int, bool] = {}  # inodes without a name, in the order in which they lost it
    sessions: dict[str, Session] = {}
    locks: dict[int, list[Held]] = {}
    used: dict[int, Used] = {}

    @classmethod
    def new(cls) -> State:
        """Return the tree before its first entry: an empty directory."""
        return cls(inodes={ROOT: Inode(ROOT_MODE, 0, 0, 2, 0, 0, 0, 0, parent=ROOT, children={})}, used={0: Used(0, 1)})

    def encode(self) -> bytes:
        """Return it as a snapshot."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> State:
        """Return a tree from a snapshot; raises Internal for what is none."""
        try:
            state = msgspec.msgpack.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise Internal("a snapshot of the tree can't be read", str(error), "update this beo") from None
        if state.format != FORMAT:
            raise Internal(f"a snapshot of the tree in format {state.format}", f"this beo reads {FORMAT}", "update it")
        return state

    def attr(self, ino: int) -> Attr:
        """Return what is known of an inode that is there."""
        found = self.inodes[ino]
        return Attr(
            ino,
            found.mode,
            found.nlink,
            found.uid,
            found.gid,
            found.size,
            found.mtime_ns,
            found.ctime_ns,
            found.atime_ns,
            -(-found.size // 512),
            found.rdev,
        )

    def walk(self, names: Sequence[bytes]) -> int:
        """Return the inode at the end of a path from the root, whoever may see it; 0: there is none."""
        ino = ROOT
        for name in names:
            ino = (self.inodes[ino].children or {}).get(name, (0, 0))[0]
            if not ino:
                return 0
        return ino

    def apply(self, change: Change) -> int:
        """Do what a change says; return the inode that it is about (0: none). Raises Internal where it can't be."""
        self.index += 1
        try:
            about = self._do(change)
        except KeyError as error:
            raise Internal(f"entry {self.index} of the tree's log is about what isn't there", str(error), "") from None
        if change.session and change.number and not isinstance(change, Ended):
            self._remember(change, about)
        return about

    def _remember(self, change: Change, about: int) -> None:
        session = self.sessions.get(change.session)
        if session is None:
            return  # it was ended while this was under way
        if change.settled > session.settled:
            session.settled = change.settled
            session.answered = {number: ino for number, ino in session.answered.items() if number > change.settled}
        session.answered[change.number] = about

    def _do(self, change: Change) -> int:
        match change:
            case Wrote():
                return self._wrote(change)
            case Made():
                return self._made(change)
            case Changed():
                return self._changed(change)
            case Removed():
                return self._drop_name(change.parent, change.name, change.now_ns)
            case Moved():
                return self._moved(change)
            case Linked():
                self._name(change.parent, change.name, change.ino, change.now_ns)
                found = self.inodes[change.ino]
                found.nlink += 1
                found.ctime_ns = change.now_ns
                self.loose.pop(change.ino, None)
                return change.ino
            case Allocated():
                found = self.inodes[change.ino]
                found.version = self.index
                self._resize(found, change.size)
                found.mtime_ns = found.ctime_ns = change.now_ns
                return change.ino
            case Reaped():
                for ino in change.inos:
                    self._reap(ino)
                return 0
            case Locked():
                self._locked(change)
                return change.ino
            case Began():
                self.sessions[change.session] = Session()
                return 0
            case Ended():
                self._ended(change.session)
                return 0
            case Settled():
                self._settled(change)
                return 0

    # ---- names

    def _name(self, parent: int, name: bytes, ino: int, now_ns: int, second: bool = False) -> None:
        """Give an inode a name. Places only grow, and no two are alike, so a reader of the directory misses nothing.

        second: another name was given by the same entry.
        """
        folder = self.inodes[parent]
        assert folder.children is not None
        folder.children[name] = (ino, 2 * self.index + second)
        folder.mtime_ns = folder.ctime_ns = now_ns
        folder.size = len(folder.children)

    def _unname(self, parent: int, name: bytes, now_ns: int) -> int:
        folder = self.inodes[parent]
        assert folder.children is not None
        ino, _ = folder.children.pop(name)
        folder.mtime_ns = folder.ctime_ns = now_ns
        folder.size = len(folder.children)
        return ino

    def _made(self, change: Made) -> int:
        ino = self.next_ino
        self.next_ino += 1
        now = change.now_ns
        is_dir = stat.S_ISDIR(change.mode)
        self.inodes[ino] = Inode(
            change.mode,
            change.uid,
            change.gid,
            2 if is_dir else 1,
            len(change.target),
            now,
            now,
            now,
            change.rdev,
            change.target,
            change.parent if is_dir else 0,
            {} if is_dir else None,
        )
        self._name(change.parent, change.name, ino, now)
        self.inodes[change.parent].nlink += is_dir
        self._use(change.uid, len(change.target), 1)
        return ino

    def _drop_name(self, parent: int, name: bytes, now_ns: int) -> int:
        """Take a name away from an inode, of a directory all at once."""
        ino = self._unname(parent, name, now_ns)
        found = self.inodes[ino]
        found.ctime_ns = now_ns
        found.nlink -= 2 if found.is_dir else 1
        if found.is_dir:
            self.inodes[parent].nlink -= 1
        if not found.nlink:
            self.loose[ino] = True
        return ino

    def _moved(self, change: Moved) -> int:
        now = change.now_ns
        if change.exchange:
            return self._exchanged(change)
        target = self.inodes[change.new_parent].children
        assert target is not None
        if change.new_name in target:
            self._drop_name(change.new_parent, change.new_name, now)
        ino = self._unname(change.parent, change.name, now)
        self._name(change.new_parent, change.new_name, ino, now)
        self._settle(ino, change.parent, change.new_parent, now)
        return ino

    def _exchanged(self, change: Moved) -> int:
        now = change.now_ns
        one = self._unname(change.parent, change.name, now)
        other = self._unname(change.new_parent, change.new_name, now)
        self._name(change.new_parent, change.new_name, one, now)
        self._name(change.parent, change.name, other, now, second=True)
        self._settle(one, change.parent, change.new_parent, now)
        self._settle(other, change.new_parent, change.parent, now)
        return one

    def _settle(self, ino: int, old: int, new: int, now_ns: int) -> None:
        """An inode was moved from one directory to another, or within one."""
        found = self.inodes[ino]
        found.ctime_ns = now_ns
        if found.is_dir and old != new:
            found.parent = new
            self.inodes[old].nlink -= 1
            self.inodes[new].nlink += 1

    def _reap(self, ino: int) -> None:
        found = self.inodes.pop(ino)
        del self.loose[ino]
        self.locks.pop(ino, None)
        self._use(found.uid, -(0 if found.is_dir else found.size), -1)

    # ---- what inodes hold

    def _use(self, uid: int, size_bytes: int, inodes: int) -> None:
        used = self.used.setdefault(uid, Used())
        used.size_bytes += size_bytes
        used.inodes += inodes
        if not used.inodes and not used.size_bytes:
            del self.used[uid]

    def _resize(self, found: Inode, size: int) -> None:
        if size != found.size:
            self._use(found.uid, size - found.size, 0)
            found.size = size

    def _wrote(self, change: Wrote) -> int:
        found = self.inodes[change.ino]
        found.version = self.index
        self._resize(found, max(found.size, change.offset + change.size))
        found.mtime_ns = found.ctime_ns = change.now_ns
        if change.mode is not None:
            found.mode = change.mode
        return change.ino

    def _changed(self, change: Changed) -> int:
        found = self.inodes[change.ino]
        if change.size is not None:
            found.version = self.index
            self._resize(found, change.size)
            found.mtime_ns = change.now_ns
        if change.uid is not None and change.uid != found.uid:
            size = 0 if found.is_dir else found.size
            self._use(found.uid, -size, -1)
            self._use(change.uid, size, 1)
            found.uid = change.uid
        if change.gid is not None:
            found.gid = change.gid
        if change.mode is not None:
            found.mode = change.mode
        if change.atime_ns is not None:
            found.atime_ns = change.atime_ns
        if change.mtime_ns is not None:
            found.mtime_ns = change.mtime_ns
        found.ctime_ns = change.now_ns
        return change.ino

    # ---- sessions

    def _locked(self, change: Locked) -> None:
        owner = (change.session, change.owner)
        new = Held(owner, change.kind, change.start, change.end, change.whole, change.pid)
        held = locks.put(self.locks.get(change.ino, ()), new)
        if held:
            self.locks[change.ino] = held
        else:
            self.locks.pop(change.ino, None)

    def _settled(self, change: Settled) -> None:
        session = self.sessions[change.session]
        session.beyond, session.waiting = change.beyond, change.waiting
        session.answered = {number: ino for number, ino in session.answered.items() if not session.is_settled(number)}

    def _ended(self, session: str) -> None:
        self.sessions.pop(session, None)
        for ino in [ino for ino, held in self.locks.items() if any(lock.owner[0] == session for lock in held)]:
            held = [lock for lock in self.locks[ino] if lock.owner[0] != session]
            if held:
                self.locks[ino] = held
            else:
                del self.locks[ino]
