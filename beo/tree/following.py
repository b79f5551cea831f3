"""The part of the tree's process while its head follows: it takes copies of the leader's log, and of stale inodes."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from beo import votes
from beo.errors import BeoError
from beo.ha.acts import Back, Copied
from beo.ha.taking import Taker
from beo.tree import changes, copying
from beo.tree.changes import Wrote, digest_of
from beo.tree.copying import FETCHED_BYTES, FETCHED_MAX, Condition, Data, Piece, Want
from beo.tree.volume import Volume

STASH_MAX_BYTES = 64 << 20  # of data whose entries have not come yet: eight times what is sent ahead
ASK_AGAIN_S = 1.0  # for a piece of a stale inode
TELL_EVERY_S = 0.1

log = logging.getLogger("beo.tree")


class Follower:
    """Who takes copies, from the leader of an epoch or a later one. For one thread."""

    def __init__(self, volume: Volume, epoch: int, reply: Callable[[bytes, bytes], None]) -> None:
        """Copy into this volume; reply(peer, body) answers the leader."""
        self._volume = volume
        self._epoch = epoch
        self._reply = reply
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
        self._gone = volume.journal.last_index  # up to here entries may have come without what belongs to them
        self._last = -1  # the newest entry that the leader of this epoch is known to have; -1: not known
        self._asked: dict[int, tuple[int, float]] = {}  # stale inode -> (offset asked for, when)

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
                    self._put(word)
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
        self._leader, self._told_stale, self._commit, self._last = peer, -1, 0, -1
        self._taker = Taker(self._volume.log)
        self._stash.clear()
        self._stash_bytes = 0
        self._asked.clear()

    def turn(self) -> None:
        """Do what is to be done after what has come."""
        self._volume.commit(min(self._commit, self._taker.agreed_with(self._epoch)))
        if not self._leader:
            return
        match = self._match()
        if match != self._said:
            self._said = match
            self._answer(True, 0)
        self._fetch(time.monotonic())

    def tick(self, now_s: float) -> None:
        """Let time pass."""
        if self._leader and now_s >= self._tell_s:
            self._tell_s = now_s + TELL_EVERY_S
            self._tell()

    def _tell(self) -> None:
        self._told_stale = len(self._volume.stale)
        total, _, _, _ = self._volume.store.space()
        room = self._volume.room_bytes()
        word = Condition(self._epoch, self._told_stale, room, total, self._match(), self.trouble)
        self._reply(self._leader, copying.encode(word))

    def _match(self) -> int:
        return min(self._taker.agreed_with(self._epoch), self._volume.journal.durable_index)

    def _answer(self, ok: bool, hint: int) -> None:
        if self._told_stale != len(self._volume.stale):  # first: who has all entries may lack bytes of them
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
        ok, hint, acts = self._taker.take(whole, self._volume.committed)
        for act in acts:
            match act:
                case Back():
                    log.warning("entries of the tree behind %d are not the leader's", act.position.idx)
                    self._volume.back(act.position)
                case Copied():
                    self._copied(act)
        if ok:
            self._commit = max(self._commit, message.commit)
            self._last = max(self._last, message.last)
        if not ok or not message.entries or whole is not message:
            self._answer(ok, hint)
            self._said = self._match()

    def _copied(self, act: Copied) -> None:
        data = {entry.index: self._stash.get(entry.index) for entry in act.entries}
        for entry in act.entries:
            if entry.index in self._stash:
                piece = self._stash.pop(entry.index)
                self._stash_bytes -= len(piece or b"")
                if piece is None:
                    self._gone = max(self._gone, entry.index)
        for ino in self._volume.copy(act.entries, data):
            self._asked.pop(ino, None)

    def _with_data(self, message: votes.Append) -> votes.Append:
        """Return as many of the entries as everything is here of that belongs to them."""
        for number, (epoch, data) in enumerate(message.entries):
            index = message.previous.idx + 1 + number
            here = self._volume.log.position(index)
            if here and here.epoch == epoch:
                continue  # it was copied before
            change = changes.decode(data)
            if not isinstance(change, Wrote) or not change.digest:
                continue
            piece = self._stash.get(index, b"")
            if piece is None or (piece and len(piece) == change.size and digest_of(piece) == change.digest):
                continue
            return msgspec.structs.replace(message, entries=message.entries[:number])
        return message

    def _part(self, message: votes.Part) -> None:
        have, install = self._taker.part(message, self._volume.committed)
        if install:
            log.info("a snapshot of the tree is taken, of entry %d", install.position.idx)
            self._volume.install(install.position, install.data)
            self._asked.clear()  # what was fetched in part is fetched anew: nobody does to it what the snapshot skips
            self._taker.agreed = install.position.idx
            self._gone = install.position.idx
            self._commit = max(self._commit, install.position.idx)
        self._reply(self._leader, copying.encode(votes.Parted("", self._epoch, message.position.idx, have)))

    # ---- stale inodes

    def _fetch(self, now_s: float) -> None:
        """Ask for what is stale, once all entries are here that came without what belongs to them.

        What this head has behind the leader's last entry is none of those: it will be taken back.
        """
        if not self._volume.stale or self._last < 0 or self._volume.store.applied < min(self._gone, self._last):
            return
        for ino in list(self._volume.stale)[:FETCHED_MAX]:
            offset, asked_s = self._asked.get(ino, (0, -ASK_AGAIN_S))
            if now_s - asked_s >= ASK_AGAIN_S:
                self._want(ino, offset, now_s)

    def _want(self, ino: int, offset: int, now_s: float) -> None:
        self._asked[ino] = offset, now_s
        self._reply(self._leader, copying.encode(Want(self._epoch, ino, offset, self._volume.store.applied)))

    def _put(self, piece: Piece) -> None:
        asked = self._asked.get(piece.ino)
        if piece.ino not in self._volume.stale or not asked or asked[0] != piece.offset:
            return
        now_s = time.monotonic()
        if piece.applied < self._volume.store.applied:  # what was done here since would be undone
            self._want(piece.ino, piece.offset, now_s)
            return
        if piece.size < 0:
            self._volume.fetched([piece.ino], gone=True)
            self._asked.pop(piece.ino)
            return
        self._volume.store.put(piece.ino, piece.offset, piece.data, piece.size)
        offset = piece.offset + len(piece.data)
        if len(piece.data) < FETCHED_BYTES or offset >= piece.size:
            self._asked.pop(piece.ino)
            self._volume.fetched([piece.ino])
            self._tell_s = 0.0
        else:
            self._want(piece.ino, offset, now_s)
