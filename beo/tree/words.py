"""The words of the tree: what is asked of the head that serves it, what it answers, and what its log keeps. Pure.

Questions are in terms of *inodes*, as the kernel's are: a path is walked by whoever has it. Numbers of inodes are never
used twice. Names, and targets of symbolic links, are bytes: any but ``/`` and NUL. Times are nanoseconds since 1970.
An answer that is no success is `Failed`, with a number of errno.
"""

from __future__ import annotations

import stat
from typing import Final

import msgspec

from beo.bulk.words import FOLDER, SourcesAre, Who

ROOT: Final = 1  # the inode of the tree's root
CHUNKS: Final = FOLDER.encode()  # the name of the folder in it of which anybody may have a part
NAME_MAX_BYTES: Final = 255
TARGET_MAX_BYTES: Final = 4_095
DATA_MAX_BYTES: Final = 1 << 20  # in one Read or Write: what a Linux kernel asks of a FUSE file system at most
SIZE_MAX_BYTES: Final = 1 << 43  # of a file: 8 TiB, what ext4 takes is 16
LINKS_MAX: Final = 65_000  # of an inode, as in ext4
ENTRIES_MAX: Final = 1_000  # in one answer to List
GROUPS_MAX: Final = 65_536  # of a caller, as Linux has it
PERMISSIONS: Final = 0o7777
WAITING_TOLD_MAX: Final = 100  # in an Ask
WHOLE: Final = (1 << 63) - 1  # end of a lock that goes to the end of the file, however it grows


class Attr(msgspec.Struct, frozen=True, array_like=True):
    """What is known of an inode. mode: with its type's bits. blocks: of 512 bytes, that are really taken."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    blocks: int = 0
    rdev: int = 0

    @property
    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class Caller(msgspec.Struct, frozen=True, array_like=True):
    """For whom it is asked. checked: his kernel has checked his permissions, which a node's key vouches for."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    checked: bool = False


