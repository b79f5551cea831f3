"""The primary's side of copying the journal: how far the other head has it, and what to send next. Pure."""

from __future__ import annotations

from beo.ha.log import Log
from beo.votes import (
    APPEND_ENTRIES_MAX,
    APPEND_MAX_BYTES,
    SNAPSHOT_PART_BYTES,
    Append,
    Appended,
    Part,
    Parted,
)

RESEND_S = 0.3  # what is under way and not answered for so long is sent again
UNDER_WAY_ENTRIES = 8_192  # at most, unanswered: what a second of the highest rate needs
PARTS_UNDER_WAY = 4  # of a snapshot


class Sender:
    """What the primary knows of the other head's journal. `match` is certain, `next` a guess that is corrected."""

    def __init__(self, log: Log, now_s: float) -> None:
        """Know nothing yet."""
        self._log = log
        self.match = 0
        self.next = log.last.idx + 1
        self.agreed = False  # a position in common has been found
        self.member = ""  # the other head's name in step, as it says itself
        self.progress_s = now_s  # when it last took something, or had everything
        self._sent_s = now_s
        self._snapshot: tuple[Part, bytes] | None = None  # the first part of the one that is sent, and all its bytes
        self._parts_sent = self._parts_have = 0

    @property
    def lag(self) -> int:
        """Entries that the other head is not known to have."""
        return self._log.last.idx - self.match

    @property
    def whole(self) -> bool:
        """Whether the other head has everything, durably."""
        return self.agreed and self.match == self._log.last.idx

    @property
    def needs_snapshot(self) -> bool:
        """Whether what it needs next was cut off here."""
        return self._snapshot is None and self.next <= self._log.cut.idx

    def offer(self, first: Part, data: bytes) -> None:
        """Send this snapshot; `first` says whose and at which position."""
        self._snapshot = first, data
        self._parts_sent = self._parts_have = 0

    def heard(self, answer: Appended, now_s: float) -> None:
        """Take an answer of this epoch."""
        if answer.member != self.member:  # another life or level: what it had then is not what it has now
            self.member, self.agreed, self.match = answer.member, False, 0
        if not answer.ok:
            if not self.agreed or answer.hint < self.match:
                self.agreed = False
                self.match = 0
                self.next = max(1, min(answer.hint, self._log.last.idx) + 1)
            else:
                self.next = max(self.match, min(answer.hint, self._log.last.idx)) + 1
            return
        self.agreed = True
        if answer.match > self.match or answer.match >= self._log.last.idx:
            self.progress_s = now_s
        self.match = max(self.match, min(answer.match, self._log.last.idx))
        self.next = max(self.next, self.match + 1)

    def parted(self, answer: Parted, now_s: float) -> None:
        """Take how much of the snapshot is there."""
        if not self._snapshot or answer.index != self._snapshot[0].position.idx:
            return
        self.progress_s = now_s
        self._sent_s = now_s
        self._parts_have = answer.have
        self._parts_sent = max(self._parts_sent, answer.have)
        if answer.have >= len(self._snapshot[1]):
            self.next = answer.index + 1
            self._snapshot = None

    def heartbeat(
        self, head: str, epoch: int, t: float, lease_s: float, commit: int, digest: tuple[int, bytes]
    ) -> Append:
        """The message that says "I act", at the position where the other is thought to stand."""
        previous = self._log.position(self.next - 1) or self._log.last
        return Append(head, epoch, t, lease_s, previous, (), commit, self._log.last.idx, digest)

    def due(self, head: str, epoch: int, now_s: float, lease_s: float, commit: int) -> list[Append | Part]:
        """What to send now; steps back where too long nothing was answered."""
        if self._snapshot:
            return list(self._parts(now_s))
        if self.match >= self.next - 1:
            self._sent_s = now_s  # nothing is under way
        elif now_s - max(self._sent_s, self.progress_s) > RESEND_S:
            self.next = self.match + 1 if self.agreed else self.next
            self._sent_s = now_s
        messages: list[Append | Part] = []
        while self.agreed and self.next <= self._log.last.idx and self.next - self.match <= UNDER_WAY_ENTRIES:
            previous = self._log.position(self.next - 1)
            entries = self._log.entries(self.next, APPEND_ENTRIES_MAX, APPEND_MAX_BYTES)
            if not previous or not entries:
                break  # cut off, or not readable yet
            pairs = tuple((entry.epoch, entry.data) for entry in entries)
            messages.append(Append(head, epoch, now_s, lease_s, previous, pairs, commit, self._log.last.idx))
            self.next = entries[-1].index + 1
        return messages

    def _parts(self, now_s: float) -> list[Part]:
        assert self._snapshot
        first, data = self._snapshot
        if self._parts_sent > self._parts_have and now_s - self._sent_s > RESEND_S:
            self._parts_sent = self._parts_have
        parts = []
        while (
            self._parts_sent < len(data) and self._parts_sent - self._parts_have < PARTS_UNDER_WAY * SNAPSHOT_PART_BYTES
        ):
            piece = data[self._parts_sent : self._parts_sent + SNAPSHOT_PART_BYTES]
            parts.append(Part(first.head, first.epoch, first.position, self._parts_sent, len(data), piece))
            self._parts_sent += len(piece)
            self._sent_s = now_s
        return parts
