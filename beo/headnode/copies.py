"""Copies of the output between two heads: the leader's hand that gives them, and the other's that takes them.

Neither holds a connection or reads a clock, so a test can put any network between them. The leader sends what it has
written at once, while its own disk still syncs it; the other answers when its disk has. Both may be killed at any
point, and any message may be lost, doubled or late: a piece says where it belongs and what is before it.

What the other lacks is found in *sessions*: page by page the leader offers the position and the chain of each file,
and the other tells which of its own are otherwise. A session begins anew when the other's life is another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from beo import messages
from beo.errors import BeoError, Conflict, UsageError
from beo.headnode.mirror import Key, Lag, Mirror
from beo.headnode.output import Full, Output
from beo.messages import CHUNK_SIZE_MAX_BYTES, Copied, Copy, Held, Offer, Piece, Wanted

__all__ = ["EXPORTS_MAX", "Export", "Giver", "Taker"]

COPY_SIZE_MAX_BYTES = 1024 * 1024  # of blocks in one message: half of the largest
COPY_PIECES_MAX = 1_000  # in one message
PAGE_FILES = 64  # offered at once: each is opened, at a few tenths of a millisecond, while live output waits
CATCHING_UP_MAX = 256  # files that catch up at the same time, before the next page is offered
TRACKS_MAX = 4_096  # files that are followed though the other says nothing: each costs some of every turn
CALL_S = 1.0  # between calls to a head that doesn't answer, and repetitions of a page
GREET_S = 10.0  # between questions for what the other would go on with: it may have learnt of it late
AWAY_S = 5.0  # without a word for so long, it is gone, and what it has is asked anew when it comes back
EXPORTS_MAX = 10_000  # -o and -e files in one message, at about 15 bytes each; others are asked for another time
DAMAGED_MAX = 10_000  # files that were given up and are remembered, so that each is told of once

Export = tuple[int, int, str]  # job, attempt, "o" or "e"
Send = Callable[[messages.BulkRequest], bool]

log = logging.getLogger("beo.copies")


class Giver:
    """The leader's side, for one epoch. Times are of any clock that doesn't jump."""

    def __init__(self, store: Output, epoch: int, both: bool, session: int, now: float) -> None:
        """`session`: any number that an earlier leader is unlikely to have begun with."""
        self.epoch = epoch
        self.trouble = ""
        self._store = store
        self._ledger = Mirror(both)
        self._session = session
        self._life = 0  # of the other; 0: not known
        self._chains: dict[Key, tuple[int, int]] = {}  # of each track: a position and the chain there
        self._damaged: set[Key] = set()
        self._files: list[Key] = []  # to be offered in this session
        self._offered = 0  # of these
        self._pages = 0
        self._listed = False  # the last page was answered
        self._offer: Offer | None = Offer(epoch, session, 0, ())  # not answered yet; page 0: nobody has answered at all
        self._offer_at = 0.0  # when to send it (again)
        self._offer_since = now
        self._greet_at = now + GREET_S  # when to ask again what is asked with page 0
        self._blocked_since = 0.0  # there is no connection for what is to be sent
        self._heard_at = now

    # ---- what happens

    def grown(self, job: int, attempt: int, before: tuple[int, int], after: int) -> None:
        """This head wrote an attempt's file on, not durable yet; before: (size, chain) as it was."""
        key = job, attempt
        if (self._ledger.both or not self._calling) and key not in self._damaged:
            self._chains.setdefault(key, before)
            self._ledger.grown(key, before[0], after, sure=self._listed)

    def synced(self, job: int, attempt: int, durable: int) -> None:
        """An attempt's file is durable here up to there."""
        self._ledger.synced((job, attempt), durable)
        self._tidy((job, attempt))

    def agree(self, both: bool) -> list[Key]:
        """Wait for the other from now on, or no more; return the attempts of which more may be shown."""
        return self._ledger.agree(both)

    def forget(self, jobs: frozenset[int]) -> None:
        """The output of these jobs was deleted."""
        self._ledger.jobs_gone(jobs)

    def reconnected(self, now: float) -> None:
        """What was under way is lost, perhaps."""
        self._ledger.repeat(now, all_of_it=True)
        self._offer_at = 0.0
        self._greet_at = now

    def hear(self, message: messages.BulkAnswer, now: float) -> set[Key]:
        """Take the other's answer; return the attempts of which more may be shown."""
        if not isinstance(message, Copied | Wanted) or message.epoch != self.epoch:
            return set()
        self._heard_at = now
        if self._life not in (0, message.life):
            log.warning("the other head's store was opened anew: comparing all output")
            self.call(now)
        self._life = message.life
        if isinstance(message, Copied):
            self.tell(message.trouble and f"the other head: {message.trouble}")
            return {key for held in message.files for key in self._take(held, now)}
        if self._offer and (message.session, message.page) == (self._session, self._offer.page):
            self._take_wanted(self._offer, message, now)
        return set()

    # ---- what is sent

    def pump(self, send: Send, now: float) -> None:
        """Send what may be sent of what was written."""
        silent_s = now - self._heard_at if self._waits_since() else 0.0
        if not self._ledger.both and silent_s > (AWAY_S if len(self._ledger) < TRACKS_MAX else CALL_S):
            self.call(now)
        self._ledger.repeat(now)
        if self._calling:
            return
        pieces: list[Piece] = []
        size = 0
        for key, position, tail in self._ledger.due():
            piece = self._read(key, position, tail)
            if piece is None:
                continue
            if size + len(piece.data) > COPY_SIZE_MAX_BYTES or len(pieces) == COPY_PIECES_MAX:
                if not self._send(send, Copy(self.epoch, tuple(pieces)), now):
                    return  # what was to go is sent again in its time
                pieces, size = [], 0
            pieces.append(piece)
            size += len(piece.data)
            self._ledger.sent(key, position + len(piece.data), now)
        if pieces:
            self._send(send, Copy(self.epoch, tuple(pieces)), now)

    def offer(self, send: Send, now: float) -> None:
        """Send the next page of what there is. To be called when all that was written is durable here."""
        if self._offer is None and not self._listed and len(self._ledger) < CATCHING_UP_MAX:
            self._offer, self._offer_at, self._offer_since = self._page(), 0.0, now
        if now >= self._greet_at and not self._calling:
            self._greet_at = now + GREET_S
            send(Offer(self.epoch, self._session, 0, ()))
        if self._offer and now >= self._offer_at:
            sent = self._send(send, self._offer, now)
            self._offer_at = now + (CALL_S if sent else CALL_S / 20)

    def next_at(self, latest: float) -> float:
        """Return when there is something to do though nothing happens, if that is before `latest`."""
        at = self._ledger.next_at(latest)
        return min(at, self._offer_at) if self._offer else at

    def shown(self, job: int, attempt: int, durable: int) -> int:
        """Return up to where readers may see a file that is durable here up to `durable`."""
        return self._ledger.shown((job, attempt), durable)

    def lag(self) -> tuple[Lag, float]:
        """Return how far behind the other is, and since when it owes an answer (0: it doesn't)."""
        missing = self._ledger.missing_bytes() if self._listed else -1
        damaged = f"{len(self._damaged)} damaged files are not copied" if self._damaged else ""
        lag = Lag(self._listed and self._ledger.in_step(), missing, 0.0, self.trouble or damaged)
        return lag, self._waits_since()

    # ---- inside

    @property
    def _calling(self) -> bool:
        return self._offer is not None and self._offer.page == 0

    def _waits_since(self) -> float:
        times = (self._ledger.waits_since(), self._blocked_since, self._offer_since if self._offer else 0.0)
        return min((time for time in times if time), default=0.0)

    def call(self, now: float) -> None:
        """Begin a session: nothing is taken for granted any more."""
        self._session += 1
        self._ledger.doubt(keep=self._ledger.both)
        self._chains.clear()
        self._files, self._listed = [], False
        self._offer, self._offer_at, self._offer_since = Offer(self.epoch, self._session, 0, ()), 0.0, now
        self._life = 0
        self._heard_at = now

    def _send(self, send: Send, message: messages.BulkRequest, now: float) -> bool:
        if send(message):
            self._blocked_since = 0.0
            return True
        self._blocked_since = self._blocked_since or now
        return False

    def tell(self, trouble: str) -> None:
        """Report why copies don't come to the other, or that they do again ("")."""
        if trouble != self.trouble:
            self.trouble = trouble
            if trouble:
                log.error("output is not copied: %s", trouble)
            else:
                log.warning("output is copied again")

    def _page(self) -> Offer:
        assert self._offer is None
        found: list[tuple[int, int, int, int]] = []
        while self._offered < len(self._files) and len(found) < PAGE_FILES:
            key = self._files[self._offered]
            self._offered += 1
            if key in self._ledger:
                found.append((*key, -1, 0))
                continue
            try:
                size, chain = self._store.mark(*key)
            except BeoError as error:
                self._give_up(key, str(error))
                size, chain = -1, 0
            if size:
                found.append((*key, size, chain))
        self._pages += 1
        return Offer(self.epoch, self._session, self._pages, tuple(found), self._offered == len(self._files))

    def _take_wanted(self, offer: Offer, wanted: Wanted, now: float) -> None:
        self._offer = None
        self._listed = offer.last
        if offer.page == 0:
            self._files, self._offered, self._pages = self._store.files(), 0, 0
        mine = {file[:2] for file in offer.files}
        for held in wanted.files:
            key = held.job, held.attempt
            if key in mine and key not in self._ledger and key not in self._damaged:
                self._part(held, now)

    def _take(self, held: Held, now: float) -> list[Key]:
        key = held.job, held.attempt
        if held.refused:
            self._give_up(key, f"the other head says: {held.refused}")
        elif not held.probes:
            self._ledger.heard(key, held.have, now)
        elif key in self._ledger:
            self._part(held, now)
        self._tidy(key)
        return [key]

    def _tidy(self, key: Key) -> None:
        if key not in self._ledger:
            self._chains.pop(key, None)

    def _part(self, held: Held, now: float) -> None:
        """The other's file is otherwise: go on from where it is the same."""
        key = held.job, held.attempt
        try:
            size, common = self._store.size(*key), self._store.common(held)
        except BeoError as error:
            self._give_up(key, str(error))
            return
        self._chains.pop(key, None)
        if size:
            self._ledger.parted(key, common, size, held.probes[0][1] if held.probes else 0, now)
        else:
            self._ledger.drop(key)

    def _read(self, key: Key, position: int, tail: int) -> Piece | None:
        try:
            at, chain = self._chains.get(key, (-1, 0))
            if at != position:
                known = self._store.chain_at(*key, position)
                if known is None:
                    raise UsageError(f"no block of output ends at {position}", "", "look for a failing disk")
                chain = known
            data, behind = self._store.blocks(*key, position, chain, CHUNK_SIZE_MAX_BYTES)
            last = position + len(data) == self._store.size(*key)
        except BeoError as error:
            self._give_up(key, str(error))
            return None
        self._chains[key] = position + len(data), behind
        return Piece(*key, position, chain, data, tail if last else 0)

    def _give_up(self, key: Key, why: str) -> None:
        self._ledger.drop(key)
        self._chains.pop(key, None)
        if key not in self._damaged and len(self._damaged) < DAMAGED_MAX:
            self._damaged.add(key)
            log.error("output of job %d.%d is not copied to the other head: %s", *key, why)


