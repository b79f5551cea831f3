"""The journal as the pair's core sees it: positions and entries, the newest in memory, the rest by asking. Pure.

What is appended here is at once written to the journal by whoever carries the effects out; this is the tip, of which a
part may not be durable yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from beo.entries import Entry, Position, hash_of

WINDOW_ENTRIES = 20_000  # kept in memory: a second of the highest rate, for a standby that is a little behind
WINDOW_BYTES = 16 << 20


class Log:
    """Entries from `cut` (exclusive) to `last`."""

    def __init__(
        self,
        cut: Position,
        last: Position,
        read: Callable[[int, int], Sequence[Entry]],
        locate: Callable[[int], Position | None],
    ) -> None:
        """Take where the journal begins and ends. read(first, limit) and locate(index) answer for older entries."""
        self.cut = cut
        self.last = last
        self._read = read
        self._locate = locate
        self._window: deque[Entry] = deque()
        self._bytes = 0

    def append(self, epoch: int, data: bytes) -> Entry:
        """Append an entry and return it."""
        index = self.last.idx + 1
        entry = Entry(index, epoch, hash_of(self.last.hash, index, epoch, data), data)
        self.last = Position(index, epoch, entry.hash)
        self._window.append(entry)
        self._bytes += len(data)
        while len(self._window) > WINDOW_ENTRIES or (self._bytes > WINDOW_BYTES and len(self._window) > 1):
            self._bytes -= len(self._window.popleft().data)
        return entry

    def position(self, index: int) -> Position | None:
        """Return where the entry `index` stands, None if it was cut off or isn't there yet."""
        if index == self.last.idx:
            return self.last
        if index == self.cut.idx:
            return self.cut
        if not self.cut.idx < index < self.last.idx:
            return None
        if self._window and index >= self._window[0].index:
            entry = self._window[index - self._window[0].index]
            return Position(index, entry.epoch, entry.hash)
        return self._locate(index)

    def entries(self, first: int, limit: int, limit_bytes: int) -> list[Entry]:
        """Return entries from `first` on: at most so many, and so many bytes, but one if there is one."""
        if not self.cut.idx < first <= self.last.idx:
            return []
        found: list[Entry] = []
        size = 0
        if self._window and first >= self._window[0].index:
            start = first - self._window[0].index
            source: Sequence[Entry] = [self._window[n] for n in range(start, min(len(self._window), start + limit))]
        else:
            source = self._read(first, limit)
        for entry in source[:limit]:
            size += len(entry.data)
            if found and size > limit_bytes:
                break
            found.append(entry)
        return found

    def truncate(self, position: Position) -> None:
        """Drop everything behind a position."""
        self.last = position
        while self._window and self._window[-1].index > position.idx:
            self._bytes -= len(self._window.pop().data)

    def install(self, position: Position) -> None:
        """Drop everything: a snapshot stands for it."""
        self.cut = self.last = position
        self._window.clear()
        self._bytes = 0
