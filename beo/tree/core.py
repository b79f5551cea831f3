"""Who serves the tree, as a pure core: questions in, changes for the log and answers out.

It decides on the newest tree, of which a part may not be durable yet; every answer waits for what it was decided on.
Besides the tree it knows what need not outlive this head: who waits for a lock, and what is open where (each session
says that anew to a new head, and inodes without a name are kept until it has had time to).
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from beo.tree import decide, leases, locks
from beo.tree.changes import Began, Change, Ended, Locked, Moved, Reaped, Removed, Settled
from beo.tree.decide import READ, WRITE, Refuse, Room
from beo.tree.leases import Hold, Leases
from beo.tree.locks import Held
from beo.tree.state import Inode, State
from beo.tree.words import (
    CHANGING,
    DATA_MAX_BYTES,
    ENTRIES_MAX,
    WAITING_TOLD_MAX,
    WHOLE,
    Allocate,
    Answer,
    Ask,
    Attr,
    AttrIs,
    Begin,
    Blocker,
    BlockerIs,
    CancelLock,
    Close,
    Done,
    Failed,
    Get,
    Leased,
    Leave,
    Link,
    List,
    Listing,
    Lock,
    Look,
    Make,
    Named,
    Open,
    Over,
    Present,
    Question,
    Read,
    Recall,
    Recalled,
    Remove,
    Rename,
    Set,
    Space,
    Target,
    TargetIs,
    Told,
    Unlock,
    Write,
    Written,
)

SILENT_S = 15.0  # then a session that holds something is over: five times what it may be silent for
FORGET_S = 3_600.0  # then a session that holds nothing is over
GRACE_S = 30.0  # after which a new head believes that it knows everything that is open
REAPED_MAX = 1_000  # inodes in one entry
SESSIONS_MAX = 20_000  # a hundred for each of 200 nodes
ANSWERED_MAX = 1_000_000  # answers kept for one session that doesn't say that it has them
SETTLE_EVERY = 10_000  # questions, of a session of which one waits: then it is written down that the others are settled
WAITING_MAX = 10_000  # for locks
OPEN_MAX = 1_000_000  # inodes that one session says are open
EXPIRE_EVERY_S = 1.0
AMPLE_BYTES = 256 << 20  # of room: what thirty nodes may have written of which they have no answer yet


# ---- effects


@dataclass(frozen=True, slots=True)
class Append:
    """This change is the log's next entry; the core's tree has it already."""

    change: Change


@dataclass(frozen=True, slots=True)
class Say:
    """Answer a question; session: or, with number 0, tell it something unasked."""

    peer: bytes
    number: int
    answer: Told
    session: str = ""


@dataclass(frozen=True, slots=True)
class SayData:
    """Answer a question with bytes of an inode that has `length`."""

    peer: bytes
    number: int
    ino: int
    offset: int
    size: int
    length: int


@dataclass(frozen=True, slots=True)
class SaySpace:
    """Answer a question with the room that there is."""

    peer: bytes
    number: int


Speech = Say | SayData | SaySpace
Effect = Append | Speech


class _Client:
    """What this head knows of a session."""

    def __init__(self, now_s: float) -> None:
        self.heard_s = now_s
        self.peer = b""  # over which connection it was heard last
        self.open: dict[int, int] = {}  # inode -> number of the question that opened it last
        self.has_presented = False  # has said to this head what it has open


class _Waiting(msgspec.Struct):
    """Who waits for a lock."""

    peer: bytes
    ask: Ask
    lock: Lock

    @property
    def number(self) -> int:
        """The question's."""
        return self.ask.number


class _Parked:
    """Who waits for others to forget what he wants to change."""

    def __init__(self, peer: bytes, ask: Ask, holds: list[Hold]) -> None:
        self.peer, self.ask, self.number = peer, ask, ask.number
        self.holds = dict.fromkeys(holds, True)


_START: Hold = ("", 0)  # what everybody waits for whose change might touch a lease of an earlier server


