"""What a head that began anew had in its tree, and the cluster has not: looked for in the folder that was put aside."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from beo.config import write_durably
from beo.errors import BeoError, reason
from beo.reader import Reader
from beo.tree.volume import Volume

LOOKED = "looked-at"  # a file in a tree that was put aside: what it had alone is in the list of orphans


def look(home_path: Path, head: Path) -> list[str]:
    """Look at every tree that was put aside beside a head's folder, once; return what a person should know.

    head: the folder that the head has now. Raises nothing: what can't be read is told, and looked at the next time.
    """
    told = []
    for old in sorted(home_path.glob("head.old-*/tree")):
        if (old / LOOKED).exists() or not (old / "log").exists() or not (head / "tree" / "log").exists():
            continue
        try:
            sure = _look_at(old, head / "tree")
            write_durably(old / LOOKED, b"", 0o600)
        except (BeoError, OSError, sqlite3.Error) as error:
            told.append(f"what {old} had alone is not known: {reason(error) if isinstance(error, OSError) else error}")
            continue
        if not sure:
            told.append(f"of the changes in {old} the cluster may have some: its log no longer goes back so far")
    return told


def _look_at(old: Path, new: Path) -> bool:
    """List what one tree has and another has not, in the latter's folder; whether it is known where they part."""
    failures: list[BaseException] = []
    volume = Volume(old, lambda index: None, failures.append)
    try:
        reader = Reader(new / "log")
        try:
            fork = _fork(volume, reader)
        finally:
            reader.close()
        known = fork is not None
        here = volume.log.cut.idx if fork is None else fork
        volume.put_aside(here, volume.log.last.idx, new / "orphans", known)
    finally:
        volume.close()
    return known


def _fork(volume: Volume, new: Reader) -> int | None:
    """Return up to which entry two logs are one; None where neither is kept so far back."""
    old, cut = volume.log, new.cut()
    least = max(cut.idx, old.cut.idx)
    for index in range(old.last.idx, least, -1):
        if new.position(index) == old.position(index):
            return index
    there = cut if least == cut.idx else new.position(least)
    return least if there == old.position(least) else None
