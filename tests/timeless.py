"""One head of the walk (walk.py), the production `Pair` without time: how it begins, runs, is copied and compared."""

from __future__ import annotations

from collections import deque
from typing import Any

from beo.entries import Position
from beo.ha import acts
from beo.ha.acts import Kept, ToHead, ToVoter
from beo.ha.log import Log
from beo.ha.pair import Pair
from beo.votes import Accept, Accepted, Cfg, PairSettings, Prepare, Promise

HEADS = ("A", "B")
NOW_S = 1_000.0
LONG_AGO_S = -1e9
SETTINGS = PairSettings(lease_s=0.0, silence_s=0.0)
# Attributes of a head that time, words for people and the order of writing are in, and what they always are here.
TIMELESS = {
    **dict.fromkeys(("_now", "_heard_s", "_asked_s", "_heard_primary_s"), NOW_S),
    **dict.fromkeys(("_stand_s", "_began_s", "_join_not_before_s"), LONG_AGO_S),
    **{"_down_from_s": None, "_penalty_s": 0.0, "_fell": False, "_lease_since_s": 0.0, "_unsynced": (0, 0, 0.0)},
    **{"_lag_seen": 0, "why": "", "leader": "", "_serial": 0, "_stored": 0, "_answer_t": None},
}
# Those that say nothing of what it does next, or are looked at apart.
APART = frozenset({"_uniform", "_settings", "log", "sender", "taker", "acceptor", "_effects", "_kept", *TIMELESS})


def life(me: str, kept: Kept, log: Log, present: dict[str, Any]) -> Any:
    """A head that begins a life with what it has kept."""
    other = HEADS[1 - HEADS.index(me)]
    pair = Pair(me, other, kept, log, log.last.idx, "life", lambda low, high: low, lambda: SETTINGS)
    pair._present = dict(present)
    return pair


class Course:
    """What happens while a head takes inputs: its disk is there at once."""

    def __init__(self, pair: Any) -> None:
        self.pair = pair
        self.effects: list[ToHead | ToVoter] = []
        self.taken: set[Cfg] = set()
        self.chosen: set[Cfg] = set()
        self.committed: list[Position] = []
        self.began = False

    def run(self, inputs: list[Any]) -> Course:
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
            if pair.acceptor.acc:
                self.taken.add(pair.acceptor.acc)
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


def clone(pair: Any) -> Any:
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


def key_of(pair: Any) -> Any:
    """All that decides what a head does next; what doesn't is set to what it always is here."""
    pair.__dict__.update(TIMELESS)
    pair.sender.progress_s = pair.sender._sent_s = NOW_S
    pair._grants.clear()
    if pair.role != "candidate":
        pair._promises.clear()
        pair._trying = False
    if pair.chosen or pair.role not in ("won", "primary"):
        pair._accepted.clear()
    if pair.role == "idle":
        pair.epoch = pair._upto = 0
    leads = pair.role == "primary"
    if not leads:
        pair.cfg = pair._in_step_s = pair._steady_from_s = pair._join_s = None
    for name in ("_in_step_s", "_steady_from_s"):
        if getattr(pair, name) is not None:
            setattr(pair, name, LONG_AGO_S)
    own = tuple(_frozen(value) for name, value in pair.__dict__.items() if name not in APART)
    sender = (pair.sender.match, pair.sender.next, pair.sender.agreed, pair.sender.member) if leads else None
    log = tuple((entry.epoch, entry.data) for entry in pair.log._window)
    return own, sender, pair.acceptor.durable, pair.taker.agreed, pair.taker._epoch, log


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items(), key=lambda item: item[0]))
    if isinstance(value, set):
        return tuple(sorted(value))
    return tuple(value) if isinstance(value, deque) else value


def is_old(word: Prepare | Accept, epoch: int, order: tuple[int, int]) -> bool:
    """Whether an acceptor has nothing more to say to this, as it has answered before or will refuse."""
    if isinstance(word, Prepare):
        return word.epoch <= epoch
    return word.cfg.epoch < epoch or word.cfg.order <= order


def is_spent(pair: Any, word: Any) -> bool:
    """Whether a head will never do anything about this again, here or in any state that follows."""
    epoch, acc = pair.acceptor.durable
    order = acc.order if acc else (0, 0)
    # It heeds no answers to what it asked before.
    least = max(pair.epoch, epoch) + 1 if pair.role == "idle" else pair.epoch
    match word:
        case Promise():
            return bool(word.epoch < least or (word.epoch == least and pair.role != "candidate"))
        case Accepted():
            told = (word.epoch, word.n)
            return bool(word.epoch < least or told < order or (pair.chosen and told == order))
        case Prepare() | Accept():
            return is_old(word, epoch, order)
    return False
