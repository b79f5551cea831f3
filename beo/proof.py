"""By what a machine without a disk is known: its MAC address, words for its key, and proofs of its asset tag."""

from __future__ import annotations

import hashlib
import hmac

from beo.errors import UsageError

HEX = frozenset("0123456789abcdef")
DIGEST_BYTES = 8  # of a key, in words: nobody makes another key that has the same 64 bits
MAC_DIGITS = 12
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aiou"


def words_of(key: str) -> str:
    """Return four words that can be read out and compared: 64 bits of a public key's digest, 16 in each word."""
    digest = hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES, person=b"beo words").digest()
    return " ".join(_word(int.from_bytes(digest[at : at + 2], "big")) for at in range(0, DIGEST_BYTES, 2))


def _word(number: int) -> str:
    c, v = _CONSONANTS, _VOWELS
    return c[number >> 12] + v[number >> 10 & 3] + c[number >> 6 & 15] + v[number >> 4 & 3] + c[number & 15]


def mac_of(text: str) -> str:
    """Return a MAC address as it stands on record; raises UsageError for what is none of a single machine."""
    digits = text.strip().lower().replace("-", ":")
    bare = digits.replace(":", "")
    is_shaped = ":" not in digits or [len(part) for part in digits.split(":")] == [2] * 6
    if (
        len(bare) != MAC_DIGITS
        or not HEX.issuperset(bare)
        or not is_shaped
        or int(bare[:2], 16) & 1
        or not int(bare, 16)
    ):
        raise UsageError(f"{text[:40]!r} is no machine's MAC address", "", "write it as 52:54:00:12:34:56")
    return ":".join(bare[at : at + 2] for at in range(0, MAC_DIGITS, 2))


def tag_key(mac: str, tag: str) -> str:
    """Return what an asset tag is on record as, and proofs are made with; slow, so that guessing tags is dear."""
    key = hashlib.scrypt(tag.strip().encode(), salt=f"beo asset {mac}".encode(), n=1 << 14, r=8, p=1, dklen=32)
    return key.hex()


def prove(secret: str, nonce: str, mac: str, boot: str, key: str) -> str:
    """Return the proof that somebody who knows `tag_key` wants this key for that boot of the machine."""
    text = "\n".join((nonce, mac, boot, key))
    return hmac.new(bytes.fromhex(secret), text.encode(), hashlib.sha256).hexdigest()
