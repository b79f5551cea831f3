"""Every order of everything, in small bounds: the production `Pair` and `Acceptor`, two heads and their voters.

A walk, breadth first, over all states that can be reached. What is said in the register stays said: each such message
may arrive at any time, again and again, or never, so that loss, delay, doubling and every order are there at once.
Copying the journal is a talk that may break off after each word. Time is not there: leases last no time at all and
every timer may have run out at any moment, so what holds here holds whatever the clocks do. A disk has at once what it
is given; levels B and A, snapshots and what an operator wishes are left to the simulator.

In every state: a value of the register counts as chosen when enough have ever taken it, whether anybody knows that or
not, and the chosen ones form a chain; no index has two committed entries; who begins to act has all that are committed;
and no two heads act without needing a lease.

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
from beo.ha.register import Acceptor, carried
from beo.votes import Accept, Accepted, Append, Appended, Cfg, Prepare, Present, Promise, Refuse
from tests.timeless import HEADS, LONG_AGO_S, NOW_S, Course, clone, is_old, is_spent, key_of, life

COPYING_MAX = 8  # words between two heads until one has what the other has

# Where a walk begins.
IN_STEP = "in step"  # A acts, and B is in step
RESTARTED = "restarted"  # the same, but nobody acts: A was restarted
ALONE = "alone"  # A has gone on alone by the votes of v1 and of two more, which have died since


class Broken(Exception):
    """Two heads contradict each other."""


class Bounds(NamedTuple):
    """How far to go: the highest epoch and number of a value, and how often the rest may happen."""

    epoch: int = 2
    n: int = 3
    jobs: int = 0
    crashes: int = 0  # of heads; one that gives up its role counts, too
    reboots: int = 0
    voters: int = 3
    amnesia: bool = False  # a voter that reboots keeps its name
    begin: str = IN_STEP


class Head(NamedTuple):
    """What an input makes of a head."""

    now: int  # its state's number
    said: int  # a set of messages
    taken: frozenset[Cfg]  # as acceptor
    chosen: frozenset[Cfg]  # as it believes
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
    taken: frozenset[tuple[str, Cfg]]  # who has ever taken which value that isn't chosen yet
    chosen: frozenset[Cfg]
    committed: tuple[Position, ...]


class Walk:
    """A walk; `go` raises Broken, with the way that led there."""

    def __init__(self, bounds: Bounds) -> None:
        """Stand at the beginning."""
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
        self._copies: dict[tuple[int, int], list[tuple[Head, Head]]] = {}
        self._deaf: dict[tuple[bool, int], tuple[int, int]] = {}
        self.begin = self._begin()
        self.found: dict[State, tuple[State, str] | None] = {self.begin: None}

    def _begin(self) -> State:
        b = self.bounds
        alive = tuple(f"v{at}/1" for at in range(1, b.voters + 1))
        self._dead = tuple(f"v{at}/1" for at in range(b.voters + 1, b.voters + 3)) if b.begin == ALONE else ()
        electorate = alive + self._dead
        both = Cfg(1, 1, HEADS, (electorate,) if electorate else ())
        now = Cfg(1, 2, ("A",), both.voters) if b.begin == ALONE else both
        numbers = []
        for me, acc in zip(HEADS, (now, both), strict=True):
            log = Log(BEGINNING, BEGINNING, lambda first, limit: [], lambda index: None)
            log.append(1, b"begin")
            pair = life(me, Kept(1, acc, me == "A"), log, dict.fromkeys(alive, ("", NOW_S)))
            pair.taker.begin(1)
            pair.taker.agreed = 1
            if me == "A" and b.begin != RESTARTED:
                pair.role, pair.epoch, pair.cfg, pair.commit = "primary", 1, now, 1
                pair.sender.agreed, pair.sender.match, pair.sender.next, pair.sender.member = True, 1, 2, "B"
                pair._in_step_s = NOW_S if b.begin == IN_STEP else None
            numbers.append(self._number(pair))
        voters = tuple(self._voter(name, 1, now if name == "v1/1" and now != both else None) for name in alive)
        committed = (self.pairs[numbers[0]].log.position(1),)
        chosen = frozenset({both, now})
        return State((numbers[0], numbers[1]), voters, 0, b.jobs, b.crashes, b.reboots, frozenset(), chosen, committed)

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
                for word in ("crashes", "gives up"):
                    yield from self._by(state._replace(crashes=state.crashes - 1), at, word)
            for bit in _bits(state.said & self._to.get(name, 0)):
                yield from self._by(state, at, self._words[bit][1])
            yield from self._by_copying(state, at)
        for at, number in enumerate(state.voters):
            name = self._voters[number][0]
            for bit in _bits(state.said & self._to.get(name, 0)):
                after, said = self._answer(number, bit)
                if after != number or said & ~state.said:
                    heard = state._replace(voters=_put(state.voters, at, after), said=state.said | said)
                    acc = self._voters[after][2]
                    if acc and acc != self._voters[number][2]:
                        heard = self._with_taken(heard, name, frozenset({acc}))
                    yield f"{name} hears {self._words[bit][1]}", heard
            if state.reboots:
                yield f"{name} reboots", self._rebooted(state, at, name)

    def _by(self, state: State, at: int, do: Any) -> Iterator[tuple[str, State]]:
        head = self._step(state.heads[at], do)
        if head is not None and (head.now != state.heads[at] or head.said & ~state.said):
            yield f"{HEADS[at]} {do}", self._after(state, ((at, head),))

    def _by_copying(self, state: State, at: int) -> Iterator[tuple[str, State]]:
        for words, (one, other) in enumerate(self._copy(state.heads[at], state.heads[1 - at]), 1):
            yield f"{HEADS[at]} copies, in {words} words", self._after(state, ((at, one), (1 - at, other)))

    def _after(self, state: State, steps: tuple[tuple[int, Head], ...]) -> State:
        heads, said, committed = state.heads, state.said, state.committed
        for at, head in steps:
            heads = (head.now, heads[1]) if at == 0 else (heads[0], head.now)
            said |= head.said
            state = self._with_taken(state, HEADS[at], head.taken, head.chosen)
            committed = _merge(committed, head.committed)
            if head.began:
                self.reached.add(f"{HEADS[at]} begins")
                log = self.pairs[head.now].log
                for position in committed:
                    if log.position(position.idx) != position:
                        raise Broken(f"{HEADS[at]} acts without the committed entry {position.idx}")
        return state._replace(heads=heads, said=said, committed=committed)

    def _with_taken(
        self, state: State, who: str, values: frozenset[Cfg], believed: frozenset[Cfg] = frozenset()
    ) -> State:
        """Note which values somebody takes, and what is chosen by that, or believed to be."""
        taken = state.taken | {(who, cfg) for cfg in values if cfg not in state.chosen}
        if taken == state.taken and believed <= state.chosen:
            return state
        chosen = state.chosen | believed
        for cfg in values - chosen:
            if _is_chosen(cfg, {by for by, other in taken if other == cfg}):
                chosen |= {cfg}
        self._check_chain(taken, chosen)
        return state._replace(taken=frozenset(item for item in taken if item[1] not in chosen), chosen=chosen)

    def _check_chain(self, taken: frozenset[tuple[str, Cfg]], chosen: frozenset[Cfg]) -> None:
        """Each value is built on the one before, by a head that was in step or that the other one has let in again."""
        for before, after in pairwise(sorted(chosen, key=lambda cfg: cfg.order)):
            if after.order == before.order:
                raise Broken(f"two values are chosen as one: {before} and {after}")
            if after.n <= before.n:
                raise Broken(f"{after} is chosen by who didn't know of {before}")
            let_in = any(
                len(cfg.isr) > 1 and who in before.heads and before.order < cfg.order < after.order
                for who, cfg in taken
            )
            if _proposer(after) not in before.heads and not let_in:
                raise Broken(f"{after} is chosen after {before}: who goes on wasn't in step")
            if len(before.isr) != len(after.isr):
                self.reached.add("alone" if len(after.isr) == 1 else "in step again")
            if len(after.voters) > 1:
                self.reached.add("joint voters")

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

    # ---- numbers for states and bits for words

    def _number(self, pair: Any) -> int:
        number = self._numbers.setdefault(key_of(pair), len(self.pairs))
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

    def _step(self, number: int, do: Any) -> Head | None:
        """What an input makes of a head; None where it goes beyond the bounds, or there is none."""
        if (number, do) not in self._steps:
            self._steps[number, do] = self._take(number, do)
        return self._steps[number, do]

    def _take(self, number: int, do: Any) -> Head | None:
        pair = clone(self.pairs[number])
        inputs: list[Any] = [acts.Grown()]
        if do == "crashes":
            inputs = [acts.Begin()]
            kept = Kept(pair.acceptor.epoch, pair.acceptor.acc, pair.chosen)
            pair = life(pair.me, kept, pair.log, pair._present)
        elif do == "stands":
            if pair.role != "idle" or not pair._may_stand():
                return None
            pair._stand(pre=False)  # whatever a pre-vote would forbid
        elif do == "gives up":
            if pair.role == "idle":
                return None
            pair._step_down("")  # as when its disk takes too long, nobody answers, or it was refused
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
        return self._done(pair, Course(pair).run(inputs))

    def _done(self, pair: Any, course: Course) -> Head | None:
        acc = pair.acceptor.acc
        if max(pair.epoch, pair.acceptor.epoch) > self.bounds.epoch or (acc and acc.n > self.bounds.n):
            return None
        said = 0
        for effect in course.effects:
            word: Any = effect.message
            if isinstance(effect, ToVoter) and effect.voter in self._dead:
                continue
            if isinstance(effect, ToVoter) and isinstance(word, Prepare | Accept):
                word = Accept(word.head, word.cfg) if isinstance(word, Accept) else word
                said |= self._bit(effect.voter, word)
            elif isinstance(effect, ToHead) and isinstance(word, Prepare | Promise | Accept | Accepted):
                said |= self._bit(pair.other, FromHead(word))
        taken, chosen = frozenset(course.taken), frozenset(course.chosen)
        return Head(self._number(pair), said, taken, chosen, tuple(course.committed), course.began)

    def _copy(self, number: int, other: int) -> list[tuple[Head, Head]]:
        """What becomes of both when a primary copies its journal to the other head, after each word that arrives."""
        if (number, other) not in self._copies:
            self._copies[number, other] = list(self._copying(number, other))
        return self._copies[number, other]

    def _copying(self, number: int, other: int) -> Iterator[tuple[Head, Head]]:
        if self.pairs[number].role != "primary":
            return
        pairs = clone(self.pairs[number]), clone(self.pairs[other])
        courses = Course(pairs[0]), Course(pairs[1])
        pair, sender = pairs[0], pairs[0].sender
        words = [sender.heartbeat(pair.me, pair.epoch, NOW_S, 0.0, pair.commit, (0, b""))]
        heads = [self._still(number), self._still(other)]
        for turn in range(COPYING_MAX):
            at = 1 - turn % 2
            courses[at].run([FromHead(word) for word in words])
            words = courses[at].take(Append, Appended)
            head = self._done(clone(pairs[at]), courses[at])
            if head is None:
                return
            heads[at] = head
            yield heads[0], heads[1]
            if not words:
                return
        raise Broken("copying has no end")

    def _still(self, number: int) -> Head:
        return Head(number, 0, frozenset(), frozenset(), (), False)

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
        end = len(self._words)
        for place in range(known, end):
            is_spent = self._is_spent_for_head if is_head else self._is_spent_for_voter
            spent |= is_spent(number, place) << place
        self._deaf[is_head, number] = end, spent
        return spent

    def _is_spent_for_head(self, number: int, place: int) -> bool:
        pair, (to, word) = self.pairs[number], self._words[place]
        if to != pair.me or not is_spent(pair, word.message):
            return False
        head = self._step(number, word)  # where a guard is missing, it heeds what it should not
        return head is None or head.now == number

    def _is_spent_for_voter(self, number: int, place: int) -> bool:
        name, epoch, acc = self._voters[number]
        to, word = self._words[place]
        if to != name:
            return name.startswith(to)  # that life of the voter is over
        return is_old(word, epoch, acc.order if acc else (0, 0)) and self._answer(number, place)[0] == number


def _proposer(cfg: Cfg) -> str:
    return HEADS[(cfg.epoch + 1) % 2]


def _is_chosen(cfg: Cfg, by: set[str]) -> bool:
    """Whether it is enough that these have taken a value; both heads must where both are in step."""
    if _proposer(cfg) not in by:
        return False
    return by.issuperset(HEADS) or (len(cfg.isr) == 1 and carried(cfg.voters, by))


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
