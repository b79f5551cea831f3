"""What the tree's log holds: every change of it, decided and ready to be done again by whoever has the log. Pure.

A change says what became of a question: times, owners and modes are in it as they were decided. `session`, `number` and
`settled` are those of the question (words.Ask), "" and 0 where there was none.
"""

from __future__ import annotations

import msgspec
from xxhash import xxh3_64_digest

from beo.errors import Internal


class _Change(msgspec.Struct, frozen=True, array_like=True, tag=True):
    session: str
    number: int
    settled: int
    now_ns: int


class Made(_Change, frozen=True):
    """A new inode, with the next number, under a name."""

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    target: bytes = b""
    rdev: int = 0


class Linked(_Change, frozen=True):
    """One more name for an inode."""

    ino: int
    parent: int
    name: bytes


class Removed(_Change, frozen=True):
    """One name less. Without any, an inode is *loose*, until it is reaped."""

    parent: int
    name: bytes


class Moved(_Change, frozen=True):
    """A name was moved; what it replaced has lost one. exchange: both have changed places."""

    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    exchange: bool = False


class Changed(_Change, frozen=True):
    """What is not None was set."""

    ino: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Wrote(_Change, frozen=True):
    """So many bytes of a file. mode: what it has become by that, if it had to change.

    data: the bytes, if they are few; of others `digest` tells whether they are right, and the segments have them.
    """

    ino: int
    offset: int
    size: int
    data: bytes = b""
    digest: bytes = b""
    mode: int | None = None


class Allocated(_Change, frozen=True):
    """Zeros from offset on: room for them, or a hole if `punch`. size: of the file afterwards."""

    ino: int
    offset: int
    length: int
    size: int
    punch: bool = False


class Reaped(_Change, frozen=True):
    """Loose inodes that nobody has open any more: they and their bytes are gone."""

    inos: tuple[int, ...]


class Locked(_Change, frozen=True):
    """A lock was granted, changed or, with kind "u", given up."""

    ino: int
    owner: int
    kind: str
    start: int
    end: int
    whole: bool
    pid: int


class Began(_Change, frozen=True):
    """A session begins (`session`): what becomes of its questions is remembered, so that it may send them again."""


class Ended(_Change, frozen=True):
    """A session is over (`session`): its locks are free, and nothing is remembered of it."""


class Settled(_Change, frozen=True):
    """All answers up to `beyond` have come, but for the questions that are `waiting`: they need not be remembered."""

    beyond: int
    waiting: tuple[int, ...]


Change = Made | Linked | Removed | Moved | Changed | Wrote | Allocated | Reaped | Locked | Began | Ended | Settled

INLINE_MAX_BYTES = 8_192  # of data in an entry itself: what costs the journal less than a second file would


def digest_of(data: bytes) -> bytes:
    """Return the digest of data that is kept beside an entry, against accidents.

    A cryptographic one takes as long as all else that is done with the data; who could forge it has the disk anyway.
    """
    return xxh3_64_digest(data)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Change)


def encode(change: Change) -> bytes:
    """Return a change as the log keeps it."""
    return _encoder.encode(change)


def decode(data: bytes) -> Change:
    """Return a change from the log; raises Internal for what is none."""
    try:
        found: Change = _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Internal("an entry of the tree's log can't be read", str(error), "update this beo") from None
    return found


def bytes_of(change: Change) -> tuple[int, ...]:
    """Return the inodes whose bytes a change is about."""
    match change:
        case Wrote() | Allocated():
            return (change.ino,)
        case Changed() if change.size is not None:
            return (change.ino,)
        case Reaped():
            return change.inos
        case _:
            return ()