class _Word(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# ---- questions that change nothing


class Look(_Word, frozen=True):
    """What is called `name` in a directory? -> AttrIs."""

    parent: int
    name: bytes


class Get(_Word, frozen=True):
    """What is known of an inode? -> AttrIs."""

    ino: int


class List(_Word, frozen=True):
    """Up to `limit` entries of a directory behind place `after` (0: from the beginning), ``.`` and ``..`` not among
    them -> Listing."""

    ino: int
    after: int = 0
    limit: int = ENTRIES_MAX


class Target(_Word, frozen=True):
    """Where does a symbolic link lead? -> TargetIs."""

    ino: int


class Read(_Word, frozen=True):
    """Bytes of a file: fewer than `size` only at its end -> DataIs."""

    ino: int
    offset: int
    size: int


class Space(_Word, frozen=True):
    """How much room is there? -> SpaceIs."""


# ---- questions that change the tree


class Make(_Word, frozen=True):
    """Make a file, directory, link (to `target`), fifo, socket or device, as the type bits of mode say -> AttrIs."""

    parent: int
    name: bytes
    mode: int
    target: bytes = b""
    rdev: int = 0


class Link(_Word, frozen=True):
    """Give an inode one more name -> AttrIs."""

    ino: int
    parent: int
    name: bytes


class Remove(_Word, frozen=True):
    """Take a name away: of an empty directory if `dir`, else of anything else -> Done."""

    parent: int
    name: bytes
    dir: bool = False


class Rename(_Word, frozen=True):
    """Move a name. keep: fail where the new one exists. exchange: both must exist, and change places -> Done."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    keep: bool = False
    exchange: bool = False


class Set(_Word, frozen=True):
    """Set what is not None; a time of -1 means now -> AttrIs."""

    ino: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Write(_Word, frozen=True):
    """Write bytes into a file, behind its end if `append` (then offset is not looked at) -> Written."""

    ino: int
    offset: int
    data: bytes
    append: bool = False


class Allocate(_Word, frozen=True):
    """Make room for `size` bytes from `offset` on: they read as zeros. keep_size: the file's size stays. punch: a hole
    is made there -> AttrIs."""

    ino: int
    offset: int
    size: int
    keep_size: bool = False
    punch: bool = False


# ---- who has what open, and locks. Of a session: they end with it.


class Begin(_Word, frozen=True):
    """The first question of a session -> Done."""


class Present(_Word, frozen=True):
    """The session goes on, and has these inodes open -> Done.

    Said every few seconds, and to another head first of all.
    """

    inos: tuple[int, ...] = ()


class Leave(_Word, frozen=True):
    """The last question of a session: its locks are free, what it had open is closed -> Done."""


class Open(_Word, frozen=True):
    """From here on this session has a file open, which lives on when its last name is taken -> AttrIs."""

    ino: int
    truncate: bool = False


class Close(_Word, frozen=True):
    """This session has a file open no longer, however often it has opened it -> Done."""

    ino: int


class Lock(_Word, frozen=True):
    """Lock or unlock bytes start..end (inclusive) for `owner` -> Done, or Failed(EAGAIN).

    kind: "r", "w" or "u" (unlock). whole: a lock of flock(2), which has nothing to do with those of fcntl(2). wait: the
    answer comes when the lock is there. pid: of who asks, for who is in his way.
    """

    ino: int
    owner: int
    kind: str
    start: int = 0
    end: int = WHOLE
    whole: bool = False
    wait: bool = False
    pid: int = 0


class Blocker(_Word, frozen=True):
    """Which lock is in the way of this one? -> BlockerIs."""

    ino: int
    owner: int
    kind: str
    start: int = 0
    end: int = WHOLE


class Unlock(_Word, frozen=True):
    """Give up all locks of an owner on a file, and cancel what it waits for -> Done."""

    ino: int
    owner: int
    whole: bool = False


class Recalled(_Word, frozen=True):
    """This session has forgotten these inodes as it was told to by a `Recall` with this count -> Done."""

    inos: tuple[int, ...]
    recalls: int


class CancelLock(_Word, frozen=True):
    """Don't wait any longer for the lock that was asked for as question `number`: it fails with EINTR -> Done."""

    number: int


# ---- answers


class Failed(_Word, frozen=True):
    """No. errno: why."""

    errno: int


class Elsewhere(_Word, frozen=True):
    """This head doesn't serve the tree: ask the head that acts where it is served."""


class Over(_Word, frozen=True):
    """This session is over: nothing was heard of it for too long. What it had locked may be another's by now."""


class Done(_Word, frozen=True):
    """Yes."""


class AttrIs(_Word, frozen=True):
    """An inode as it is now."""

    attr: Attr


class Named(msgspec.Struct, frozen=True, array_like=True):
    """An entry of a directory. place: what to go on behind."""

    name: bytes
    place: int
    attr: Attr


class Listing(_Word, frozen=True):
    """Entries of a directory, in the order of their places. end: there are no more."""

    entries: tuple[Named, ...]
    parent: int
    end: bool


class TargetIs(_Word, frozen=True):
    """Where a symbolic link leads."""

    target: bytes


class DataIs(_Word, frozen=True):
    """Bytes of a file."""

    data: bytes


class Written(_Word, frozen=True):
    """The bytes are durable on every head that is in step; the file is as `attr` says."""

    attr: Attr


class SpaceIs(_Word, frozen=True):
    """Room in bytes, that of the head which has less; and inodes."""

    total_bytes: int
    free_bytes: int
    files: int
    free_files: int


class BlockerIs(_Word, frozen=True):
    """The lock in the way; kind "u": none is."""

    kind: str
    start: int = 0
    end: int = 0
    pid: int = 0


class Recall(_Word, frozen=True):
    """To a session that remembers something of these inodes, unasked (as the answer to question 0): forget that, and
    say so by `Recalled`. recalls: see `Leased`."""

    inos: tuple[int, ...]
    recalls: int


Question = (
    Look
    | Get
    | List
    | Target
    | Read
    | Space
    | Make
    | Link
    | Remove
    | Rename
    | Set
    | Write
    | Allocate
    | Begin
    | Present
    | Leave
    | Open
    | Close
    | Lock
    | Blocker
    | Unlock
    | Recalled
    | CancelLock
    | Who
)
Answer = (
    Failed
    | Elsewhere
    | Over
    | Done
    | AttrIs
    | Listing
    | TargetIs
    | DataIs
    | Written
    | SpaceIs
    | BlockerIs
    | SourcesAre
    | Recall
)
CHANGING: Final = (Make, Link, Remove, Rename, Set, Write, Allocate)  # these have an entry in the log each


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="Ask"):
    """A question on the wire, which may be sent again. session: who asks. number: the question's own, ever growing.

    settled: the answers to all questions up to this number have come, and none of them is sent again. remembers: the
    session would like to remember what it is answered; then the answer is `Leased`. beyond: as `settled`, up to this
    number, but for these questions that are `waiting` for locks.
    """

    session: str
    number: int
    settled: int
    caller: Caller
    question: Question
    remembers: bool = False
    beyond: int = 0
    waiting: tuple[int, ...] = ()


class Leased(_Word, frozen=True):
    """An answer with a *lease*: until `lease_s` after it was asked, nothing of these inodes changes by anybody else's
    doing before this session was told to forget them. That is so for everything leased to it before, too, as long as
    it has been told of all `recalls`, a count that never begins twice at the same number; otherwise all is forgotten.

    Of a directory, its names are leased too; where a name isn't, that is. alone: of the file that was written, nobody
    else even sees anything before that.
    """

    answer: Answer
    inos: tuple[int, ...]
    recalls: int
    lease_s: float
    alone: bool = False


Told = Answer | Leased

encode = msgspec.msgpack.Encoder().encode
ask_decoder: msgspec.msgpack.Decoder[Ask] = msgspec.msgpack.Decoder(Ask)
answer_decoder: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)
