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
from beo.settings import Level
from beo.tree import copying
from beo.tree import words as w
from beo.tree.copying import Condition, Data, Piece, Received, Want, Window
from beo.tree.core import Append, Core, Effect, Say, SayData, SaySpace, Speech
from beo.tree.decide import INODES_MAX, Room
from beo.tree.fetching import Fetching, give
from beo.tree.paths import path_of
from beo.tree.tie import Role
from beo.tree.volume import Volume

HEARTBEAT_S = 0.1  # to the other head, while there is nothing to copy
ROOM_EVERY_S = 0.2
FETCH_MAX_S = 10.0  # so long who reads waits for bytes that are on the other head alone; then it is an error
TOLD_MAX = 100  # files that the log names
BACKLOG_MAX_BYTES = 32 << 20  # more is not taken in before some of it is on the disk

_ALL = Room()

log = logging.getLogger("beo.tree")


class Leader:
    """Who serves the tree, in one epoch. For one thread."""

    def __init__(
        self,
        volume: Volume,
        role: Role,
        answer: Callable[[bytes, int, w.Told], None],
        room: Room = _ALL,
        calm_s: float = 0.0,
        level: Level = "C",
        desk: Desk | None = None,
    ) -> None:
        """Serve this volume; answer(peer, number, answer) sends. room: what a user may have of it. calm_s: for so long
        leases may last that an earlier server has given. level: where a change has to be before it is acknowledged,
        while both heads are in step. desk: for chunks."""
        self._volume = volume
        self._level = level
        volume.was_whole = True
        self._answer = answer
        self._epoch = role.epoch
        self._both = False
        self._alone = 0  # up to this entry everything was acknowledged while nothing waited for the other head
        self.until_s = role.until_s
        self.trouble = ""
        now_s = time.monotonic()
        self._core = Core(volume.state, now_s, time.time_ns(), now_s + calm_s)
        self._core.room = room
        if desk:
            desk.lead()
            self._desk = desk
            self._core.attend(words.Who, self._who)
        self._other: wire.Connection | None = None
        self._window = Window(volume.log, volume.segments.size)
        self._sender = Sender(self._window, time.monotonic())
        self._condition: Condition | None = None
        self._received = 0  # up to here the other head has everything, be it durable or not
        self._fetching = Fetching(volume, self._want, volume.log.last.idx)
        self._reads: dict[tuple[bytes, int], tuple[SayData, float]] = {}  # of what is being fetched, and until when
        self._told_stale: dict[int, bool] = {}  # inodes of which a person was told that their bytes are not here
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
        self._received = 0
        self._fetching.begin_anew()

    def lag(self, now_s: float) -> tuple[bool, int, float]:
        """Return whether the other head has everything, what it lacks (-1: not known), and for how long it is stuck."""
        if not self._other or not self._condition or not self._sender.agreed:
            # What nobody was told while this head went alone can't be missing there.
            return self._both and not self._alone, -1, now_s - self._sender.progress_s
        stale = self._condition.stale
        # Which inodes are stale is known by what it last said of them: that must be of after it had everything.
        match = min(self._sender.match, self._condition.match)
        own = self._fetching.missing  # what this head has to get from there, it would lose with that one
        in_step = self._both and not stale and not own and match >= self._alone
        return in_step, self._sender.lag + stale + own, self._stuck_s(now_s)

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
                        self._received = 0
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
                case Received() if word.epoch == self._epoch and word.life == self._sender.member:
                    self._received = max(self._received, word.index)
                case Want() if word.epoch == self._epoch:
                    if piece := give(self._volume, word):
                        other.send(0, copying.encode(piece))
                case Piece() if word.epoch == self._epoch:
                    self._fetching.put(word, now_s)
                case _:
                    continue

    def _want(self, word: Want) -> None:
        if self._other:
            self._other.send(0, copying.encode(word))

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
        if not self._both or self._level == "A":
            return durable
        there = max(self._sender.match, self._received) if self._level == "B" else self._sender.match
        return min(durable, there) if self._sender.agreed else min(durable, self._volume.committed)

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
            self._fetching.ask(self._epoch, self._volume.log.last.idx, time.monotonic())
        commit = self._commit()
        self._volume.commit(commit)
        self._ready.extend(self._core.durable(min(commit, self._volume.store.applied), time.monotonic()))
        waits = self._ready or self._reads
        if waits and (left_s := self.until_s - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
            while self._ready:
                self._say(self._ready.popleft(), left_s)
            self._read_again(time.monotonic())

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

    def _say(self, speech: Speech, left_s: float) -> None:
        answer: w.Told
        match speech:
            case Say():
                answer = speech.answer
                if isinstance(answer, w.Leased) and left_s < answer.lease_s:  # no longer than no other head can act
                    answer = msgspec.structs.replace(answer, lease_s=left_s)
            case SayData() if speech.ino in self._volume.stale:
                self._await_bytes(speech)
                return
            case SayData():
                answer = self._read(speech)
            case SaySpace():
                answer = self._space()
        self._answer(speech.peer, speech.number, answer)

    # ---- what is stale here

    def _await_bytes(self, speech: SayData) -> None:
        """Who reads what is being fetched waits for it; what no head that can be asked has is an error."""
        self._reads.setdefault((speech.peer, speech.number), (speech, time.monotonic() + FETCH_MAX_S))

    def _read_again(self, now_s: float) -> None:
        for key, (speech, until_s) in list(self._reads.items()):
            stale = speech.ino in self._volume.stale
            if stale and self._other and speech.ino not in self._fetching.lost and now_s < until_s:
                continue
            del self._reads[key]
            if stale:
                self._tell_stale(speech.ino)
            self._answer(speech.peer, speech.number, w.Failed(errno.EIO) if stale else self._read(speech))

    def _tell_stale(self, ino: int) -> None:
        if ino in self._told_stale or len(self._told_stale) >= TOLD_MAX:
            return
        self._told_stale[ino] = True
        what = f"{path_of(self._volume.state, ino)} (inode {ino}) can't be read"
        why, cure = "its bytes are not here, but on the other head", "start that one; or put it anew, or remove it"
        if ino in self._fetching.lost:
            why, cure = "neither head has all its bytes", "put it anew, or remove it"
        log.error("%s", BeoError(what, why, cure))

    @property
    def stale(self) -> str:
        """What a person should know of it."""
        count = len(self._volume.stale)
        if not count:
            return ""
        lost = len(self._fetching.lost)
        if lost:
            return (
                f"of {lost} file(s) neither head has all bytes: put them anew, or remove them; the log has their names"
            )
        return f"{count} file(s) of the tree are not whole here" + (
            ", and are being fetched from the other head" if self._other else ": start the other head"
        )

    def _read(self, speech: SayData) -> w.Answer:
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
        reads = [speech for speech, _ in self._reads.values()]
        for speech in (*self._ready, *reads, *self._core.unanswered()):
            self._answer(speech.peer, speech.number, w.Elsewhere())
        self._ready.clear()
        self._reads.clear()
        self._hang_up(poller)

    def _hang_up(self, poller: wire.Poller) -> None:
        if self._other:
            self._other.unregister(poller)
            self._other.close()
