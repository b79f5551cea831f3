"""Who remembers what of the tree, and must be told before it changes. Pure.

A *lease* lets a session answer from memory what nobody else changes. Whoever wants to change an inode that others
remember waits until they have been told to forget it: until they say that they have, or every lease that they can still
have is over, `LEASE_S` after they were told. The time of a lease is counted from when its holder asked, so it is over
there not later than here. Leases are not in the log: a new head waits until those of the old one are over, unless it
had to, to become the head.

Who writes a file that nobody else has to do with may hold it *alone*: then others wait in the same way before they see
anything of it, so that he needn't wait for each write.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from beo.tree.changes import Allocated, Change, Changed, Linked, Made, Moved, Removed, Wrote
from beo.tree.state import State

LEASE_S = 0.5  # a holder that died delays whoever changes something by so much, once
LEASES_MAX = 2_000_000  # of all sessions, some 200 bytes each; beyond that, answers aren't remembered
SESSION_LEASES_MAX = 200_000  # then the oldest are taken back
BUSY_S = 1.0  # for so long nobody gets a lease anew on what had to be forgotten: it changes often
BUSY_MAX = 100_000  # inodes

Hold = tuple[str, int]  # (session, inode)


class _Pending:
    """A lease that is taken back, by the recall with this count. until_s: when it is over in any case."""

    __slots__ = ("recalls", "until_s")

    def __init__(self, recalls: int) -> None:
        self.recalls, self.until_s = recalls, float("inf")


def touched(state: State, change: Change) -> tuple[int, ...]:
    """Return the inodes that a change is about which isn't done yet: whose attributes, names or bytes it changes."""
    match change:
        case Made():
            return (change.parent,)
        case Linked():
            return (change.parent, change.ino)
        case Removed():
            return (change.parent, _child(state, change.parent, change.name))
        case Moved():
            ends = (change.parent, change.name), (change.new_parent, change.new_name)
            return (change.parent, change.new_parent, *(ino for end in ends if (ino := _child(state, *end))))
        case Changed() | Wrote() | Allocated():
            return (change.ino,)
        case _:
            return ()


def _child(state: State, parent: int, name: bytes) -> int:
    children = state.inodes[parent].children
    assert children is not None
    return children.get(name, (0, 0))[0]


class Leases:
    """The leases of one tree, since this head leads."""

    def __init__(self, life: int) -> None:
        """life: a number that no earlier server of this tree has begun to count at, nor will count up to."""
        self.holders: dict[int, dict[str, bool]] = {}  # inode -> sessions
        self._held: dict[str, dict[int, bool]] = {}  # session -> inodes
        self._count = 0
        self._recalls: dict[str, int] = {}  # session -> how often it was told to forget something, from `life` on
        self._busy: dict[int, float] = {}  # inode -> until when nobody gets a lease on it
        self._pending: dict[Hold, _Pending] = {}  # told to forget, and hasn't said so yet
        self.alone: dict[int, str] = {}  # inode -> the session that holds it alone, under its lease
        self._life = life

    def recalls(self, session: str) -> int:
        """Return the count that goes with what a session is answered now."""
        return self._recalls.get(session, self._life)

    def grant(self, session: str, inos: tuple[int, ...], now_s: float) -> tuple[int, ...]:
        """Lease inodes to a session; return those that it got."""
        held = self._held.setdefault(session, {})
        granted = []
        for ino in inos:
            if self._pending and (session, ino) in self._pending:
                continue  # what is said to be forgotten next is the earlier lease
            if self.alone.get(ino, session) != session:
                continue
            if self._busy and ino in self._busy:
                if now_s < self._busy[ino]:
                    continue
                del self._busy[ino]
            if ino not in held:
                if self._count >= LEASES_MAX:
                    continue
                self._count += 1
                held[ino] = True
                self.holders.setdefault(ino, {})[session] = True
            granted.append(ino)
        return tuple(granted)

    def in_the_way(self, session: str, inos: tuple[int, ...]) -> list[Hold]:
        """Return who else remembers something of these inodes."""
        return [(other, ino) for ino in inos if ino in self.holders for other in self.holders[ino] if other != session]

    def leave_alone(self, session: str, ino: int) -> bool:
        """Let a session hold an inode alone, if it is the only one that has a lease on it; whether it is."""
        if [*self.holders.get(ino, ())] != [session] or (session, ino) in self._pending:
            return False
        self.alone[ino] = session
        return True

    def share(self, session: str, ino: int) -> None:
        """A session holds an inode alone no longer; its lease stays."""
        if self.alone.get(ino) == session:
            del self.alone[ino]

    def in_sight(self, session: str, inos: Iterable[int]) -> list[Hold]:
        """Return who else holds one of these inodes alone."""
        return [(other, ino) for ino in inos if (other := self.alone.get(ino, session)) != session]

    def surplus(self, session: str) -> list[Hold]:
        """Return the oldest leases of a session that has too many, as what it hasn't used for long it has forgotten."""
        held = self._held.get(session, {})
        many = len(held) - SESSION_LEASES_MAX
        if many <= 0 or (session, next(iter(held))) in self._pending:
            return []
        return [(session, ino) for ino in islice(held, many + SESSION_LEASES_MAX // 4)]

    def recall(self, holds: list[Hold], now_s: float) -> dict[str, list[int]]:
        """Take leases back; return whom to tell to forget what: all but those who are told already."""
        told: dict[str, list[int]] = {}
        for session, ino in holds:
            if len(self._busy) >= BUSY_MAX:
                self._busy.clear()  # then a few are recalled once more
            self._busy[ino] = now_s + BUSY_S
            if (session, ino) not in self._pending:
                self._pending[session, ino] = _Pending(self.recalls(session) + 1)
                told.setdefault(session, []).append(ino)
        for session in told:
            self._recalls[session] = self.recalls(session) + 1
        return told

    def told(self, session: str, inos: tuple[int, ...], now_s: float) -> None:
        """It has been said to a session now, behind everything that was leased to it before."""
        for ino in inos:
            if (session, ino) in self._pending:
                self._pending[session, ino].until_s = now_s + LEASE_S

    def forgotten(self, session: str, inos: tuple[int, ...], recalls: int) -> list[Hold]:
        """A session has heard this recall, and forgotten: return what is free thereby. What it was leased since then
        isn't."""
        holds = [(session, ino) for ino in inos]
        return [h for h in holds if h in self._pending and self._pending[h].recalls == recalls and self._free(h)]

    def over(self, now_s: float) -> list[Hold]:
        """Return what is free since time has passed."""
        if not self._pending:
            return []
        return [hold for hold, one in list(self._pending.items()) if now_s >= one.until_s and self._free(hold)]

    def end(self, session: str) -> list[Hold]:
        """A session is over: return what is free thereby."""
        freed = [(session, ino) for ino in list(self._held.get(session, ())) if self._free((session, ino))]
        self._held.pop(session, None)
        self._recalls.pop(session, None)
        return freed

    def _free(self, hold: Hold) -> bool:
        """Take a lease away; whether somebody waited for that."""
        session, ino = hold
        self.share(session, ino)
        if self._held.get(session, {}).pop(ino, False):
            self._count -= 1
            holders = self.holders[ino]
            del holders[session]
            if not holders:
                del self.holders[ino]
        return self._pending.pop(hold, None) is not None
