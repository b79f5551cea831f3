"""Tokens as text: what a newcomer must be told so that head and newcomer know each other from the first packet on.

A token holds the head's public key and a seed of 128 random bits, from which its holder computes a secret key; the
head knows only the public key that belongs to it. So whoever sits in the middle of the first conversation can't read it
or play the head, and whoever reads the head's disk finds nothing that could be used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

import msgspec

from beo.errors import UsageError

SEED_BYTES = 16
KEY_BYTES = 32
SUM_BYTES = 4  # against slips of the pen, not against a forger
PREFIX = "beo_"

# Base85 as in ZeroMQ (Z85) and as in Python: the same numbers, other digits.
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_TO_Z85 = str.maketrans(_B85, _Z85)
_FROM_Z85 = str.maketrans(_Z85, _B85)


class Token(msgspec.Struct, frozen=True):
    """head: the head's public key. secret: the key to connect with. Both are CURVE keys, 40 characters of Z85."""

    head: str
    secret: str


def write(head: str, seed: bytes) -> str:
    """Return the text of a token: `beo_` and 70 letters, digits, `-` and `_`."""
    body = base64.b85decode(head.translate(_FROM_Z85)) + seed
    return PREFIX + base64.urlsafe_b64encode(body + _sum(body)).decode().rstrip("=")


def read(text: str) -> Token:
    """Read a token; raises UsageError for a text that is none, or not all of one."""
    try:
        data = base64.b64decode(text.strip().removeprefix(PREFIX) + "==", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        data = b""
    body = data[:-SUM_BYTES]
    if not text.strip().startswith(PREFIX) or len(body) != KEY_BYTES + SEED_BYTES or _sum(body) != data[-SUM_BYTES:]:
        raise UsageError(
            "this is no token",
            "a part of it is missing, or was mistyped",
            "copy it as 'beo token' has printed it on the head's machine",
        )
    return Token(_z85(body[:KEY_BYTES]), _z85(secret_of(body[KEY_BYTES:])))


def secret_of(seed: bytes) -> bytes:
    """Return the 32 bytes of the secret key that a seed stands for."""
    return hashlib.blake2b(seed, digest_size=KEY_BYTES, person=b"beo token").digest()


def _z85(data: bytes) -> str:
    return base64.b85encode(data).decode().translate(_TO_Z85)


def _sum(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(SUM_BYTES, "big")
