"""The words of the bulk plane: what a node asks the head that serves the tree, and is told. Pure.

A chunk's *name* is of one user: his number, and the digest of its bytes. Two users who have the same bytes have two
chunks, so that nobody gets another's by knowing, or guessing, a digest.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

CHUNK_MAX_BYTES: Final = 4 << 20
DIGEST_BYTES: Final = 32
NAME_BYTES: Final = 4 + DIGEST_BYTES
FOLDER: Final = ".chunks"  # in the tree: /.chunks/UID/first two digits/digest
WANTS_MAX: Final = 32  # names in one question
NEWS_MAX: Final = 2_000  # names in one question that a node has got or lost
BAD_MAX: Final = 64  # sources in one question that were of no use
LANES_MAX: Final = 16  # chunks that one node fetches at a time
ID_MAX_CHARS: Final = 96

HEAD: Final = "head"  # the name of the head as a source

# Why a source was of no use.
DEAD: Final = "dead"  # not reached, or it broke off
SLOW: Final = "slow"
GONE: Final = "gone"  # it says that it doesn't have the chunk
LATE: Final = "late"  # it says that the ticket has expired
WRONG: Final = "wrong"  # what came is something else


def digest(data: bytes) -> str:
    """Return the digest by which bytes are known, in hexadecimal digits."""
    return blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def name_of(uid: int, digest_hex: str) -> bytes:
    """Return a chunk's name; raises ValueError for what is none."""
    if not 0 <= uid < 1 << 32 or len(digest_hex) != 2 * DIGEST_BYTES or digest_hex != digest_hex.lower():
        raise ValueError(f"no chunk is called {digest_hex[:80]!r} of user {uid}")
    return uid.to_bytes(4, "big") + bytes.fromhex(digest_hex)


def parts_of(name: bytes) -> tuple[int, str]:
    """Return (user, digest) of a name; raises ValueError for what is none."""
    if len(name) != NAME_BYTES:
        raise ValueError(f"a chunk's name has {NAME_BYTES} bytes, not {len(name)}")
    return int.from_bytes(name[:4], "big"), name[4:].hex()


def path_of(name: bytes) -> tuple[bytes, ...]:
    """Return where a chunk is in the tree, name by name."""
    uid, text = parts_of(name)
    return FOLDER.encode(), b"%d" % uid, text[:2].encode(), text.encode()


class _Word(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Bad(msgspec.Struct, frozen=True, array_like=True):
    """A source that was of no use for a chunk; why: one of the words above."""

    name: bytes
    server: str
    why: str


class Who(_Word, frozen=True):
    """Who has the chunks that I want, and this is what I have -> SourcesAre.

    id: of the process that asks, new with each start; the head completes it with its key. address: where it serves, ""
    where it doesn't. all: `gained` begins the list of all it has, and what was said before counts no more. wants: none
    of them is under way. lanes: how many more it could fetch now.
    """

    id: str
    address: str = ""
    all: bool = False
    gained: tuple[bytes, ...] = ()
    lost: tuple[bytes, ...] = ()
    bad: tuple[Bad, ...] = ()
    wants: tuple[bytes, ...] = ()
    lanes: int = 0


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Where to fetch a chunk now. address "": by this session, from the inode. ticket: see tickets.py."""

    name: bytes
    server: str
    address: str
    ino: int
    size: int
    expires_s: int = 0
    ticket: bytes = b""


class SourcesAre(_Word, frozen=True):
    """One source for some of the chunks. wait_s: ask for the others after so long.

    key: the asker's own, by which it checks the tickets of others; now_s: the head's clock, by which they expire.
    again: say all that you have. unknown: no such chunk is in the tree. suspect: others say that you have these wrong.
    """

    sources: tuple[Source, ...] = ()
    wait_s: float = 0.0
    key: bytes = b""
    now_s: float = 0.0
    again: bool = False
    unknown: tuple[bytes, ...] = ()
    suspect: tuple[bytes, ...] = ()


# ---- between the process of a node and who wants chunks there, over a socket of that machine


class Want(_Word, frozen=True):
    """Bring these chunks, and keep them here until they are let go: Here, or Fails, for each.

    together: none is let go before all are here.
    """

    names: tuple[bytes, ...]
    together: bool = False


class Let(_Word, frozen=True):
    """These are not needed any more; all that was not let go is when the connection ends."""

    names: tuple[bytes, ...]


class Here(_Word, frozen=True):
    """This one is here, whole; with it comes a descriptor of its bytes (SCM_RIGHTS)."""

    name: bytes


class Fails(_Word, frozen=True):
    """This one can't be brought. error: as `BeoError.to_dict` has it."""

    name: bytes
    error: dict[str, str]


SOCKET: Final = "socket"  # in the folder of that process
PACKET_NAMES_MAX: Final = 1_024  # in one packet, which must fit the kernel's buffer
PACKET_MAX_BYTES: Final = 64 << 10

encode = msgspec.msgpack.Encoder().encode
order_decoder: msgspec.msgpack.Decoder[Want | Let] = msgspec.msgpack.Decoder(Want | Let)
notice_decoder: msgspec.msgpack.Decoder[Here | Fails] = msgspec.msgpack.Decoder(Here | Fails)
