"""The standby's side of copying the journal: compare, take what follows, and say how far it agrees. Pure."""

from __future__ import annotations

from beo.entries import Entry, Position, hash_of
from beo.errors import Internal
from beo.ha.acts import Back, Copied, Install
from beo.ha.log import Log
from beo.votes import Append, Part

SNAPSHOT_MAX_BYTES = 1 << 30  # kept in memory while it comes: far above what the journal takes


class Taker:
    """What a head knows of its own journal against the primary's. `agreed`: up to there it is compared."""

    def __init__(self, log: Log) -> None:
        """Nothing is compared yet."""
        self._log = log
        self._epoch = 0
        self.agreed = 0  # index up to which this journal is known to be the primary's
        self._incoming: tuple[Position, bytearray] | None = None

    def begin(self, epoch: int) -> None:
        """A primary of this epoch speaks: what another one has said doesn't count for it."""
        if epoch != self._epoch:
            self._epoch, self.agreed, self._incoming = epoch, 0, None

    def agreed_with(self, epoch: int) -> int:
        """Return up to which index this journal is known to be that of the primary of an epoch."""
        return self.agreed if epoch == self._epoch else 0

    def take(self, message: Append, safe: int) -> tuple[bool, int, list[Copied | Back]]:
        """Return whether `previous` was found, the hint if not, and what to do.

        safe: an index up to which all is committed. To take that back would be the loss of what was promised: raises
        Internal then, and the two journals need a person.
        """
        log = self._log
        previous = message.previous
        here = log.position(previous.idx)
        if here is None:
            if previous.idx < log.cut.idx:  # cut off here, so it was committed, and there is nothing to compare
                return False, log.cut.idx, []
            return False, log.last.idx, []
        if here != previous:
            if here == log.cut:  # nothing before it is left to compare
                raise self._differ(here.idx, here.idx)
            return False, self._before(here), []
        acts: list[Copied | Back] = []
        taken: list[Entry] = []
        at = previous.idx
        for epoch, data in message.entries:
            known = log.position(at + 1) if not taken else None
            if known is not None:
                if known.epoch == epoch and self._same(known, epoch, data, at):
                    at += 1
                    continue
                if at < safe:
                    self.agreed = max(self.agreed, at)
                    raise self._differ(at + 1, safe)
                kept = log.position(at)
                assert kept
                log.truncate(kept)
                acts.append(Back(kept))
            taken.append(log.append(epoch, data))
            at += 1
        if taken:
            acts.append(Copied(tuple(taken)))
        self.agreed = max(self.agreed, at)
        return True, 0, acts

    def _differ(self, index: int, safe: int) -> Internal:
        return Internal(
            f"this head's entry {index} is not the primary's",
            f"all up to {safe} was committed",
            "look at both journals; 'beo ha rejoin --wipe' makes this head follow",
        )

    def _same(self, known: Position, epoch: int, data: bytes, before: int) -> bool:
        previous = self._log.position(before)
        return previous is not None and hash_of(previous.hash, before + 1, epoch, data) == known.hash

    def _before(self, here: Position) -> int:
        """The last index before the run of entries of this one's epoch: the whole run is in doubt."""
        index = here.idx - 1
        while index > self._log.cut.idx:
            position = self._log.position(index)
            if position is None or position.epoch != here.epoch or here.idx - index >= 1_000:
                break
            index -= 1
        return max(index, self._log.cut.idx if here.idx > self._log.cut.idx else 0)

    def part(self, message: Part, safe: int) -> tuple[int, Install | None]:
        """Take a piece of a snapshot; return how many bytes are here, and what to do when it is whole.

        One that comes late says nothing new: this journal goes on behind it. safe: as of `take`.
        """
        if message.total > SNAPSHOT_MAX_BYTES:
            raise Internal(f"a snapshot of {message.total >> 20} MiB", "the limit is 1 GiB", "forget old jobs")
        here = self._log.position(message.position.idx)
        if here == message.position or message.position.idx <= max(self.agreed, self._log.cut.idx):
            return message.total, None
        if message.position.idx <= safe:
            raise self._differ(message.position.idx, safe)
        if not self._incoming or self._incoming[0] != message.position:
            self._incoming = message.position, bytearray()
        position, data = self._incoming
        if message.offset == len(data):
            data += message.data
        if len(data) < message.total:
            return len(data), None
        self._incoming = None
        return message.total, Install(position, bytes(data))
