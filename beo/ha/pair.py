"""One head of two: what comes to it, and its role. Pure; replica.py puts it beside the state.

Roles: *idle* (a standby, if somebody acts) → *candidate* (asks, first without consequences, whether it may) → *won*
(its value is proposed) → *primary*. What decides is one Paxos register (register.py) whose value says which heads are
in step; everything else follows from the rule that a head must be in step to win, and that what is committed is durable
on every head in step. docs/replication.md has the protocol and why it holds. proposer.py is the register's side of it,
leading.py a primary's; here are the standby's, the candidate's patience, and an operator's wishes.
"""

from __future__ import annotations

from collections.abc import Callable

from beo import votes
from beo.errors import Conflict, UsageError
from beo.ha.acts import (
    Back,
    Begin,
    Durable,
    Effect,
    FromHead,
    FromVoter,
    Grown,
    Input,
    Kept,
    Stored,
    Tick,
    ToHead,
    Wish,
)
from beo.ha.leading import Leader
from beo.ha.log import Log
from beo.ha.proposer import FIRST as FIRST
from beo.ha.register import RHO
from beo.ha.taking import Taker
from beo.votes import (
    Accept,
    Accepted,
    Append,
    Appended,
    Cfg,
    Granted,
    HandOver,
    Hello,
    PairSettings,
    Part,
    Parted,
    Prepare,
    Present,
    Promise,
    Refuse,
)

WISH_S = 30.0  # an operator's wish to take over is meant for now, not for the next silence
RETRY_S = 0.3  # at most, after an election that came to nothing
ASYNC_LAG = 1_000  # entries that a standby may lack at level A and still take over by itself


