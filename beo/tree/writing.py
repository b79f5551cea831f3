"""Writes of a mount that are under way: which are replied to before they are answered, and what waits for them. Pure.

A write is *behind* from its beginning to its answer where it may be replied to at once. So many are replied to ahead of
their answers, and the next when one of these is answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from beo.tree import kernel
from beo.tree.replies import Effect, told

BEHIND_MAX, BEHIND_MAX_BYTES = 256, 8 << 20  # writes that are replied to before they are answered


class Behind(msgspec.Struct, eq=False):
    """A write under way that is replied to before it is answered, as soon as not too many are."""

    request: kernel.Request
    size: int
    is_replied: bool = False


class _Barrier(msgspec.Struct):
    """Who waits for writes."""

    numbers: set[int]
    then: Callable[[], list[Effect]]


class Writing:
    """The writes of all files."""

    def __init__(self) -> None:
        """None is under way."""
        self._numbers: dict[int, set[int]] = {}  # inode -> the questions that write it
        self._barriers: list[_Barrier] = []
        self._behind: set[Behind] = set()
        self._late: deque[Behind] = deque()  # of these, which are to be replied to next
        self._ahead = self._ahead_bytes = 0  # how many are replied to

    def begin(self, ino: int, number: int) -> None:
        """Question `number` writes a file."""
        self._numbers.setdefault(ino, set()).add(number)

    def let_ahead(self, one: Behind) -> list[Effect]:
        """Let a write be replied to before it is answered; the replies that can be given now."""
        self._behind.add(one)
        self._late.append(one)
        return self._reply_ahead()

    def caught_up(self, one: Behind) -> list[Effect]:
        """One that was behind is answered; the replies to others that can be given now."""
        self._behind.remove(one)
        if not one.is_replied:
            self._late.remove(one)
            return []
        self._ahead -= 1
        self._ahead_bytes -= one.size
        return self._reply_ahead()

    def _reply_ahead(self) -> list[Effect]:
        """Reply to writes that are under way, as long as not too many are behind."""
        effects: list[Effect] = []
        while self._late and (
            not self._ahead or (self._ahead < BEHIND_MAX and self._ahead_bytes + self._late[0].size <= BEHIND_MAX_BYTES)
        ):
            one = self._late.popleft()
            one.is_replied = True
            self._ahead += 1
            self._ahead_bytes += one.size
            effects += told(one.request, kernel.write_out(one.size))
        return effects

    def is_behind(self, ino: int) -> bool:
        """Whether a file may have writes that are replied to and not answered."""
        return bool(self._behind) and ino in self._numbers

    def when_caught_up(self, ino: int, then: Callable[[], list[Effect]]) -> list[Effect]:
        """Go on at once, or, if the file is behind, when all its writes are answered."""
        return self.after(ino, then) if self.is_behind(ino) else then()

    def after(self, ino: int, then: Callable[[], list[Effect]]) -> list[Effect]:
        """Go on when all writes of a file that are under way are answered. Errors of mappings' pages the kernel keeps
        for the next fsync or close."""
        writing = self._numbers.get(ino)
        if not writing:
            return then()
        self._barriers.append(_Barrier(set(writing), then))
        return []

    def end(self, ino: int, number: int) -> list[Effect]:
        """A question is answered; if it was a write, go on with what has waited for it."""
        writing = self._numbers.get(ino)
        if not writing or number not in writing:
            return []
        writing.remove(number)
        if not writing:
            del self._numbers[ino]
        for barrier in self._barriers:
            barrier.numbers.discard(number)
        ready = [barrier for barrier in self._barriers if not barrier.numbers]
        self._barriers = [barrier for barrier in self._barriers if barrier.numbers]
        return [effect for barrier in ready for effect in barrier.then()]
