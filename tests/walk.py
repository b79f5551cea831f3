"""Every order of everything, in small bounds: the production `Pair` and `Acceptor`, two heads and their voters.

A walk, breadth first, over all states that can be reached. What is said in the register stays said: each such message
may arrive at any time, again and again, or never, so that loss, delay, doubling and every order are there at once.
Copying the journal is one step, whose answer may be lost. Time is not there: leases last no time at all and every
timer may have run out at any moment, so what holds here holds whatever the clocks do.

A head that is given the same input in the same state does the same, so each such step is taken once; the rest is a walk
over numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from beo.entries import BEGINNING, Position
from beo.errors import Internal
from beo.ha import acts
from beo.ha.acts import FromHead, FromVoter, Kept, Tick, ToHead, ToVoter
from beo.ha.log import Log
from beo.ha.pair import Pair
from beo.ha.register import Acceptor
from beo.votes import (
    Accept,
    Accepted,
    Append,
    Appended,
    Cfg,
    PairSettings,
    Prepare,
    Present,
    Promise,
    Refuse,
)

HEADS = ("A", "B")
NOW_S = 1_000.0
LONG_AGO_S = -1e9
SETTINGS = PairSettings(lease_s=0.0, silence_s=0.0)
# Attributes of a head that say nothing of what it does next, or are looked at apart.
APART = frozenset({"_uniform", "_settings", "log", "sender", "taker", "acceptor", "_effects", "_kept"})
COPYING_MAX = 8  # words between two heads until one has what the other has


class Broken(Exception):
    """Two heads contradict each other."""


class Bounds(NamedTuple):
    """How far to go: the highest epoch and number of a value, and how often the rest may happen."""

    epoch: int = 2
    n: int = 3
    jobs: int = 0
    crashes: int = 0
    reboots: int = 0
    voters: int = 3
    amnesia: bool = False  # a voter that reboots keeps its name
    idle: bool = False  # at the beginning nobody acts: A was restarted


class Head(NamedTuple):
    """What an input makes of a head."""

    now: int  # its state's number
    said: int  # a set of messages
    chosen: frozenset[Cfg]
    committed: tuple[Position, ...]
    began: bool  # to act


class State(NamedTuple):
    """The whole: heads and voters by the numbers of their states, what was said, and what may still happen."""

    heads: tuple[int, int]
    voters: tuple[int, ...]
    said: int
    jobs: int
    crashes: int
    reboots: int
    chosen: frozenset[Cfg]
    committed: tuple[Position, ...]


class Walk:
    """A walk from a pair in step; `go` raises Broken, with the way that led there."""

    def __init__(self, bounds: Bounds) -> None:
        """Stand at the beginning: A acts, B is in step, all voters know it."""
        self.bounds = bounds
        self.pairs: list[Any] = []  # the states of heads, by number
        self.reached: set[str] = set()  # what has happened on some way
        self._numbers: dict[Any, int] = {}
        self._voters: list[tuple[str, int, Cfg | None]] = []
        self._words: list[tuple[str, Any]] = []  # to whom, and what; a word's place here is its bit
        self._bits: dict[tuple[str, Any], int] = {}
        self._to: dict[str, int] = {}  # the set of words to somebody
        self._steps: dict[tuple[int, Any], Head | None] = {}
        self._answers: dict[tuple[int, int], tuple[int, int]] = {}
        self._copies: dict[tuple[int, int, bool], tuple[Head, Head] | None] = {}
        self._deaf: dict[tuple[bool, int], tuple[int, int]] = {}
        self.begin = self._begin()
        self.found: dict[State, tuple[State, str] | None] = {self.begin: None}

    def _begin(self) -> State:
        names = tuple(f"v{at}/1" for at in range(1, self.bounds.voters + 1))
        cfg = Cfg(1, 1, HEADS, (names,) if names else ())
        numbers = []
        for me in HEADS:
            log = Log(BEGINNING, BEGINNING, lambda first, limit: [], lambda index: None)
            log.append(1, b"begin")
            pair = self._life(me, Kept(1, cfg, me == "A"), log, dict.fromkeys(names, ("", NOW_S)))
            pair.taker.begin(1)
            pair.taker.agreed = 1
            if me == "A" and not self.bounds.idle:
                pair.role, pair.epoch, pair.cfg, pair.commit, pair.leader = "primary", 1, cfg, 1, "A"
                pair.sender.agreed, pair.sender.match, pair.sender.next, pair.sender.member = True, 1, 2, "B"
                pair._in_step_s = NOW_S
            numbers.append(self._number(pair))
        voters = tuple(self._voter(name, 1) for name in names)
        committed = (self.pairs[numbers[0]].log.position(1),)
        b = self.bounds
        return State((numbers[0], numbers[1]), voters, 0, b.jobs, b.crashes, b.reboots, frozenset({cfg}), committed)

    # ---- the walk

    def go(self, most: int = 10_000_000) -> int:
        """Go everywhere; return how many states there are."""
        edge = deque([self.begin])
        while edge:
            state = edge.popleft()
            try:
                for why, after in self._next(state):
                    after = self._without_spent(after)
                    if after not in self.found:
                        self.found[after] = state, why
                        edge.append(after)
                        self._look(after)
            except (Broken, Internal) as error:
                raise Broken(f"{error}\n" + "\n".join(self.way(state))) from None
            assert len(self.found) <= most, f"more than {most} states"
        return len(self.found)

    def way(self, state: State) -> list[str]:
        """What led to a state."""
        words: list[str] = []
        while (before := self.found[state]) is not None:
            state, word = before
            words.append(word)
        return words[::-1]

    def _next(self, state: State) -> Iterator[tuple[str, State]]:
        """Every state that may follow, and by what."""
        for at, name in enumerate(HEADS):
            for word in ("stands", "ticks", "hears nothing"):
                yield from self._by(state, at, word)
            if state.jobs:
                yield from self._by(state._replace(jobs=state.jobs - 1), at, "takes a job")
            if state.crashes:
                yield from self._by(state._replace(crashes=state.crashes - 1), at, "crashes")
            for bit in _bits(state.said & self._to.get(name, 0)):
                yield from self._by(state, at, self._words[bit][1])
            for answered in (True, False):
                yield from self._by_copying(state, at, answered)
        for at, number in enumerate(state.voters):
            name = self._voters[number][0]
            for bit in _bits(state.said & self._to.get(name, 0)):
                after, said = self._answer(number, bit)
                if after != number or said & ~state.said:
                    yield (
                        f"{name} hears {self._words[bit][1]}",
                        state._replace(voters=_put(state.voters, at, after), said=state.said | said),
                    )
            if state.reboots:
                yield f"{name} reboots", self._rebooted(state, at, name)

    def _by(self, state: State, at: int, do: Any) -> Iterator[tuple[str, State]]:
        head = self._step(state.heads[at], do)
        if head is not None and (head.now != state.heads[at] or head.said & ~state.said):
            yield f"{HEADS[at]} {do}", self._after(state, ((at, head),))

    def _by_copying(self, state: State, at: int, answered: bool) -> Iterator[tuple[str, State]]:
        both = self._copy(state.heads[at], state.heads[1 - at], answered)
        if both and (both[0].now, both[1].now) != (state.heads[at], state.heads[1 - at]):
            yield f"{HEADS[at]} copies, answered: {answered}", self._after(state, ((at, both[0]), (1 - at, both[1])))

    def _after(self, state: State, steps: tuple[tuple[int, Head], ...]) -> State:
        heads, said, chosen, committed = state.heads, state.said, state.chosen, state.committed
        for at, head in steps:
            heads = (head.now, heads[1]) if at == 0 else (heads[0], head.now)
            said |= head.said
            if not head.chosen <= chosen:
                chosen = chosen | head.chosen
                _check_meanings(chosen)
            committed = _merge(committed, head.committed)
            if head.began:
                self.reached.add("take-over")
                log = self.pairs[head.now].log
                for position in committed:
                    if log.position(position.idx) != position:
                        raise Broken(f"{HEADS[at]} acts without the committed entry {position.idx}")
        return state._replace(heads=heads, said=said, chosen=chosen, committed=committed)

    def _rebooted(self, state: State, at: int, name: str) -> State:
        reborn, said = name, 0
        if not self.bounds.amnesia:
            reborn = f"{name}'"
            present = FromVoter(Present(reborn, ""))
            said = self._bit("A", present) | self._bit("B", present)
        voters = _put(state.voters, at, self._voter(reborn))
        return state._replace(voters=voters, said=state.said | said, reboots=state.reboots - 1)

    def _look(self, state: State) -> None:
        pairs = [self.pairs[number] for number in state.heads]
        if all(pair.acts_until_s > NOW_S for pair in pairs):
            raise Broken("two heads act, and neither needs a lease")
        for pair in pairs:
            if pair.role == "primary" and pair.chosen:
                self.reached.add("in step" if pair.in_step else "alone")
            if pair.acceptor.acc and len(pair.acceptor.acc.voters) > 1:
                self.reached.add("joint voters")

    # ---- numbers for states and bits for words

    def _number(self, pair: Any) -> int:
        pair._now = pair._heard_s = pair._asked_s = pair._heard_primary_s = NOW_S
        pair._stand_s = pair._began_s = pair._join_not_before_s = LONG_AGO_S
        pair._down_from_s, pair._penalty_s, pair._fell, pair._lease_since_s = None, 0.0, False, 0.0
        pair._unsynced, pair._lag_seen, pair.why, pair.leader, pair._serial, pair._stored = (0, 0, 0.0), 0, "", "", 0, 0
        pair._answer_t, pair.sender.progress_s, pair.sender._sent_s = None, NOW_S, NOW_S
        for name in ("_in_step_s", "_steady_from_s"):
            if getattr(pair, name) is not None:
                setattr(pair, name, LONG_AGO_S)
        pair._grants.clear()
        if pair.role != "candidate":
            pair._promises.clear()
        if pair.role != "primary":
            pair.cfg = None
        own = tuple((name, _frozen(value)) for name, value in pair.__dict__.items() if name not in APART)
        sender = (pair.sender.match, pair.sender.next, pair.sender.agreed, pair.sender.member)
        log = tuple((entry.epoch, entry.data) for entry in pair.log._window)
        key = own, sender, pair.acceptor.durable, pair.taker.agreed, pair.taker._epoch, log
        number = self._numbers.setdefault(key, len(self.pairs))
        if number == len(self.pairs):
            self.pairs.append(pair)
        return number

    def _voter(self, name: str, epoch: int = 0, acc: Cfg | None = None) -> int:
        key = name, epoch, acc
        number = self._numbers.setdefault(key, len(self._voters))
        if number == len(self._voters):
            self._voters.append(key)
        return number

    def _bit(self, to: str, word: Any) -> int:
        place = self._bits.setdefault((to, word), len(self._words))
        if place == len(self._words):
            self._words.append((to, word))
            self._to[to] = self._to.get(to, 0) | 1 << place
        return 1 << place

    # ---- what heads and voters do

    def _life(self, me: str, kept: Kept, log: Log, present: dict[str, Any]) -> Any:
        """A head that begins a life with what it has kept."""
        other = HEADS[1 - HEADS.index(me)]
        pair = Pair(me, other, kept, log, log.last.idx, "life", lambda low, high: low, lambda: SETTINGS)
        pair.handle(acts.Begin(), NOW_S)
        pair._present = dict(present)
        return pair

    def _step(self, number: int, do: Any) -> Head | None:
        """What an input makes of a head; None where it goes beyond the bounds, or there is none."""
        if (number, do) not in self._steps:
            self._steps[number, do] = self._take(number, do)
        return self._steps[number, do]

    def _take(self, number: int, do: Any) -> Head | None:
        pair = _clone(self.pairs[number])
        inputs: list[Any] = [acts.Grown()]
        if do == "crashes":
            kept = Kept(pair.acceptor.epoch, pair.acceptor.acc, pair.chosen)
            pair = self._life(pair.me, kept, pair.log, pair._present)
        elif do == "stands":
            if pair.role != "idle" or not pair._may_stand():
                return None
            pair._stand(pre=False)  # whatever a pre-vote would forbid
        elif do == "takes a job":
            if pair.role != "primary":
                return None
            pair.log.append(pair.epoch, b"job")
        elif do in ("ticks", "hears nothing"):
            if pair.role != "primary":
                return None
            pair._heard_s = NOW_S if do == "ticks" else LONG_AGO_S
            inputs = [Tick(), Tick()] if do == "ticks" else [Tick()]
        else:
            inputs = [do]
        return self._done(pair, _Course(pair).run(inputs))

    def _done(self, pair: Any, course: _Course) -> Head | None:
        acc = pair.acceptor.acc
        if max(pair.epoch, pair.acceptor.epoch) > self.bounds.epoch or (acc and acc.n > self.bounds.n):
            return None
        said = 0
        for effect in course.effects:
            word: Any = effect.message
            if isinstance(effect, ToVoter) and isinstance(word, Prepare | Accept):
                word = Accept(word.head, word.cfg) if isinstance(word, Accept) else word
                said |= self._bit(effect.voter, word)
            elif isinstance(effect, ToHead) and isinstance(word, Prepare | Promise | Accept | Accepted):
                said |= self._bit(pair.other, FromHead(word))
        return Head(self._number(pair), said, frozenset(course.chosen), tuple(course.committed), course.began)

    def _copy(self, number: int, other: int, answered: bool) -> tuple[Head, Head] | None:
        """The primary copies its journal to the other head; None where it has no reason to."""
        key = number, other, answered
        if key not in self._copies:
            self._copies[key] = self._take_copy(*key)
        return self._copies[key]

    def _take_copy(self, number: int, other: int, answered: bool) -> tuple[Head, Head] | None:
        if self.pairs[number].role != "primary":
            return None
        pairs = _clone(self.pairs[number]), _clone(self.pairs[other])
        courses = _Course(pairs[0]), _Course(pairs[1])
        pair, sender = pairs[0], pairs[0].sender
        words = [sender.heartbeat(pair.me, pair.epoch, NOW_S, 0.0, pair.commit, (0, b""))]
        for _ in range(COPYING_MAX):
            for at in (1, 0):
                courses[at].run([FromHead(word) for word in words])
                words = courses[at].take(Append, Appended)
                if not answered:
                    words = []
        heads = self._done(pairs[0], courses[0]), self._done(pairs[1], courses[1])
        return (heads[0], heads[1]) if heads[0] and heads[1] else None

    def _answer(self, number: int, bit: int) -> tuple[int, int]:
        """What a word makes of a voter, and what it answers. A refusal is a word that is lost."""
        found = self._answers.get((number, bit))
        if found is None:
            name, epoch, acc = self._voters[number]
            word = self._words[bit][1]
            acceptor = Acceptor(name, epoch, acc)
            answer = acceptor.prepare(word, NOW_S) if isinstance(word, Prepare) else acceptor.accept(word)
            said = 0 if isinstance(answer, Refuse) else self._bit(word.head, FromVoter(answer))
            found = self._answers[number, bit] = self._voter(name, *acceptor.durable), said
        return found

    # ---- words that can't do anything any more

    def _without_spent(self, state: State) -> State:
        """The same state without words that nobody will ever heed: epochs only grow."""
        spent = 0
        for number in state.heads:
            spent |= self._spent(True, number)
        for number in state.voters:
            spent |= self._spent(False, number)
        return state._replace(said=state.said & ~spent) if state.said & spent else state

    def _spent(self, is_head: bool, number: int) -> int:
        known, spent = self._deaf.get((is_head, number), (0, 0))
        if known < len(self._words):
            for place in range(known, len(self._words)):
                to, word = self._words[place]
                if is_head:
                    pair = self.pairs[number]
                    heeds = to != pair.me or not _is_spent(pair, word.message)
                else:
                    name, epoch, acc = self._voters[number]
                    order = acc.order if acc else (0, 0)
                    heeds = to != name or not _is_old(word, epoch, order)
                    heeds = heeds and not (name != to and name.startswith(to))  # that life of the voter is over
                spent |= 0 if heeds else 1 << place
            self._deaf[is_head, number] = len(self._words), spent
        return spent


class _Course:
    """What happens while a head takes inputs: its disk is there at once."""

    def __init__(self, pair: Any) -> None:
        self.pair = pair
        self.effects: list[ToHead | ToVoter] = []
        self.chosen: set[Cfg] = set()
        self.committed: list[Position] = []
        self.began = False

    def run(self, inputs: list[Any]) -> _Course:
        """Give it inputs, and what follows from them."""
        pair, waiting = self.pair, deque(inputs)
        while waiting:
            before = pair.commit
            for effect in pair.handle(waiting.popleft(), NOW_S):
                if isinstance(effect, acts.Store):
                    waiting.appendleft(acts.Stored(effect.serial))
                elif isinstance(effect, ToHead | ToVoter):
                    self.effects.append(effect)
                elif isinstance(effect, acts.Became) and effect.role == "primary":
                    self.began = True
                    pair.log.append(pair.epoch, b"begin")
                    waiting.append(acts.Grown())
            if pair.role == "primary":
                self.committed += [pair.log.position(idx) for idx in range(before + 1, pair.commit + 1)]
                if pair.chosen:
                    self.chosen.add(pair.acceptor.acc)
            if pair._durable < pair.log.last.idx:
                waiting.append(acts.Durable(pair.log.last.idx))
        return self

    def take(self, *kinds: type) -> list[Any]:
        """Take the words of these kinds to the other head."""
        words = [effect.message for effect in self.effects if isinstance(effect.message, kinds)]
        self.effects = [effect for effect in self.effects if not isinstance(effect.message, kinds)]
        return words


def _clone(pair: Any) -> Any:
    """Copy a head, as far as it can change."""
    new = _shallow(pair)
    new.log, new.sender, new.taker, new.acceptor = map(_shallow, (pair.log, pair.sender, pair.taker, pair.acceptor))
    new.log._window = deque(pair.log._window)
    new.sender._log = new.taker._log = new.log
    new._promises, new._grants, new._present = dict(pair._promises), dict(pair._grants), dict(pair._present)
    new._accepted = set(pair._accepted)
    new._outbox, new._then, new._effects = deque(), deque(), []
    new._now = NOW_S
    return new


def _shallow(value: Any) -> Any:
    new = object.__new__(type(value))
    new.__dict__.update(value.__dict__)
    return new


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items(), key=lambda item: item[0]))
    if isinstance(value, set):
        return tuple(sorted(value))
    return tuple(value) if isinstance(value, deque) else value


def _is_old(word: Prepare | Accept, epoch: int, order: tuple[int, int]) -> bool:
    """Whether an acceptor has nothing more to say to this, as it has answered before or will refuse."""
    if isinstance(word, Prepare):
        return word.epoch <= epoch
    return word.cfg.epoch < epoch or word.cfg.order <= order


def _is_spent(pair: Any, word: Any) -> bool:
    """Whether a head will never do anything about this again, here or in any state that follows."""
    epoch, acc = pair.acceptor.durable
    order = acc.order if acc else (0, 0)
    least = (
        max(pair.epoch, epoch) + 1 if pair.role == "idle" else pair.epoch
    )  # it heeds no answers to what it asked before
    match word:
        case Promise():
            return bool(word.epoch < least or (word.epoch == least and pair.role != "candidate"))
        case Accepted():
            told = (word.epoch, word.n)
            return bool(word.epoch < least or told < order or (pair.chosen and told == order))
        case Prepare() | Accept():
            return _is_old(word, epoch, order)
    return False


def _check_meanings(chosen: frozenset[Cfg]) -> None:
    for before, after in pairwise(sorted(chosen, key=lambda cfg: cfg.order)):
        if after.order == before.order:
            raise Broken(f"two values are chosen as one: {before} and {after}")


def _merge(known: tuple[Position, ...], new: tuple[Position, ...]) -> tuple[Position, ...]:
    if not new:
        return known
    merged = {position.idx: position for position in known}
    for position in new:
        if merged.setdefault(position.idx, position) != position:
            raise Broken(f"two entries {position.idx} are committed")
    return tuple(merged[idx] for idx in sorted(merged))


def _put(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _bits(value: int) -> Iterator[int]:
    while value:
        low = value & -value
        yield low.bit_length() - 1
        value ^= low