class Core:
    """The server of one tree, for as long as this head leads."""

    def __init__(self, state: State, now_s: float, life: int = 0, calm_until_s: float = 0.0) -> None:
        """Serve this tree from now on. life: see `Leases`. calm_until_s: for so long leases of an earlier server may
        last."""
        self.state = state
        self.room = Room()
        self._began_s = now_s
        self._clients = {session: _Client(now_s) for session in state.sessions}
        self._opened: dict[int, dict[str, bool]] = {}  # inode -> sessions that have it open
        self._waiting: dict[int, deque[_Waiting]] = {}  # inode -> who waits for a lock on it, in order
        self._held: deque[tuple[int, Speech]] = deque()  # (entry that it waits for, what to say then)
        self._leases = Leases(life)
        self._calm_until_s = calm_until_s
        self._parked: dict[tuple[str, int], _Parked] = {}  # by session and number
        self._parked_by: dict[Hold, list[_Parked]] = {}
        self._is_new = True  # the question that is being answered hasn't been before
        self._expire_s = self._ticked_s = now_s
        self._out: list[Effect] = []
        self._answers: dict[type, Callable[[bytes, Ask], Answer | Speech | None]] = {
            Look: self._look,
            Get: self._get,
            List: self._list,
            Target: self._target,
            Read: self._read,
            Space: lambda peer, ask: SaySpace(peer, ask.number),
            Open: self._open,
            Close: self._close,
            Lock: self._lock,
            Blocker: self._blocker,
            Unlock: self._unlock,
            CancelLock: self._cancel,
            Present: self._present,
            Recalled: self._recalled,
            Leave: self._leave,
        }
        for kind in CHANGING:
            self._answers[kind] = self._change

    def attend(self, kind: type, answer: Callable[[bytes, Ask], Answer]) -> None:
        """Let somebody else answer a kind of question, when everything that he may have looked at is durable."""
        self._answers[kind] = answer

    def ask(self, peer: bytes, ask: Ask, now_s: float, now_ns: int) -> list[Effect]:
        """Take a question; return what follows from it."""
        self._out = []
        self._now_s, self._now_ns = now_s, now_ns
        if self._parked and now_s >= self._calm_until_s:
            self._release([_START])  # who has waited for that comes first
        answer = self._begin(ask) if isinstance(ask.question, Begin) else self._answer(peer, ask)
        if answer is not None:
            self._say(peer, ask, answer)
        return self._out

    def durable(self, index: int, now_s: float) -> list[Speech]:
        """Everything up to an entry is durable where it has to be: return what may be said now, and is at once."""
        said = []
        while self._held and self._held[0][0] <= index:
            speech = self._held.popleft()[1]
            if isinstance(speech, Say) and isinstance(speech.answer, Recall):
                self._leases.told(speech.session, speech.answer.inos, now_s)
            said.append(speech)
        return said

    def unanswered(self) -> list[Speech | _Waiting | _Parked]:
        """Who waits for an answer, be it until something is durable, for a lock, or for others to forget: all are given
        up by this."""
        waiting = [one for queue in self._waiting.values() for one in queue]
        given_up = [*(speech for _, speech in self._held), *waiting, *self._parked.values()]
        self._held.clear()
        self._waiting.clear()
        self._parked.clear()
        return [one for one in given_up if one.number]

    def tick(self, now_s: float, now_ns: int) -> list[Effect]:
        """Let time pass: sessions end, and inodes that nobody has any more go."""
        self._out = []
        self._now_s, self._now_ns = now_s, now_ns
        self._forgive(now_s - self._ticked_s - EXPIRE_EVERY_S)
        self._ticked_s = now_s
        self._release(self._leases.over(now_s))
        if self._parked and now_s >= self._calm_until_s:
            self._release([_START])
        if now_s >= self._expire_s:
            self._expire_s = now_s + EXPIRE_EVERY_S
            for session, client in list(self._clients.items()):
                silent_s = now_s - client.heard_s
                if silent_s > FORGET_S or (silent_s > SILENT_S and (client.open or self._has_locks(session))):
                    self._end(session)
        self._reap()
        return self._out

    def _forgive(self, slept_s: float) -> None:
        """While this head slept, or took nothing in, nobody could be heard: that is no silence of theirs."""
        if slept_s > 0:
            self._began_s += slept_s
            for client in self._clients.values():
                client.heard_s += slept_s

    # ---- one question

    def _answer(self, peer: bytes, ask: Ask) -> Answer | Speech | None:
        client = self._clients.get(ask.session)
        if client is None:
            return Over()
        client.heard_s = self._now_s
        client.peer = peer
        session = self.state.sessions[ask.session]
        if session.is_settled(ask.number):
            return None  # a copy that comes late, over an earlier connection: its answer came long ago
        if ask.beyond - session.beyond >= SETTLE_EVERY and len(ask.waiting) <= WAITING_TOLD_MAX:
            self._append(Settled(ask.session, 0, 0, self._now_ns, ask.beyond, ask.waiting))
        if len(session.answered) >= ANSWERED_MAX:
            return Failed(errno.ENOBUFS)
        handler = self._answers.get(type(ask.question))
        if handler is None:
            return Failed(errno.ENOSYS)
        if (parked := self._parked.get((ask.session, ask.number))) is not None:
            parked.peer = peer  # asked again, over another connection
            return None
        self._is_new = self._known(ask) is None
        if self._leases.alone and self._must_wait_to_see(peer, ask):
            return None
        try:
            return handler(peer, ask)
        except Refuse as refused:
            return Failed(refused.errno)

    def _say(self, peer: bytes, ask: Ask, answer: Answer | Speech) -> None:
        speech = answer if isinstance(answer, Speech) else Say(peer, ask.number, self._lease(ask, answer))
        self._held.append((self.state.index, speech))

    def _append(self, change: Change) -> int:
        about = self.state.apply(change)
        self._out.append(Append(change))
        return about

    def _known(self, ask: Ask) -> int | None:
        """Return what a question came to, if it was answered before; None where it is new."""
        session = self.state.sessions[ask.session]
        return session.answered.get(ask.number)

    def _change(self, peer: bytes, ask: Ask) -> Answer | None:
        about = self._known(ask)
        if about is None:
            change = decide.decide(self.state, ask, self._now_ns, self.room)
            if change is not None and self._must_wait(peer, ask, change):
                return None
            if change is not None:
                about = self._append(change)
                if isinstance(change, Removed | Moved):
                    self._reap()
            else:
                about = getattr(ask.question, "ino", 0)
        if isinstance(ask.question, decide.NAMES_ONLY):
            return Done()
        if about not in self.state.inodes:  # it was done, and then somebody took it away
            return Failed(errno.ESTALE)
        attr = self.state.attr(about)
        return Written(attr) if isinstance(ask.question, Write) else AttrIs(attr)

    # ---- leases

    def _lease(self, ask: Ask, answer: Answer) -> Told:
        """What is answered, with a lease where that is wished for."""
        if not ask.remembers or not (inos := _told_of(ask.question, answer, self._is_new)):
            return answer
        granted = self._leases.grant(ask.session, inos, self._now_s)
        self._recall(self._leases.surplus(ask.session))
        alone = isinstance(answer, Written) and answer.attr.ino in granted and self._is_alone(ask.session, answer.attr)
        return Leased(answer, granted, self._leases.recalls(ask.session), leases.LEASE_S, alone)

    def _is_alone(self, session: str, attr: Attr) -> bool:
        """Whether a session may hold a file alone that it has written; not where there is little room, as whoever gets
        no more shall hear that at once."""
        if len(self._opened.get(attr.ino, ())) > 1 or not decide.has_room(self.state, attr.uid, self.room, AMPLE_BYTES):
            return False
        return session in self._opened.get(attr.ino, ()) and self._leases.leave_alone(session, attr.ino)

    def _must_wait_to_see(self, peer: bytes, ask: Ask) -> bool:
        """Whether somebody else holds alone what this question is about: it is answered when he doesn't any more."""
        holds = self._leases.in_sight(ask.session, self._in_sight_of(ask.question))
        return bool(holds) and self._park(peer, ask, holds)

    def _in_sight_of(self, question: Question) -> Iterable[int]:
        """The inodes of which the answer might tell something."""
        match question:
            case Look():
                found = self.state.inodes.get(question.parent)
                return (found.children or {}).get(question.name, (0, 0))[:1] if found else ()
            case List():
                found = self.state.inodes.get(question.ino)
                return [ino for ino, _ in _page(found, question)[0].values()] if found and found.is_dir else ()
            case Get() | Read() | Open() | Write() | Set() | Allocate() | Link():
                return (question.ino,)
            case _:
                return ()

    def _must_wait(self, peer: bytes, ask: Ask, change: Change) -> bool:
        """Whether others have to forget something before this change; then it is tried anew when they have."""
        inos = leases.touched(self.state, change)
        holds = self._leases.in_the_way(ask.session, inos)
        if self._now_s < self._calm_until_s:
            holds.append(_START)
        return bool(holds) and self._park(peer, ask, holds)

    def _park(self, peer: bytes, ask: Ask, holds: list[Hold]) -> bool:
        """Let a question wait until these leases are taken back."""
        parked = self._parked[ask.session, ask.number] = _Parked(peer, ask, holds)
        for hold in parked.holds:
            self._parked_by.setdefault(hold, []).append(parked)
        self._recall([hold for hold in holds if hold != _START])
        return True

    def _recall(self, holds: list[Hold]) -> None:
        for session, inos in self._leases.recall(holds, self._now_s).items():
            word = Recall(tuple(inos), self._leases.recalls(session))
            self._held.append((self.state.index, Say(self._clients[session].peer, 0, word, session)))

    def _recalled(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, Recalled)
        self._release(self._leases.forgotten(ask.session, ask.question.inos, ask.question.recalls))
        return Done()

    def _release(self, holds: list[Hold]) -> None:
        """Nobody remembers this any more: go on with whoever waited for it."""
        for hold in holds:
            for parked in self._parked_by.pop(hold, ()):
                del parked.holds[hold]
                key = parked.ask.session, parked.number
                if not parked.holds and self._parked.get(key) is parked:
                    del self._parked[key]
                    answer = self._answer(parked.peer, parked.ask)
                    if answer is not None:
                        self._say(parked.peer, parked.ask, answer)

    # ---- reading

    def _look(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, Look)
        ino = decide.find(self.state, ask.caller, ask.question.parent, ask.question.name)
        return AttrIs(self.state.attr(ino))

    def _get(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, Get)
        decide.inode(self.state, ask.question.ino)
        return AttrIs(self.state.attr(ask.question.ino))

    def _list(self, peer: bytes, ask: Ask) -> Answer:
        wish = ask.question
        assert isinstance(wish, List)
        found = decide.folder(self.state, wish.ino)
        decide.check(ask.caller, found, READ)
        if wish.limit < 1:
            raise Refuse(errno.EINVAL)
        assert found.children is not None
        page, is_last = _page(found, wish)
        entries = tuple(Named(name, place, self.state.attr(ino)) for name, (ino, place) in page.items())
        return Listing(entries, found.parent, is_last)

    def _target(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, Target)
        found = decide.inode(self.state, ask.question.ino)
        if not found.target:
            raise Refuse(errno.EINVAL)
        return TargetIs(found.target)

    def _read(self, peer: bytes, ask: Ask) -> Speech:
        wish = ask.question
        assert isinstance(wish, Read)
        found = decide.inode(self.state, wish.ino)
        decide.check(ask.caller, found, READ)
        if found.is_dir:
            raise Refuse(errno.EISDIR)
        if not found.is_file or wish.offset < 0 or not 0 <= wish.size <= DATA_MAX_BYTES:
            raise Refuse(errno.EINVAL)
        return SayData(peer, ask.number, wish.ino, wish.offset, wish.size, found.size)

    # ---- sessions

    def _begin(self, ask: Ask) -> Answer:
        if ask.session not in self._clients:
            if not 16 <= len(ask.session) <= 64:
                return Failed(errno.EINVAL)
            if len(self._clients) >= SESSIONS_MAX:
                return Failed(errno.EUSERS)
            self._append(Began(ask.session, ask.number, ask.settled, self._now_ns))
            self._clients[ask.session] = _Client(self._now_s)
            self._clients[ask.session].has_presented = True
        return Done()

    def _present(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, Present)
        client = self._clients[ask.session]
        client.has_presented = True
        said = dict.fromkeys(ask.question.inos[:OPEN_MAX], ask.number)
        for ino in [ino for ino in client.open if ino not in said and client.open[ino] < ask.number]:
            self._shut(ask.session, ino)
        for ino in said:
            if ino in self.state.inodes:
                self._opened.setdefault(ino, {})[ask.session] = True
                client.open[ino] = max(client.open.get(ino, 0), ask.number)
        return Done()

    def _leave(self, peer: bytes, ask: Ask) -> Answer:
        self._end(ask.session)
        return Done()

    def _end(self, session: str) -> None:
        for ino in list(self._clients[session].open):
            self._shut(session, ino)
        del self._clients[session]
        for key in [key for key in self._parked if key[0] == session]:
            del self._parked[key]
        freed = self._leases.end(session)
        locked = [ino for ino, held in self.state.locks.items() if any(lock.owner[0] == session for lock in held)]
        self._append(Ended(session, 0, 0, self._now_ns))
        for ino, waiting in list(self._waiting.items()):
            for one in [one for one in waiting if one.ask.session == session]:
                self._leave_queue(ino, one)
        for ino in locked:
            self._grant(ino)
        self._release(freed)

    def _reap(self) -> None:
        """Let go what has no name and is open nowhere: at once, or somebody's quota would be full of nothing."""
        if not self.state.loose or (self._now_s - self._began_s < GRACE_S and self._clients_before()):
            return
        free = [ino for ino in self.state.loose if ino not in self._opened][:REAPED_MAX]
        if free:
            self._append(Reaped("", 0, 0, self._now_ns, tuple(free)))
        for ino in free:
            for one in list(self._waiting.get(ino, ())):
                self._fail_waiting(ino, one, errno.ESTALE)

    def _has_locks(self, session: str) -> bool:
        return any(lock.owner[0] == session for held in self.state.locks.values() for lock in held)

    def _clients_before(self) -> bool:
        """Whether there are sessions from before this head led that have not said yet what they have open."""
        return not all(client.has_presented for client in self._clients.values())

    # ---- what is open

    def _open(self, peer: bytes, ask: Ask) -> Answer | None:
        wish = ask.question
        assert isinstance(wish, Open)
        found = decide.inode(self.state, wish.ino)
        client = self._clients[ask.session]
        if len(client.open) >= OPEN_MAX:
            raise Refuse(errno.ENFILE)
        if wish.truncate and self._must_empty(ask, found) and self._emptying(peer, ask) is None:
            return None
        self._opened.setdefault(wish.ino, {})[ask.session] = True
        client.open[wish.ino] = max(client.open.get(wish.ino, 0), ask.number)
        return AttrIs(self.state.attr(wish.ino))

    def _must_empty(self, ask: Ask, found: Inode) -> bool:
        if found.is_dir:
            raise Refuse(errno.EISDIR)
        decide.check(ask.caller, found, WRITE)
        return found.is_file and self._known(ask) is None

    def _emptying(self, peer: bytes, ask: Ask) -> bool | None:
        """Empty a file as it is opened; None: that has to wait."""
        assert isinstance(ask.question, Open)
        wish = Set(ask.question.ino, size=0)
        change = decide.decide(self.state, msgspec.structs.replace(ask, question=wish), self._now_ns, self.room)
        assert change
        if self._must_wait(peer, ask, change):
            return None
        self._append(change)
        return True

    def _close(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, Close)
        if self._clients[ask.session].open.get(ask.question.ino, 0) < ask.number:  # else it was opened again since
            self._shut(ask.session, ask.question.ino)
        return Done()

    def _shut(self, session: str, ino: int) -> None:
        self._clients[session].open.pop(ino, None)
        self._leases.share(session, ino)
        holders = self._opened.get(ino, {})
        holders.pop(session, None)
        if not holders:
            self._opened.pop(ino, None)

    # ---- locks

    def _lock(self, peer: bytes, ask: Ask) -> Answer | None:
        wish = ask.question
        assert isinstance(wish, Lock)
        decide.inode(self.state, wish.ino)
        if wish.kind not in locks.KINDS or not 0 <= wish.start <= wish.end <= WHOLE:
            raise Refuse(errno.EINVAL)
        if self._known(ask) is not None:
            return Done()
        if wish.kind != locks.UNLOCK and self._barrier(ask, wish):
            return self._queue(peer, ask, wish) if wish.wait else Failed(errno.EAGAIN)
        self._put_lock(ask, wish)
        self._grant(wish.ino)
        return Done()

    def _barrier(self, ask: Ask, wish: Lock) -> Held | None:
        return locks.blocker(self.state.locks.get(wish.ino, ()), _held(ask, wish))

    def _put_lock(self, ask: Ask, wish: Lock) -> None:
        by = (ask.session, ask.number, ask.settled, self._now_ns)
        self._append(Locked(*by, wish.ino, wish.owner, wish.kind, wish.start, wish.end, wish.whole, wish.pid))

    def _queue(self, peer: bytes, ask: Ask, wish: Lock) -> Answer | None:
        for one in self._waiting.get(wish.ino, ()):
            if (one.ask.session, one.ask.number) == (ask.session, ask.number):
                one.peer = peer  # asked again, over another connection
                return None
        if not wish.whole and self._would_wait_for_itself(ask, wish):
            return Failed(errno.EDEADLK)
        if sum(map(len, self._waiting.values())) >= WAITING_MAX:
            return Failed(errno.ENOLCK)
        self._waiting.setdefault(wish.ino, deque()).append(_Waiting(peer, ask, wish))
        if wish.whole:
            self._give_up_whole(ask, wish)
        return None

    def _give_up_whole(self, ask: Ask, wish: Lock) -> None:
        """Who waits for another kind of flock(2)'s lock gives up the one that he has: two such would never end."""
        owner = (ask.session, wish.owner)
        if any(lock.whole and lock.owner == owner for lock in self.state.locks.get(wish.ino, ())):
            by = (ask.session, 0, 0, self._now_ns)
            self._append(Locked(*by, wish.ino, wish.owner, locks.UNLOCK, 0, WHOLE, True, 0))
            self._grant(wish.ino)

    def _would_wait_for_itself(self, ask: Ask, wish: Lock) -> bool:
        """Whether the owner of any lock in the way waits, directly or not, for a lock of this owner."""
        waits: dict[locks.Owner, _Waiting] = {}
        for queue in self._waiting.values():
            for one in queue:
                if not one.lock.whole:
                    waits.setdefault(_owner(one), one)
        seen: set[locks.Owner] = set()
        ahead = self._owners_in_the_way(ask, wish)
        while ahead:
            current = ahead.pop()
            if current == (ask.session, wish.owner):
                return True
            if current not in seen and current in waits:
                ahead += self._owners_in_the_way(waits[current].ask, waits[current].lock)
            seen.add(current)
        return False

    def _owners_in_the_way(self, ask: Ask, wish: Lock) -> list[locks.Owner]:
        return [lock.owner for lock in locks.in_the_way(self.state.locks.get(wish.ino, ()), _held(ask, wish))]

    def _grant(self, ino: int) -> None:
        """Give locks to who waits for them and is in nobody's way any more, in the order in which they asked."""
        granted = True
        while granted:  # again, as a lock that took the place of a stronger one may let others in
            granted = False
            for one in list(self._waiting.get(ino, ())):
                if not self._barrier(one.ask, one.lock):
                    granted = True
                    self._leave_queue(ino, one)
                    self._put_lock(one.ask, one.lock)
                    self._say(one.peer, one.ask, Done())

    def _unlock(self, peer: bytes, ask: Ask) -> Answer:
        wish = ask.question
        assert isinstance(wish, Unlock)
        if self._known(ask) is not None:
            return Done()
        owner = (ask.session, wish.owner)
        for one in list(self._waiting.get(wish.ino, ())):
            if _owner(one) == owner and one.lock.whole == wish.whole:
                self._fail_waiting(wish.ino, one, errno.EINTR)
        held = self.state.locks.get(wish.ino, ())
        if any(lock.owner == owner and lock.whole == wish.whole for lock in held):
            self._put_lock(ask, Lock(wish.ino, wish.owner, locks.UNLOCK, whole=wish.whole))
            self._grant(wish.ino)
        return Done()

    def _cancel(self, peer: bytes, ask: Ask) -> Answer:
        assert isinstance(ask.question, CancelLock)
        for ino, waiting in list(self._waiting.items()):
            for one in list(waiting):
                if one.ask.session == ask.session and one.ask.number == ask.question.number:
                    self._fail_waiting(ino, one, errno.EINTR)
        return Done()

    def _fail_waiting(self, ino: int, one: _Waiting, number: int) -> None:
        self._leave_queue(ino, one)
        self._say(one.peer, one.ask, Failed(number))

    def _leave_queue(self, ino: int, one: _Waiting) -> None:
        queue = self._waiting[ino]
        queue.remove(one)
        if not queue:
            del self._waiting[ino]

    def _blocker(self, peer: bytes, ask: Ask) -> Answer:
        wish = ask.question
        assert isinstance(wish, Blocker)
        decide.inode(self.state, wish.ino)
        lock = Lock(wish.ino, wish.owner, wish.kind, wish.start, wish.end)
        found = self._barrier(ask, lock)
        return BlockerIs(found.kind, found.start, found.end, found.pid) if found else BlockerIs(locks.UNLOCK)


