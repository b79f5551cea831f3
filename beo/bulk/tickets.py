"""Tickets: what a server of chunks is shown before it sends a byte, and the frames of the two sides. Pure.

The heads' secret makes a key for each server, which only that server is told, over CURVE; a ticket is a keyed digest by
it. So whoever has a ticket was given it by a head, for one chunk at one server, and both heads give and know the same
ones. Contents are not covered: who receives them checks them against their name.
"""

from __future__ import annotations

import hmac
import struct
from hashlib import blake2b

import msgspec

from beo.bulk.words import CHUNK_MAX_BYTES, NAME_BYTES

TICKET_S = 120  # that a ticket is valid: many times what a chunk takes
KEY_BYTES = 32
MAGIC = b"beo\x01"
OK, GONE, EXPIRED = 0, 1, 2

_request = struct.Struct(f">4s{NAME_BYTES}sQIIQ32s")
_reply = struct.Struct(">4sBI")
_claim = struct.Struct(f">{NAME_BYTES}sQQ")
REQUEST_BYTES = _request.size
REPLY_BYTES = _reply.size


class Request(msgspec.Struct, frozen=True):
    """What a client asks of a server: `size` bytes of a chunk from `offset` on, 0: all there are.

    ino: of the chunk in the tree, by which a head finds it.
    """

    name: bytes
    ino: int
    offset: int
    size: int
    expires_s: int
    ticket: bytes


def master_key(secret: str) -> bytes:
    """Return the key of keys, made of the heads' secret one."""
    return blake2b(secret.encode(), digest_size=KEY_BYTES, person=b"beo bulk").digest()


def server_key(master: bytes, server: str) -> bytes:
    """Return the key of one server."""
    return blake2b(server.encode(), digest_size=KEY_BYTES, key=master).digest()


def ticket(key: bytes, name: bytes, ino: int, expires_s: int) -> bytes:
    """Return the ticket for a chunk at the server that has this key."""
    return blake2b(_claim.pack(name, ino, expires_s), digest_size=32, key=key).digest()


def is_good(key: bytes, request: Request) -> bool:
    """Whether a request's ticket was made by this key; in the same time for every wrong one."""
    made = ticket(key, request.name, request.ino, request.expires_s)
    return bool(key) and hmac.compare_digest(made, request.ticket)


def pack_request(request: Request) -> bytes:
    """Return a request as it is sent."""
    words = (request.name, request.ino, request.offset, request.size, request.expires_s, request.ticket)
    return _request.pack(MAGIC, *words)


def read_request(data: bytes) -> Request | None:
    """Return what was sent; None where it is no request."""
    if len(data) != REQUEST_BYTES:
        return None
    magic, name, ino, offset, size, expires_s, shown = _request.unpack(data)
    if magic != MAGIC or offset > CHUNK_MAX_BYTES or size > CHUNK_MAX_BYTES:
        return None
    return Request(name, ino, offset, size, expires_s, shown)


def pack_reply(status: int, size: int) -> bytes:
    """Return what precedes the bytes."""
    return _reply.pack(MAGIC, status, size)


def read_reply(data: bytes) -> tuple[int, int] | None:
    """Return (status, how many bytes follow); None where it is no reply, or of more than a chunk has."""
    if len(data) != REPLY_BYTES:
        return None
    magic, status, size = _reply.unpack(data)
    return (status, size) if magic == MAGIC and size <= CHUNK_MAX_BYTES else None