class Pair(Leader):
    """The core of one head's role. `handle` is its only verb; the attributes are for reading."""

    def __init__(
        self,
        me: str,
        other: str,
        kept: Kept,
        log: Log,
        durable: int,
        incarnation: str,
        uniform: Callable[[float, float], float],
        settings: Callable[[], PairSettings],
    ) -> None:
        """Take what was kept; other: the other head's name, "" while there is none. Settings may change any time."""
        super().__init__(me, other, kept, log, durable, incarnation, uniform, settings)
        self.foreign = False  # an operator has gone on without this head: it must begin anew
        self.taker = Taker(log)
        self._heard_primary_s = 0.0
        self._answer_t: tuple[int, float] | None = None  # epoch and t of the last Append, to be answered again
        self._lag_seen = 0
        self._lacks = 0  # of files, as of the last tick
        self._wished_until_s = 0.0  # an operator wants this head to take over
        self._asked_s = 0.0  # as candidate: when it began to ask

    # ---- what others ask

    @property
    def heard_s(self) -> float:
        """When the other head last said something that counts."""
        return self._heard_s if self.role == "primary" else self._heard_primary_s

    # ---- the frame

    def handle(self, item: Input, now_s: float) -> list[Effect]:
        """Take one input, return its effects in order. now_s: CLOCK_BOOTTIME. Raises BeoError for a wish refused."""
        self._now = now_s
        match item:
            case Begin():
                self._began_s = now_s
                self._heard_primary_s = now_s
                if not self._is_alone():
                    self._stand_s = now_s + self._patience_s()
                elif self._may_stand():
                    self._stand()
            case Tick():
                self._tick(item)
            case Stored():
                self._has_stored(item.serial)
            case Durable():
                self._durable = max(self._durable, item.index)
                if self._answer_t and self.role == "idle":
                    self._answer_append(*self._answer_t)
            case Grown():
                pass
            case FromHead():
                self._from_head(item)
            case FromVoter():
                self._from_voter(item.message)
            case Wish():
                self._wish(item.word)
        if self.role == "primary":
            self._lead()
        return self._flush()

    def _step_down(self, why: str) -> None:
        if self.role == "primary":
            self._heard_primary_s = self._now
        super()._step_down(why)

    def _act(self) -> None:
        super()._act()
        self._wished_until_s = 0.0
        self._answer_t = None

    # ---- messages

    def _from_head(self, item: FromHead) -> None:
        message = item.message
        epoch = message.cfg.epoch if isinstance(message, Accept) else getattr(message, "epoch", 0)
        if isinstance(message, Hello):
            self.peer = message
            return
        if self._is_beyond(message.promised if isinstance(message, Refuse) else epoch):
            return
        match message:
            case Prepare():
                self._prepare(message)
            case Accept():
                self._accept(message)
            case Append():
                self._take(message)
            case Part():
                self._take_part(message)
            case HandOver():
                self._take_over_from(message)
            case Promise():
                self._promised(self.other, message)
            case Accepted():
                self._was_accepted(self.other, message)
            case Refuse():
                self._refused(message)
            case Appended():
                if self.role == "primary" and message.epoch == self.epoch:
                    self._heard(message.t)
                    self.sender.heard(message, self._now)
                    if message.blank:
                        self._was_emptied(message.t)
            case Parted():
                if self.role == "primary" and message.epoch == self.epoch:
                    self._heard_s = self._now
                    self.sender.parted(message, self._now)

    def _from_voter(self, message: Present | votes.Ballot) -> None:
        told = message.promised if isinstance(message, Refuse) else 0
        if isinstance(message, Promise) and message.acc:
            told = message.acc.epoch
        if self._is_beyond(told):
            return
        rack = message.rack if isinstance(message, Present) else self._present.get(message.voter, ("", 0.0))[0]
        if message.voter not in self._present:
            node = message.voter.partition("/")[0]
            for former in [voter for voter in self._present if voter.partition("/")[0] == node]:
                del self._present[former]
        self._present[message.voter] = rack, self._now
        match message:
            case Promise():
                self._promised(message.voter, message)
            case Accepted():
                self._was_accepted(message.voter, message)
            case Granted():
                if self.role == "primary" and message.epoch == self.epoch:
                    self._grants[message.voter] = max(self._grants.get(message.voter, 0.0), self._until(message.t))
            case Refuse():
                self._refused(message)

    def _refused(self, message: Refuse) -> None:
        was = self.role
        super()._refused(message)
        if self.role != was:
            self._stand_s = self._now + self._uniform(0.0, RETRY_S)

    def _is_fresh(self) -> bool:
        """Whether this head knows nothing of its cluster yet: it is new, or its disk was emptied."""
        return self.acceptor.acc is None and self.log.last.idx == 0

    def _is_beyond(self, epoch: int) -> bool:
        """Whether an operator has forced the other head, so that this one, which has a past, must begin anew."""
        if votes.generation(epoch) > votes.generation(self.acceptor.epoch) and not self._is_fresh():
            self.foreign = True
            self._step_down("")
            self.why = "the other head was forced to go on without this one: 'beo ha rejoin --wipe' here"
        return self.foreign

    # ---- as acceptor

    def _prepare(self, message: Prepare) -> None:
        if self._is_fresh():
            return  # if its disk was emptied, it had promised what it knows nothing of
        if self.may_act and message.epoch > self.epoch:
            self._say(ToHead(Refuse(self.me, message.epoch, self.acceptor.epoch, lease=True)))
            return
        before = self.acceptor.epoch
        answer = self.acceptor.prepare(message, self._now)
        if self.acceptor.epoch != before:
            self._step_down("the other head was promised more")
        self._keep()
        self._say(ToHead(answer))

    def _accept(self, message: Accept) -> None:
        if self._is_fresh() or not self._has(message.cfg, message.upto):
            return  # in step means to have it; it is asked again
        before = self.acceptor.durable
        answer = self.acceptor.accept(message)
        if self.acceptor.durable != before:
            self.chosen = False
            self._step_down("the other head acts")
        self._keep()
        self._say(ToHead(answer))

    def _has(self, cfg: Cfg, upto: int) -> bool:
        """Whether this head has what it must if it is in step: what the primary believes may be of an earlier life."""
        if not any(member in self._members for member in cfg.isr):
            return True
        here = self.taker.agreed_with(cfg.epoch)
        return (min(here, self._durable) if self.me in cfg.isr else here) >= upto

    # ---- as standby

    def _hear_primary(self, epoch: int) -> bool:
        """Obey whoever acts in this epoch; say False, and tell it, where a higher one was promised."""
        if epoch < self.acceptor.epoch:
            self._say(ToHead(Refuse(self.me, epoch, self.acceptor.epoch)))
            return False
        if epoch > self.acceptor.epoch:
            self.acceptor.epoch = epoch
            self._keep()
        if self.role != "idle":
            self._step_down("the other head acts")
        self.leader = self.other
        self.why = ""
        self._seen = max(self._seen, epoch)
        self._heard_primary_s = self._now
        self._stand_s = self._now + self._patience_s()
        self.taker.begin(epoch)
        return True

    def _take(self, message: Append) -> None:
        if not self._hear_primary(message.epoch):
            return
        self.acceptor.lease(message, self._now)
        ok, hint, acts = self.taker.take(message, self._safe)
        self._effects.extend(acts)
        for act in acts:
            if isinstance(act, Back):
                self._durable = min(self._durable, act.position.idx)
                self.commit = min(self.commit, act.position.idx)  # at level A, what was committed can be lost
        self._lag_seen = max(0, message.last - self.taker.agreed)
        if ok:
            self.commit = max(self.commit, min(message.commit, self.taker.agreed))
            self._answer_t = message.epoch, message.t
            self._answer_append(*self._answer_t)
        else:
            self._answer_t = None
            self._say_appended(message.epoch, message.t, 0, False, hint)

    @property
    def _safe(self) -> int:
        """Up to here nothing is ever taken back; at level A, an operator has wished that it may be."""
        return 0 if self._settings().level == "A" else self.commit

    @property
    def _member(self) -> str:
        """This head's name in step, at the level that holds."""
        return self._members[self._settings().level == "B"]

    def _answer_append(self, epoch: int, t: float) -> None:
        if epoch < self.acceptor.epoch:
            return
        acc = self.acceptor.acc
        received = bool(acc and self._member != self.me and self._member in acc.isr)  # as the primary knows it, too
        match = self.taker.agreed if received else min(self.taker.agreed, self._durable)
        self._say_appended(epoch, t, match, True, 0)

    def _say_appended(self, epoch: int, t: float, match: int, ok: bool, hint: int) -> None:
        blank = self.acceptor.acc is None
        self._say(ToHead(Appended(self.me, epoch, t, match, ok, hint, self._member, blank)))

    def _take_part(self, message: Part) -> None:
        if not self._hear_primary(message.epoch):
            return
        have, install = self.taker.part(message, self._safe)
        if install:
            self.log.install(install.position)
            self.commit = self._durable = install.position.idx
            self._effects.append(install)
        self._say(ToHead(Parted(self.me, message.epoch, message.position.idx, have)))

    def _take_over_from(self, message: HandOver) -> None:
        if self.acceptor.acc is None:
            return  # its disk was emptied since it accepted that it is in step: the other one goes on
        if message.epoch == self.acceptor.epoch and self.role == "idle" and self.log.last == message.position:
            self.acceptor.release()
            self._down_from_s = self._now
            self._stand(pre=False)

    # ---- as candidate

    def _may_stand(self) -> bool:
        acc = self.acceptor.acc
        if acc is None or self.foreign or self._now < self._stand_s:
            return False
        if self._is_alone():
            return True
        if not any(member in self._members for member in acc.isr):
            self.why = f"this head isn't in step: it waits for {self.other}, which may hold newer jobs"
            return False
        if self._now - self._began_s <= self._settings().lease_s * (1 + RHO):
            return False  # it may have given a lease before it was restarted
        if self.acceptor.blocks(self.me, self._now):
            return False
        settings = self._settings()
        wished = self._now < self._wished_until_s
        if settings.level == "A" and self._lag_seen > ASYNC_LAG and not wished:
            self.why = f"{self._lag_seen} entries were missing here when {self.other} was last heard: 'beo ha takeover'"
            return False
        last_was_me = acc.epoch % 2 == self._parity
        if self._lacks and not (wished or last_was_me):
            self.why = f"files are not whole here: {self._lacks} pieces are on {self.other} alone: 'beo ha takeover'"
            return False
        if (settings.takeover == "manual" or settings.frozen) and not (last_was_me or wished):
            self.why = "take-over is manual: 'beo ha takeover' here" if not settings.frozen else "frozen: 'beo ha thaw'"
            return False
        return True

    def _stand(self, pre: bool = True) -> None:
        if self._down_from_s is None and self._heard_primary_s > self._began_s:
            self._down_from_s = self._heard_primary_s
        self._run_for(pre)

    def _try_for_real(self) -> None:
        self._asked_s = self._now
        super()._try_for_real()

    def _tick(self, item: Tick) -> None:
        self._lacks = item.lacks
        if self.role == "idle":
            if self._may_stand():
                self._stand()
        elif self.role == "candidate":
            if self._trying and self._now - self._asked_s > self._settings().lease_s:
                self._step_down("nobody has answered: too few voters, and no other head")
                self._stand_s = self._now + self._uniform(0.0, RETRY_S)
            else:
                if self._now - self._asked_s > self._settings().lease_s:
                    self.why = f"neither {self.other or 'another head'} nor enough voters answer"
                self._ask()
        elif self.role == "won":
            self._ask_to_accept()
        else:
            self._lead_on(item)

    # ---- an operator

    def _wish(self, word: str) -> None:
        if word == "switchover":
            if self.role != "primary":
                raise Conflict("this head doesn't act", "", "ask the one that does: see 'beo ha status'")
            if not self.in_step:
                why = f"{self.other or 'there is no other head, it'} lacks what was acknowledged here"
                raise Conflict("the other head isn't in step", why, "see 'beo ha status', and wait until it is")
            self._leave_s = self._now
        elif word == "takeover":
            if self.role == "primary":
                return
            self._refuse_while_heard()
            acc = self.acceptor.acc
            if acc is None or not any(member in self._members for member in acc.isr):
                cure = "wait for it, or 'beo ha force-primary' here if it is gone for good"
                raise Conflict("this head isn't in step", f"{self.other} may hold newer jobs", cure)
            self._wished_until_s = self._now + WISH_S
            self._stand_s = self._now
        elif word == "force":
            self._force()
        else:
            raise UsageError(f"there is no wish {word[:20]!r}", "", "say switchover, takeover or force")

    def _refuse_while_heard(self) -> None:
        silent_s = self._now - self._heard_primary_s
        if self.leader == self.other and silent_s <= self._settings().silence_s:
            why = f"it was heard {silent_s:.1f} s ago"
            raise Conflict(f"head {self.other} acts", why, "'beo ha switchover' hands the role over")

    def _force(self) -> None:
        """Begin a new generation without the other head, whatever it holds."""
        if self.role == "primary" and self.chosen and self.cfg and self.cfg.heads == (self.me,):
            return
        if self._is_fresh():
            cure = "force the head that has it, or 'beo ha rejoin' here"
            raise Conflict("this head knows nothing of the cluster", "its journal is empty", cure)
        self._refuse_while_heard()
        self._step_down("forced")
        generation = votes.generation(max(self._seen, self.acceptor.epoch)) + 1
        self.epoch = (generation << votes.GENERATION_SHIFT) + 2 - self._parity
        self.acceptor.epoch = self._seen = self.epoch
        self.foreign = False
        self._promises = {}
        self._win(Cfg(self.epoch, 1, (self.me,)), alone=True)
