"""A client's session with the tree: questions to whichever head serves it, any number of them at a time.

What was asked and not answered is asked again where the connection ends, or another head serves the tree; that is
harmless, as each question has a number of its own. Whoever asks notices nothing but the time that it takes.
"""

from __future__ import annotations

import errno
import queue
import secrets
import threading
import time
from collections.abc import Callable

import msgspec

from beo import wire
from beo.errors import BeoError, Internal
from beo.tree import words as w

PRESENT_EVERY_S = 3.0  # a session that holds something is over after five times that
SILENT_S = 1.0  # after so long without an answer, it is asked where the tree is now
AGAIN_S = 5.0  # after so long, it is asked again over the same connection: an answer may have found no room
LOCATE_AGAIN_S = 0.05
UNDER_WAY_MAX = 1_000  # questions that are on the wire; more wait here

ROOT_CALLER = w.Caller(0, 0)


def boot_s() -> float:
    """Return the time by which leases end: it goes on while a machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


Locate = Callable[[], str]


class Session:
    """One session. For one thread, in whose poll loop it lives: `register`, `receive` after each poll, `next_at`."""

    def __init__(self, locate: Locate, key: str, secret: str, remembers: bool = False) -> None:
        """locate() returns the address of the tree, "" where it isn't served now; it may block, and raise BeoError.

        key: the heads' public one; secret: ours. remembers: answers may be `Leased`, and a `Recall` may come as the
        answer to question 0, with nothing in it if all must be forgotten.
        """
        self._remembers = remembers
        self._locate, self._key, self._secret = locate, key, secret
        self._context = wire.new_context()
        self._connection: wire.Connection | None = None
        self._pollers: list[wire.Poller] = []
        self._waker = wire.Waker()
        self._found: queue.SimpleQueue[str | BeoError] = queue.SimpleQueue()
        self._locating = False
        self._address = ""
        self._id = secrets.token_hex(16)
        self._number = 0
        self._asked: dict[int, tuple[w.Caller, w.Question, float]] = {}  # not answered yet, in order; since (boot) when
        self._sent: dict[int, float] = {}  # of these, what is on the wire of this connection, and since when
        self._answers: list[tuple[int, w.Told]] = []
        self._opens: dict[int, bool] = {}  # inodes that whoever asks has open, however often
        self._locked: dict[int, bool] = {}  # inodes on which a lock was granted to this session
        self._lost: dict[int, bool] = {}  # inodes whose locks were lost with an earlier session of ours
        self._own: dict[int, bool] = {}  # questions that nobody but this file has asked
        self._heard_s = self._sent_s = self._present_s = self._late_s = time.monotonic()
        self._locate_s = 0.0
        self.failure: BeoError | None = None  # why no head can be asked, as of the last try
        self._put(ROOT_CALLER, w.Begin(), own=True)
        self._find()

    def register(self, poller: wire.Poller) -> None:
        """Add to a loop."""
        self._pollers.append(poller)
        poller.register(self._waker.fileno(), wire.POLLIN)
        if self._connection:
            self._connection.register(poller)

    def filenos(self) -> list[int]:
        """Return the descriptors to poll for reading, as of now."""
        return [self._waker.fileno(), *(self._connection.filenos() if self._connection else [])]

    @property
    def next_at(self) -> float:
        """When `receive` is to be called at the latest, as of time.monotonic."""
        if self._answers:
            return 0.0
        return min(self._present_s + PRESENT_EVERY_S, time.monotonic() + SILENT_S / 4 if self._asked else float("inf"))

    @property
    def silent_s(self) -> float:
        """For how long somebody has waited while nothing was heard, in seconds."""
        if not self._asked:
            return 0.0
        first_s = next(iter(self._asked.values()))[2]
        return max(0.0, min(boot_s() - first_s, time.monotonic() - self._heard_s))

    @property
    def under_way(self) -> int:
        """How many questions are not answered yet."""
        return len(self._asked)

    def ask(self, caller: w.Caller, question: w.Question) -> int:
        """Ask, and return the number under which `receive` will give the answer."""
        ino = getattr(question, "ino", 0)
        if ino in self._lost and not isinstance(question, w.Close | w.Get):
            return self._at_once(w.Failed(errno.EIO))
        if isinstance(question, w.Open):
            self._opens[ino] = True
        elif isinstance(question, w.Close):
            self._opens.pop(ino, None)
            self._locked.pop(ino, None)  # an owner of locks gives them up as he closes, and nobody else is left
            if self._lost.pop(ino, None):
                return self._at_once(w.Done())
        self._notice_end()
        number = self._put(caller, question)
        self._flush()
        return number

    def receive(self) -> list[tuple[int, w.Told]]:
        """Return what has been answered, by number; do what time asks for."""
        self._waker.clear()
        now = time.monotonic()
        self._take_found(now)
        self._notice_end()
        silent_s = now - max(self._heard_s, self._sent_s) if self._asked else 0.0
        if silent_s > SILENT_S:
            self._find()
        if now - next(iter(self._sent.values()), now) > AGAIN_S:  # one alone, too, while others are answered
            self._again()
        if now - self._late_s > SILENT_S:
            self._late_s = now
            for number in [number for number, sent_s in self._sent.items() if now - sent_s > AGAIN_S]:
                del self._sent[number]  # others are answered, and this one waits, or its answer is lost
        if now - self._present_s > PRESENT_EVERY_S:
            self._present()
        self._flush()
        # Reading comes last: to send may take notice of what has come, and then a poll would wait for more.
        while self._connection and self._read(self._connection, now):
            self._flush()
        answers, self._answers = self._answers, []
        return answers

    def close(self) -> None:
        """End the session, without waiting for anything."""
        if self._connection and not self._asked:
            self._put(ROOT_CALLER, w.Leave(), own=True)
            self._flush()
            time.sleep(0.001)  # what was put into the socket's hands leaves with another thread
        self._drop()
        self._context.destroy(linger=50)
        for poller in self._pollers:
            poller.unregister(self._waker.fileno())

    def _notice_end(self) -> None:
        """Where the connection has ended, ask all again. Before anything is sent: then nobody would know any more."""
        if self._connection and (self._connection.renewed or self._connection.broken):
            self._again()
            self._find()

    # ---- questions

    def _put(self, caller: w.Caller, question: w.Question, own: bool = False) -> int:
        self._number += 1
        self._asked[self._number] = caller, question, boot_s()
        if own:
            self._own[self._number] = True
        return self._number

    def _at_once(self, answer: w.Answer) -> int:
        self._number += 1
        self._answers.append((self._number, answer))
        return self._number

    def _flush(self) -> None:
        """Send what is not on the wire yet, in order."""
        if not self._connection or len(self._sent) == len(self._asked):
            return
        settled = min(self._asked) - 1
        beyond, waiting = self._beyond(settled + 1)
        for number, (caller, question, _) in self._asked.items():
            if number in self._sent:
                continue
            if len(self._sent) >= UNDER_WAY_MAX:
                return
            word = w.Ask(self._id, number, settled, caller, question, self._remembers, beyond, waiting)
            if not self._connection.send(number, w.encode(word)):
                return  # nobody is there: it is looked for again after a while
            self._sent[number] = self._sent_s = time.monotonic()

    def _beyond(self, first: int) -> tuple[int, tuple[int, ...]]:
        """Return up to where all is answered but what waits for locks, and what does, where the first one is such."""
        if not _waits(self._asked[first][1]):
            return 0, ()
        rest = min((number for number, (_, question, _) in self._asked.items() if not _waits(question)), default=0)
        waiting = sorted(number for number in self._asked if number < rest or not rest)
        if len(waiting) > w.WAITING_TOLD_MAX:
            rest = waiting[w.WAITING_TOLD_MAX]
        return (rest or self._number + 1) - 1, tuple(waiting[: w.WAITING_TOLD_MAX])

    def _present(self) -> None:
        self._present_s = time.monotonic()
        if not any(isinstance(question, w.Present) for _, question, _ in self._asked.values()):
            self._put(ROOT_CALLER, w.Present(tuple(self._opens)), own=True)

    # ---- answers

    def _read(self, connection: wire.Connection, now: float) -> bool:
        """Take what has come; whether there is something to send now."""
        while received := connection.receive():
            number, body = received
            if number and number not in self._asked:
                continue  # to a question that was asked twice
            told = w.answer_decoder.decode(body)
            if isinstance(told, w.Recall):
                self._answers.append((0, told))
                continue
            answer = told.answer if isinstance(told, w.Leased) else told
            self._heard_s = now
            if isinstance(answer, w.Elsewhere):
                self._sent.pop(number, None)
                self._drop()
                self._find()
                return False
            if isinstance(answer, w.Over):
                self._begin_anew()
                return True
            _, question, asked_s = self._asked.pop(number)
            self._sent.pop(number, None)
            if isinstance(question, w.Lock) and isinstance(answer, w.Done):
                self._locked[question.ino] = True
            if not self._own.pop(number, False):
                # It is counted from when it was asked: then it ends here before it ends for whoever gave it.
                until = isinstance(told, w.Leased) and msgspec.structs.replace(told, lease_s=asked_s + told.lease_s)
                self._answers.append((number, until or answer))
        return len(self._sent) < min(len(self._asked), UNDER_WAY_MAX) and not connection.broken

    def _begin_anew(self) -> None:
        """The head gave this session up: what it had locked may be another's, and nobody may write as if not."""
        self._lost.update(self._locked)
        self._locked.clear()
        for number in list(self._asked):
            if not self._own.pop(number, False):
                self._answers.append((number, w.Failed(errno.EIO)))
        if self._remembers:
            self._answers.append((0, w.Recall((), 0)))
        self._asked.clear()
        self._sent.clear()
        self._id = secrets.token_hex(16)
        self._put(ROOT_CALLER, w.Begin(), own=True)
        self._put(ROOT_CALLER, w.Present(tuple(self._opens)), own=True)

    # ---- where the tree is

    def _find(self) -> None:
        now = time.monotonic()
        if self._locating or now < self._locate_s:
            return
        self._locating = True
        self._locate_s = now + LOCATE_AGAIN_S
        threading.Thread(target=self._look, name="locate", daemon=True).start()

    def _look(self) -> None:
        try:
            self._found.put(self._locate())
        except BeoError as error:
            self._found.put(error)
        except Exception as error:  # without an answer it would never be looked for again
            self._found.put(Internal("where the tree is can't be asked", f"{type(error).__name__}: {error}", ""))
        self._waker.wake()

    def _take_found(self, now: float) -> None:
        while not self._found.empty():
            self._locating = False
            found = self._found.get()
            if isinstance(found, BeoError):
                self.failure = found
                continue
            self.failure = None
            if not found:
                continue
            if found != self._address or not self._connection:
                self._drop()
                self._address = found
                self._connection = wire.Connection(found, self._key, self._secret, self._context)
                for poller in self._pollers:
                    self._connection.register(poller)
                self._sent_s = now
                self._again()
        if not self._connection and not self._locating:
            self._find()

    def _again(self) -> None:
        """Ask everything again, and say first what is open: it may be another head that hears it."""
        self._sent.clear()
        begins = [number for number, (_, question, _) in self._asked.items() if isinstance(question, w.Begin)]
        first_s = next(iter(self._asked.values()))[2] if self._asked else boot_s()  # to ask again is not to be answered
        if not begins and self._opens:
            for number in [number for number in self._own if isinstance(self._asked[number][1], w.Present)]:
                del self._asked[number], self._own[number]  # it says the same, or what was so before
            asked = self._asked
            self._number += 1
            # Its number is newer than theirs, and still it is sent first: the order in the dictionary is what counts.
            self._asked = {self._number: (ROOT_CALLER, w.Present(tuple(self._opens)), first_s), **asked}
            self._own[self._number] = True
        self._flush()

    def _drop(self) -> None:
        if self._connection:
            for poller in self._pollers:
                self._connection.unregister(poller)
            self._connection.close()
        self._connection = None
        self._sent.clear()


def _waits(question: w.Question) -> bool:
    return isinstance(question, w.Lock) and question.wait