def _page(folder: Inode, wish: List) -> tuple[dict[bytes, tuple[int, int]], bool]:
    """Return the entries of a directory that are asked for, and whether they are the last ones."""
    assert folder.children is not None
    children = list(folder.children.items())  # in the order of their places
    start = bisect_right(children, wish.after, key=lambda child: child[1][1])
    page = children[start : start + max(0, min(wish.limit, ENTRIES_MAX))]
    return dict(page), start + len(page) == len(children)


def _held(ask: Ask, wish: Lock) -> Held:
    return Held((ask.session, wish.owner), wish.kind, wish.start, wish.end, wish.whole, wish.pid)


def _owner(one: _Waiting) -> locks.Owner:
    return one.ask.session, one.lock.owner


def _told_of(question: Question, answer: Answer, is_new: bool) -> tuple[int, ...]:
    """The inodes of which an answer says something that may be remembered. is_new: what it did was not done before:
    else others may have changed the same names since."""
    match question:
        case Look():
            if isinstance(answer, AttrIs):
                return (question.parent, answer.attr.ino)
            return (question.parent,) if answer == _NOT_THERE else ()
        case List() if isinstance(answer, Listing):
            return (question.ino, *dict.fromkeys(entry.attr.ino for entry in answer.entries))
        case Make() | Link() if isinstance(answer, AttrIs) and is_new:
            return (question.parent, answer.attr.ino)
        case Remove() if isinstance(answer, Done) and is_new:
            return (question.parent,)
        case Rename() if isinstance(answer, Done) and is_new:
            return (question.parent, question.new_parent)
        case _:
            return (answer.attr.ino,) if isinstance(answer, AttrIs | Written) else ()


_NOT_THERE = Failed(errno.ENOENT)
