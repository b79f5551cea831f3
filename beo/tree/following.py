"""The part of the tree's process while its head follows: it takes copies of the leader's log, and of stale inodes."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from beo import votes
from beo.errors import BeoError, Internal
from beo.ha.acts import Back, Copied
from beo.ha.taking import Taker
from beo.settings import Level
from beo.tree import changes, copying
from beo.tree.changes import Wrote, digest_of
from beo.tree.copying import Condition, Data, Piece, Received, Want
from beo.tree.fetching import Fetching, give
from beo.tree.volume import Volume

ASYNC_LAG = 1_000  # entries that a head may lack at level A and still take over by itself, as of the journal
STASH_MAX_BYTES = 64 << 20  # of data whose entries have not come yet: eight times what is sent ahead
TELL_EVERY_S = 0.1

log = logging.getLogger("beo.tree")


class Follower:
    """Who takes copies, from the leader of an epoch or a later one. For one thread."""

    def __init__(self, volume: Volume, epoch: int, reply: Callable[[bytes, bytes], None], level: Level = "C") -> None:
        """Copy into this volume; reply(peer, body) answers the leader."""
        self._volume = volume
        self._epoch = epoch
        self._reply = reply
        self._level = level
        self._taker = Taker(volume.log)
        self._life = secrets.token_hex(4)
        self._leader = b""
        self._stash: dict[int, bytes | None] = {}
        self._stash_bytes = 0
        self._commit = 0
        self._said = -1
        self._told_stale = -1  # how many inodes, as the leader was told last
        self._tell_s = 0.0
        self.trouble = ""
        self.heard_s = float("-inf")  # when a leader was heard last
        self._last = -1  # the newest entry that the leader of this epoch is known to have; -1: not known
        self._committed = 0  # the newest one that it has acknowledged
        self._received = -1  # told last
        self._fetching = Fetching(volume, self._want, volume.journal.last_index)

    def hear(self, peer: bytes, body: bytes) -> None:
        """Take what the leader says."""
        try:
            word = copying.to_follower.decode(body)
        except msgspec.MsgspecError as error:
            self.trouble = f"the other head's tree says what this beo can't read ({str(error).lower()})"
            return
        self.heard_s = time.monotonic()
        if word.epoch < self._epoch:
            return  # whoever led before is told by its head
        if word.epoch > self._epoch or peer != self._leader:
            self._epoch = word.epoch
            self._meet(peer)
        self._taker.begin(word.epoch)
        try:
            match word:
                case Data():
                    self._keep(word)
                case Piece():
                    if self._fetching.put(word, time.monotonic()):
                        self._tell_s = 0.0
                case Want():
                    if piece := give(self._volume, word, self._taker.agreed):
                        self._reply(peer, copying.encode(piece))
                case votes.Append():
                    self._append(word)
                case votes.Part():
                    self._part(word)
                    self.trouble = ""
        except BeoError as error:
            if str(error) != self.trouble:
                log.error("%s", error)
            self.trouble = str(error)

    def _meet(self, peer: bytes) -> None:
        """Compare everything anew: it may be another process, which has lost what it had sent and not written down.

        Then it makes other entries of these numbers, in the same epoch.
        """
        self._leader, self._told_stale, self._commit, self._last, self._received = peer, -1, 0, -1, -1
        self._committed = 0
        self._taker = Taker(self._volume.log)
        self._stash.clear()
        self._stash_bytes = 0
        self._fetching.begin_anew()

    @property
    def lacks(self) -> int:
        """How much this head lacks of what was acknowledged, as far as it knows: entries, and stale inodes."""
        behind = max(0, self._committed - self._volume.log.last.idx)
        if self._level == "A" and behind <= ASYNC_LAG:
            behind = 0  # so much may be lost
        # What was received, but not written yet, is gone with a process that ended.
        return behind + self._fetching.missing + (self._level == "B" and not self._volume.was_whole)

    def turn(self) -> None:
        """Do what is to be done after what has come."""
        self._volume.commit(min(self._commit, self._taker.agreed_with(self._epoch)))
        if not self._leader:
            return
        match = self._match()
        if match != self._said:
            self._said = match
            self._answer(True, 0)
        received = self._taker.agreed_with(self._epoch)
        if self._level == "B" and received != self._received:
            self._received = received
            self._reply(self._leader, copying.encode(Received(self._epoch, self._life, received)))
        if self._last >= 0:  # what is here behind the leader's last entry will be taken back
            self._fetching.ask(self._epoch, self._last, time.monotonic())

    def tick(self, now_s: float) -> None:
        """Let time pass."""
        if self._leader and now_s >= self._tell_s:
            self._tell_s = now_s + TELL_EVERY_S
            self._tell()

    def _tell(self) -> None:
        self._told_stale = self._fetching.missing
        total, _, _, _ = self._volume.store.space()
        room = self._volume.room_bytes()
        word = Condition(self._epoch, self._told_stale, room, total, self._match(), self.trouble)
        self._reply(self._leader, copying.encode(word))

    def _match(self) -> int:
        return min(self._taker.agreed_with(self._epoch), self._volume.journal.durable_index)

    def _answer(self, ok: bool, hint: int) -> None:
        if self._told_stale != self._fetching.missing:  # first: who has all entries may lack bytes of them
            self._tell()
        word = votes.Appended("", self._epoch, 0.0, self._match(), ok, hint, self._life)
        self._reply(self._leader, copying.encode(word))

    # ---- entries

    def _keep(self, word: Data) -> None:
        if self._stash_bytes > STASH_MAX_BYTES:
            self._stash.clear()
            self._stash_bytes = 0
        self._stash_bytes += len(word.data or b"")
        self._stash[word.index] = word.data

    def _append(self, message: votes.Append) -> None:
        whole = self._with_data(message)
        ok, hint, acts = self._taker.take(whole, self._safe())
        for act in acts:
            match act:
                case Back():
                    log.warning("entries of the tree behind %d are not the leader's", act.position.idx)
                    self._volume.back(act.position, self._level == "A")
                case Copied():
                    self._copied(act)
        if ok and message.previous.idx == message.last:
            self._end_with(message)
        if ok:
            self._commit = max(self._commit, message.commit)
            self._last = max(self._last, message.last)
            if message.entries or self._taker.agreed >= message.last:  # else it may be what failed the last time
                self.trouble = ""
        self._committed = max(self._committed, message.commit)
        if self._volume.log.last.idx >= self._committed and self._taker.agreed_with(self._epoch) >= self._committed:
            self._volume.was_whole = True
        if not ok or not message.entries or whole is not message:
            self._answer(ok, hint)
            self._said = self._match()

    def _end_with(self, message: votes.Append) -> None:
        """Take back what is here behind the leader's last entry and was made before its time."""
        log_, end = self._volume.log, message.previous
        behind = log_.position(end.idx + 1)
        if behind is None or behind.epoch >= message.epoch:
            return
        if end.idx < self._safe():
            what, why = (
                f"this head's tree has entries behind {end.idx}",
                "the primary's has not, and they were committed",
            )
            raise Internal(what, why, "look at both heads; 'beo ha rejoin --wipe' makes this head follow")
        log.warning("entries of the tree behind %d are not the leader's", end.idx)
        log_.truncate(end)
        self._volume.back(end, self._level == "A")

    def _copied(self, act: Copied) -> None:
        data = {entry.index: self._stash.get(entry.index) for entry in act.entries}
        for entry in act.entries:
            if entry.index in self._stash:
                piece = self._stash.pop(entry.index)
                self._stash_bytes -= len(piece or b"")
                if piece is None:
                    self._fetching.gone = max(self._fetching.gone, entry.index)
        for ino in self._volume.copy(act.entries, data):
            self._fetching.again(ino)

    def _safe(self, index: int = 0) -> int:
        """Up to here nothing is taken back; at level A, what one head has acknowledged alone may be.

        Where an operator has forced the other head, it is all that is here, or up to `index`: an operator wipes it.
        """
        last = self._volume.log.last
        if last.idx and votes.generation(last.epoch) < votes.generation(self._epoch):
            return max(index, last.idx)
        return 0 if self._level == "A" else self._volume.committed

    def _with_data(self, message: votes.Append) -> votes.Append:
        """Return as many of the entries as everything is here of that belongs to them.

        That some of it is not to be had any more is written down before they are taken.
        """
        for number, (epoch, data) in enumerate(message.entries):
            index = message.previous.idx + 1 + number
            here = self._volume.log.position(index)
            if here and here.epoch == epoch:
                continue  # it was copied before
            change = changes.decode(data)
            if not isinstance(change, Wrote) or not change.digest:
                continue
            piece = self._stash.get(index, b"")
            if piece is None and self._volume.mark_stale([change.ino]):
                continue
            if piece and len(piece) == change.size and digest_of(piece) == change.digest:
                continue
            return msgspec.structs.replace(message, entries=message.entries[:number])
        return message

    def _part(self, message: votes.Part) -> None:
        have, install = self._taker.part(message, self._safe(message.position.idx))
        if install:
            log.info("a snapshot of the tree is taken, of entry %d", install.position.idx)
            if not self._volume.install(install.position, install.data, self._trusted()):
                return  # it is sent again
            self._fetching.begin_anew()  # what was fetched in part is fetched anew: the snapshot skips what was done
            self._taker.agreed = install.position.idx
            self._fetching.gone = install.position.idx
            self._commit = max(self._commit, install.position.idx)
        self._reply(self._leader, copying.encode(votes.Parted("", self._epoch, message.position.idx, have)))

    def _trusted(self) -> int:
        """Up to which entry what is in the store here is what the leader has there, too.

        At level A this head may have done there what it alone had in its log: not if its last was made by the other.
        """
        is_common = self._level != "A" or self._volume.log.last.epoch % 2 == self._epoch % 2
        return self._volume.store.applied if is_common else 0

    def _want(self, word: Want) -> None:
        self._reply(self._leader, copying.encode(word))