class Taker:
    """The other side: takes the leader's files. What it says is true when the store is synced."""

    def __init__(self, store: Output, life: int, exports: Callable[[], list[Export]] = list) -> None:
        """`life`: a number of this opening of the store, not 0. exports: which files it would go on with."""
        self.epoch = 0
        self._store = store
        self._exports = exports
        self._life = life
        self._session = 0
        self._unseen: set[Key] = set()  # files that were here when the session began and weren't named since
        self._held: dict[bytes, dict[Key, Held]] = {}
        self._wanted: list[tuple[bytes, Wanted]] = []
        self._trouble = ""

    def follow(self, epoch: int) -> None:
        """Take from the leader of this epoch or a later one."""
        if epoch > self.epoch:
            self.epoch = epoch
            self._session = 0
            self._unseen.clear()
            self._store.distrust()
            self.clear()

    def clear(self) -> None:
        """Say nothing more of what was taken: this head follows no more."""
        self._held.clear()
        self._wanted.clear()

    def take(self, peer: bytes, message: Copy | Offer) -> None:
        """Do what the leader says; raises Conflict where it leads no more."""
        if message.epoch < self.epoch:
            why = f"this head follows epoch {self.epoch}"
            raise Conflict(f"a leader of epoch {message.epoch} is one no more", why, "let it see the other head")
        self.follow(message.epoch)
        if isinstance(message, Offer):
            self._compare(peer, message)
            return
        held = self._held.setdefault(peer, {})
        for piece in message.pieces:
            key = piece.job, piece.attempt
            self._unseen.discard(key)
            try:
                held[key] = self._store.copy(piece)
                self._trouble = "" if piece.data and not held[key].probes else self._trouble
            except Full as error:
                self._tell(str(error))
            except UsageError as error:
                held[key] = Held(*key, 0, (), str(error))

    def answers(self) -> list[tuple[bytes, Copied | Wanted]]:
        """Return (peer, answer) to all that was taken; call it when that is durable."""
        found: list[tuple[bytes, Copied | Wanted]] = [
            (peer, Copied(self.epoch, self._life, tuple(held.values()), self._trouble))
            for peer, held in self._held.items()
        ]
        found += self._wanted
        self.clear()
        return found

    def _tell(self, trouble: str) -> None:
        if not self._trouble:
            log.error("no copy is taken: %s", trouble)
        self._trouble = trouble

    def _compare(self, peer: bytes, offer: Offer) -> None:
        if offer.page == 0 and offer.session != self._session:
            self._session = offer.session
            self._unseen = set(self._store.files())
        found: list[Held] = []
        for job, attempt, size, chain in offer.files:
            self._unseen.discard((job, attempt))
            try:
                held = None if size < 0 else self._store.compare(job, attempt, size, chain)
            except Full as error:
                self._tell(str(error))
                self._held.setdefault(peer, {})
                return  # no answer but this: it asks again
            if held:
                found.append(held)
        if offer.last and offer.session == self._session:
            self._put_aside()
        exports = self._exports()[:EXPORTS_MAX] if offer.page == 0 else []
        wanted = Wanted(self.epoch, self._life, offer.session, offer.page, tuple(found), tuple(exports))
        self._wanted.append((peer, wanted))

    def _put_aside(self) -> None:
        """What the leader doesn't know is nobody's: no reader has seen it, no node was told that it is kept."""
        for key in sorted(self._unseen):
            try:
                self._store.put_aside(*key)
            except Full as error:
                log.warning("output of %d.%d should be put aside: %s", *key, error)
        self._unseen.clear()
