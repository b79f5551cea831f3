"""The part of the tree's process while its head leads: it answers, and gives the other head its log."""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from collections.abc import Callable

import msgspec

from beo import snapshots, votes, wire
from beo.bulk import words
from beo.bulk.desk import Chunk, Desk
from beo.errors import BeoError
from beo.ha.sending import Sender
from beo.tree import copying
from beo.tree import words as w
from beo.tree.copying import Condition, Data, Piece, Want, Window
from beo.tree.core import Append, Core, Effect, Say, SayData, SaySpace, Speech
from beo.tree.decide import INODES_MAX, Room
from beo.tree.tie import Role
from beo.tree.volume import Volume

HEARTBEAT_S = 0.1  # to the other head, while there is nothing to copy
ROOM_EVERY_S = 0.2
BACKLOG_MAX_BYTES = 32 << 20  # more is not taken in before some of it is on the disk

_ALL = Room()

log = logging.getLogger("beo.tree")


class Leader:
    """Who serves the tree, in one epoch. For one thread."""

    def __init__(
        self,
        volume: Volume,
        role: Role,
        answer: Callable[[bytes, int, w.Answer], None],
        room: Room = _ALL,
        desk: Desk | None = None,
    ) -> None:
        """Serve this volume; answer(peer, number, answer) sends. room: what a user may have of it; desk: for chunks."""
        self._volume = volume
        self._answer = answer
        self._epoch = role.epoch
        self._both = False
        self._alone = 0  # up to this entry everything was acknowledged while nothing waited for the other head
        self.until_s = role.until_s
        self.trouble = ""
        self._core = Core(volume.state, time.monotonic())
        self._core.room = room
        if desk:
            desk.lead()
            self._desk = desk
            self._core.attend(words.Who, self._who)
        self._other: wire.Connection | None = None
        self._window = Window(volume.log, volume.segments.size)
        self._sender = Sender(self._window, time.monotonic())
        self._condition: Condition | None = None
        self._heartbeat_s = self._room_s = 0.0
        self._told = 0  # the commit that the other head was told last
        self._ready: deque[Speech] = deque()  # to be said as soon as this head is sure to act

    # ---- the other head

    def direct(self, other: wire.Connection | None, role: Role, poller: wire.Poller) -> None:
        """Take a changed role of the same epoch; other: a new connection, if the other head is elsewhere now."""
        if role.both and not self._both:
            self._alone = self._volume.log.last.idx  # of what is in the log, an earlier life may have said anything
        self._both = role.both
        if other or not role.other:
            self._hang_up(poller)
            self._other = other
            self._meet()

    def _meet(self) -> None:
        now_s = time.monotonic()
        self._window = Window(self._volume.log, self._volume.segments.size)
        self._sender = Sender(self._window, now_s)
        self._condition = None

    def lag(self, now_s: float) -> tuple[bool, int, float]:
        """Return whether the other head has everything, what it lacks (-1: not known), and for how long it is stuck."""
        if not self._other or not self._condition or not self._sender.agreed:
            # What nobody was told while this head went alone can't be missing there.
            return self._both and not self._alone, -1, now_s - self._sender.progress_s
        stale = self._condition.stale
        # Which inodes are stale is known by what it last said of them: that must be of after it had everything.
        match = min(self._sender.match, self._condition.match)
        in_step = self._both and not stale and match >= self._alone
        return in_step, self._sender.lag + stale, self._stuck_s(now_s)

    def _stuck_s(self, now_s: float) -> float:
        return now_s - self._sender.progress_s if self._sender.lag else 0.0

    def _hear_other(self, other: wire.Connection) -> None:
        while received := other.receive():
            try:
                word = copying.to_leader.decode(received[1])
            except msgspec.MsgspecError:
                continue
            now_s = time.monotonic()
            match word:
                case votes.Appended() if word.epoch == self._epoch:
                    if word.member != self._sender.member:
                        self._window.again(0)
                    before = self._sender.next
                    self._sender.heard(word, now_s)
                    self._window.matched(self._sender.match)
                    if self._sender.next < before:
                        self._window.again(self._sender.next - 1)
                case votes.Parted() if word.epoch == self._epoch:
                    self._sender.parted(word, now_s)
                case Condition() if word.epoch == self._epoch:
                    self._condition = word
                    self.trouble = word.trouble
                case Want() if word.epoch == self._epoch:
                    self._give(other, word)
                case _:
                    continue

    def _give(self, other: wire.Connection, want: Want) -> None:
        store, state = self._volume.store, self._volume.state
        if store.applied < want.applied or want.ino in self._volume.stale:
            return  # it is asked for again
        found = state.inodes.get(want.ino)
        if found is None or not found.is_file:
            other.send(0, copying.encode(Piece(self._epoch, want.ino, 0, -1, b"", store.applied)))
            return
        size = store.size(want.ino)
        data = store.read(want.ino, want.offset, copying.FETCHED_BYTES, size)
        other.send(0, copying.encode(Piece(self._epoch, want.ino, want.offset, size, data, store.applied)))

    def _copy(self, other: wire.Connection) -> None:
        now_s = time.monotonic()
        before = self._sender.next
        if self._sender.needs_snapshot:
            self._offer()
        for message in self._sender.due("", self._epoch, now_s, 0.0, self._commit()):
            if isinstance(message, votes.Append):
                self._send_data(other, message)
            other.send(0, copying.encode(message))
            self._heartbeat_s, self._told = now_s + HEARTBEAT_S, self._commit()
        if self._sender.next < before:  # nothing was heard of it for too long
            self._window.again(self._sender.next - 1)
        if now_s >= self._heartbeat_s or self._told != self._commit():
            self._heartbeat_s, self._told = now_s + HEARTBEAT_S, self._commit()
            word = self._sender.heartbeat("", self._epoch, now_s, 0.0, self._told, (0, b""))
            other.send(0, copying.encode(word))

    def _send_data(self, other: wire.Connection, message: votes.Append) -> None:
        for index in range(message.previous.idx + 1, message.previous.idx + 1 + len(message.entries)):
            if self._volume.has_data(index):
                other.send(0, copying.encode(Data(self._epoch, index, self._volume.data(index))))

    def _offer(self) -> None:
        newest = self._volume.journal.newest_snapshot()
        if not newest:
            return
        stamp, path = newest
        try:
            data = snapshots.read(path, stamp).state
        except BeoError as error:
            log.error("the other head can't be sent a snapshot of the tree: %s", error)
            return
        self._sender.offer(votes.Part("", self._epoch, stamp.position, 0, len(data), b""), data)

    def _commit(self) -> int:
        """Up to which entry everything is durable wherever it has to be."""
        durable = self._volume.journal.durable_index
        if not self._both:
            return durable
        return min(durable, self._sender.match) if self._sender.agreed else min(durable, self._volume.committed)

    # ---- whoever asks

    def ask(self, peer: bytes, ask: w.Ask) -> None:
        """Take a question."""
        self._perform(self._core.ask(peer, ask, time.monotonic(), time.time_ns()))

    def _who(self, peer: bytes, ask: w.Ask) -> w.Answer:
        """Tell a node where chunks are. It is said when the tree that was looked at is in the store, bytes and all."""
        who = ask.question
        assert isinstance(who, words.Who)
        chunks = {name: chunk for name in who.wants[: words.WANTS_MAX] if (chunk := self._chunk(name))}
        return self._desk.answer(who, chunks, time.monotonic(), time.time())

    def _chunk(self, name: bytes) -> Chunk | None:
        try:
            uid, _ = words.parts_of(name)
            ino = self._volume.state.walk(words.path_of(name))
        except ValueError:
            return None
        found = self._volume.state.inodes.get(ino)
        if not found or not found.is_file or found.uid not in (0, uid) or found.size > words.CHUNK_MAX_BYTES:
            return None
        return Chunk(ino, found.size, ino not in self._volume.stale)

    @property
    def has_backlog(self) -> bool:
        """Whether no more is to be taken in before some of what was taken is on the disk."""
        return self._volume.pending_bytes > BACKLOG_MAX_BYTES

    def turn(self) -> None:
        """Do what is to be done after what has come."""
        if self._other:
            self._hear_other(self._other)
            self._copy(self._other)
        commit = self._commit()
        self._volume.commit(commit)
        self._ready.extend(self._core.durable(min(commit, self._volume.store.applied)))
        if self._ready and time.clock_gettime(time.CLOCK_BOOTTIME) < self.until_s:
            while self._ready:
                self._say(self._ready.popleft())

    def tick(self, now_s: float) -> None:
        """Let time pass."""
        if now_s >= self._room_s:
            self._room_s = now_s + ROOM_EVERY_S
            free = self._volume.room_bytes()
            if self._both and self._condition:
                free = min(free, self._condition.free_bytes)
            self._core.room = msgspec.structs.replace(self._core.room, free_bytes=free)
        if not self.has_backlog:  # else nobody is heard, and nobody's silence counts
            self._perform(self._core.tick(now_s, time.time_ns()))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Append):
                self._volume.append(self._epoch, effect.change)

    def _say(self, speech: Speech) -> None:
        match speech:
            case Say():
                answer = speech.answer
            case SayData():
                answer = self._read(speech)
            case SaySpace():
                answer = self._space()
        self._answer(speech.peer, speech.number, answer)

    def _read(self, speech: SayData) -> w.Answer:
        if speech.ino in self._volume.stale:
            return w.Failed(errno.EIO)
        found = self._volume.state.inodes.get(speech.ino)
        if found is None:
            return w.Failed(errno.ESTALE)
        try:
            return w.DataIs(self._volume.store.read(speech.ino, speech.offset, speech.size, speech.length))
        except OSError as error:
            log.error("can't read %s: %s", self._volume.store.path(speech.ino), error)
            return w.Failed(errno.EIO)

    def _space(self) -> w.Answer:
        total, _, _, _ = self._volume.store.space()
        if self._both and self._condition:
            total = min(total, self._condition.total_bytes)
        files = len(self._volume.state.inodes)
        return w.SpaceIs(total, self._core.room.free_bytes, INODES_MAX, max(0, INODES_MAX - files))

    def close(self, poller: wire.Poller) -> None:
        """Serve no more; whoever waits for an answer is sent elsewhere, to ask again."""
        for speech in (*self._ready, *self._core.unanswered()):
            self._answer(speech.peer, speech.number, w.Elsewhere())
        self._ready.clear()
        self._hang_up(poller)

    def _hang_up(self, poller: wire.Poller) -> None:
        if self._other:
            self._other.unregister(poller)
            self._other.close()
