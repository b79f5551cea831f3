"""What is stale on a head comes whole from the other one, piece by piece, whichever of them leads.

A piece counts if it is of an entry at or behind the last one that has changed the inode's bytes in the store here: what
is done to it later is done again on top, and ends with the same bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import islice

from beo.tree import copying
from beo.tree.copying import FETCHED_MAX, GONE, LOST, Piece, Want
from beo.tree.volume import Volume

ASK_AGAIN_S = 1.0  # for a piece that hasn't come
TOO_OLD_S = 0.02  # after one that came, but was of an earlier entry than is needed


class Fetching:
    """What this head asks the other one for. For one thread."""

    def __init__(self, volume: Volume, want: Callable[[Want], None], gone: int) -> None:
        """want(word) asks. gone: up to this entry, what belongs to entries may be missing here."""
        self._volume = volume
        self._want = want
        self.gone = gone
        self.lost: dict[int, bool] = {}  # what neither head has
        self._asked: dict[int, tuple[int, float]] = {}  # stale inode -> (offset asked for, when)

    @property
    def missing(self) -> int:
        """How many inodes are stale here which the other head may have."""
        return sum(ino not in self.lost for ino in self._volume.stale)

    def ask(self, epoch: int, upto: int, now_s: float) -> None:
        """Ask for what is stale, once all entries up to `upto` are here that came without what belongs to them."""
        volume = self._volume
        for ino in [ino for ino in self.lost if ino not in volume.stale]:
            del self.lost[ino]
        if not volume.stale or volume.full or volume.store.applied < min(self.gone, upto):
            return
        for ino in islice((ino for ino in volume.stale if ino not in self.lost), FETCHED_MAX):
            offset, asked_s = self._asked.get(ino, (0, -ASK_AGAIN_S))
            if now_s - asked_s >= ASK_AGAIN_S:
                self._ask_for(epoch, ino, offset, now_s)

    def again(self, ino: int) -> None:
        """This inode has to be asked for from its beginning."""
        self._asked.pop(ino, None)

    def begin_anew(self) -> None:
        """Another head, or another life of it, is asked from now on."""
        self._asked.clear()
        self.lost.clear()

    def put(self, piece: Piece, now_s: float) -> bool:
        """Take a piece; return whether an inode is no longer stale, or lost, by that."""
        ino, volume = piece.ino, self._volume
        asked = self._asked.get(ino)
        if ino not in volume.stale or not asked or asked[0] != piece.offset:
            return False
        if piece.size == LOST:
            self._asked.pop(ino)
            self.lost[ino] = True
            return True
        if piece.applied < self._needed(ino):  # what was done here since would be undone
            self._asked[ino] = piece.offset, now_s - ASK_AGAIN_S + TOO_OLD_S
            return False
        try:
            return self._take(piece, now_s)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            volume.wait_for_room(error)
            self.again(ino)
            return False

    def _take(self, piece: Piece, now_s: float) -> bool:
        ino, volume = piece.ino, self._volume
        if piece.size == GONE:
            if ino in volume.state.inodes:
                return False  # the entry that says so is still to come, or never was to be
            volume.fetched([ino], gone=True)
        else:
            volume.store.put(ino, piece.offset, piece.data, piece.size)
            offset = piece.offset + len(piece.data)
            if len(piece.data) == copying.FETCHED_BYTES and offset < piece.size:
                self._ask_for(piece.epoch, ino, offset, now_s)
                return False
            volume.fetched([ino])
        self._asked.pop(ino)
        return True

    def _needed(self, ino: int) -> int:
        found = self._volume.state.inodes.get(ino)
        return min(self._volume.store.applied, found.version if found else 0)

    def _ask_for(self, epoch: int, ino: int, offset: int, now_s: float) -> None:
        self._asked[ino] = offset, now_s
        self._want(Want(epoch, ino, offset, self._needed(ino)))


def give(volume: Volume, want: Want, agreed: int | None = None) -> Piece | None:
    """Return the bytes that the other head wants; None where they are not as they have to be, and it asks again.

    agreed: up to which entry this head's log is known to be the other one's, where that one leads.
    """
    store, epoch, ino = volume.store, want.epoch, want.ino
    if ino in volume.stale:
        return Piece(epoch, ino, want.offset, LOST, b"", store.applied)
    found = volume.state.inodes.get(ino)
    applied = store.applied
    if agreed is not None:
        if found is None or found.version > agreed:  # what this head alone did to it may be in the store already
            return None
        applied = min(agreed, applied)
    if applied < want.applied:
        return None
    if found is None or not found.is_file:
        return Piece(epoch, ino, want.offset, GONE, b"", applied)
    size = store.size(ino)
    return Piece(epoch, ino, want.offset, size, store.read(ino, want.offset, copying.FETCHED_BYTES, size), applied)
