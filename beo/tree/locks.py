"""Advisory locks of one file: byte ranges as fcntl(2) has them, or whole files as flock(2). Pure.

An *owner* is whoever's locks don't stand in each other's way: (session, number in it). Locks of one owner never
overlap: a later one replaces what it covers of earlier ones, and neighbours of one kind are one lock.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

Owner = tuple[str, int]

READ = "r"
WRITE = "w"
UNLOCK = "u"
KINDS = (READ, WRITE, UNLOCK)


class Held(msgspec.Struct, frozen=True, array_like=True):
    """A lock on the bytes start..end, both inclusive."""

    owner: Owner
    kind: str
    start: int
    end: int
    whole: bool
    pid: int

    def covers(self, other: Held) -> bool:
        """Whether they have bytes in common, and are of one sort."""
        return self.whole == other.whole and self.start <= other.end and other.start <= self.end


def in_the_way(held: Iterable[Held], wanted: Held) -> list[Held]:
    """Return the locks in the way of another owner's, in the order of the bytes."""
    found = (lock for lock in held if lock.owner != wanted.owner and lock.covers(wanted))
    return sorted(
        (lock for lock in found if WRITE in (lock.kind, wanted.kind)), key=lambda lock: (lock.start, lock.owner)
    )


def blocker(held: Iterable[Held], wanted: Held) -> Held | None:
    """Return the first lock in the way of another owner's, in the order of the bytes; None where none is."""
    return next(iter(in_the_way(held, wanted)), None)


def put(held: Iterable[Held], new: Held) -> list[Held]:
    """Return the locks after this one was granted, or (UNLOCK) what it covers was given up, in a fixed order."""
    after: list[Held] = []
    for lock in held:
        if lock.owner != new.owner or lock.whole != new.whole:
            after.append(lock)
            continue
        touches = lock.start <= new.end + 1 and new.start <= lock.end + 1
        if touches and lock.kind == new.kind:
            new = msgspec.structs.replace(new, start=min(new.start, lock.start), end=max(new.end, lock.end))
            continue
        if not lock.covers(new):
            after.append(lock)
            continue
        if lock.start < new.start:
            after.append(msgspec.structs.replace(lock, end=new.start - 1))
        if lock.end > new.end:
            after.append(msgspec.structs.replace(lock, start=new.end + 1))
    if new.kind != UNLOCK:
        after.append(new)
    return sorted(after, key=lambda lock: (lock.whole, lock.start, lock.end, lock.owner))
