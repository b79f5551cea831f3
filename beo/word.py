"""The word that a node has for the ranks of a job: a file of a fixed size beside its vault.

Ranks map it once and look at its first byte at each safe point: zero, and there is nothing to do. So it is written in
place, and that byte at last. This file runs without beo's packages: a warden writes it too.
"""

from __future__ import annotations

import json
import os

SIZE_BYTES = 256
NOTHING = b""


def encoded(do: str, why: str, leaving: tuple[str, ...] = (), is_all: bool = False) -> bytes:
    """Return a word. do: checkpoint (take one, and go on), scrub (check the last one, and go on) or
    halt (take one, and end with 85). leaving: nodes that are left.

    is_all: none of the attempt's nodes stays.
    """
    word = json.dumps({"do": do, "why": why, "all": is_all, "leaving": list(leaving)}).encode()
    if len(word) > SIZE_BYTES:  # a wide job that leaves many nodes; to know them only helps
        word = json.dumps({"do": do, "why": why, "all": is_all, "leaving": []}).encode()
    return word


def says_all(path: str) -> bool:
    """Whether a word says that none of the attempt's nodes stays; False where it can't be read."""
    try:
        with open(path, "rb") as file:
            return bool(json.loads(file.read(SIZE_BYTES).rstrip(b"\0") or b"{}").get("all"))
    except (OSError, ValueError):
        return False


def write(path: str, word: bytes) -> None:
    """Say it. A halt that is said again changes nothing; anything else is meant anew. OSError where it can't be."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        if b'"halt"' in word and os.pread(fd, SIZE_BYTES, 0).rstrip(b"\0") == word:
            return
        os.pwrite(fd, b"\0", 0)
        os.pwrite(fd, word[1:].ljust(SIZE_BYTES - 1, b"\0"), 1)
        os.pwrite(fd, word[:1] or b"\0", 0)
    finally:
        os.close(fd)
