"""One head of two: its role, who may act, and how far the journal is safe. Pure; replica.py puts it beside the state.

Roles: *idle* (a standby, if somebody acts) → *candidate* (asks, first without consequences, whether it may) → *won*
(its value is proposed) → *primary*. What decides is one Paxos register (register.py) whose value says which heads are
in step; everything else follows from the rule that a head must be in step to win, and that what is committed is durable
on every head in step. docs/replication.md has the protocol and why it holds.

Nothing that shows what a head has promised leaves before that is durable: such messages wait for their `Store`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from beo import votes
from beo.errors import Conflict, UsageError
from beo.ha import voters
from beo.ha.acts import (
    Back,
    Became,
    Begin,
    Durable,
    Effect,
    FromHead,
    FromVoter,
    Grown,
    Input,
    Kept,
    Store,
    Stored,
    Tick,
    ToHead,
    ToVoter,
    Wish,
)
from beo.ha.log import Log
from beo.ha.register import RHO, Acceptor, carried
from beo.ha.sending import Sender
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
    Lease,
    PairSettings,
    Part,
    Parted,
    Prepare,
    Present,
    Promise,
    Refuse,
)

JOIN_LAG = 64  # entries that may be missing when new ones wait a moment so that the other head gets in step
JOIN_LAG_BYTES = 4 << 20  # the same of output
JOIN_S = 0.5  # so long may they wait; then they go on, and it is tried again
JOIN_PAUSE_S = 0.5
STUCK_S = 1.0  # who takes nothing for so long counts as silent, however well its heartbeat goes
STEADY_S = 2.0  # after it was silent, it must have answered for so long before it is in step again
STEADY_MAX_S = 60.0  # doubled with each relapse up to here
RELAPSE_S = 600.0  # in step for so long, and the relapses are forgotten
LEAVE_S = 1.0  # a planned hand-over that takes longer is given up
FAILBACK_S = 5.0  # in step for so long before the first head gets its role back
RETRY_S = 0.3  # at most, after an election that came to nothing
ASYNC_LAG = 1_000  # entries that a standby may lack at level A and still take over by itself
FIRST = "A"  # the head with odd epochs, which failback prefers


class Pair:
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
        self.me = me
        self.other = other
        self.log = log
        self.role = "idle"
        self.why = ""  # it doesn't act or isn't in step, where there is a reason to tell
        self.epoch = 0  # its own: of its candidacy or its acting
        self.commit = 0
        self.chosen = kept.chosen
        self.acceptor = Acceptor(me, kept.epoch, kept.acc)
        self.leader = ""  # who acts, as far as this head knows
        self.digest: tuple[int, bytes] = (0, b"")  # of the primary's state, for the standby to compare
        self.foreign = False  # an operator has gone on without this head: it must begin anew
        self.sender = Sender(log, 0.0)
        self.taker = Taker(log)
        self.peer: Hello | None = None
        self._durable = durable
        self._settings = settings
        self._uniform = uniform
        self._members = (me, f"{me}/{incarnation}")
        self._now = 0.0
        self._effects: list[Effect] = []
        self._outbox: deque[tuple[int, ToHead | ToVoter]] = deque()
        self._then: deque[tuple[int, Callable[[], None]]] = deque()
        self._serial = self._stored = 0
        self._kept = kept
        self._began_s = 0.0
        self._seen = kept.epoch  # the highest epoch that was heard of
        self._present: dict[str, tuple[str, float]] = {}  # voter -> its rack, when it last gave a sign of life
        # as standby
        self._heard_primary_s = 0.0
        self._answer_t: tuple[int, float] | None = None  # epoch and t of the last Append, to be answered again
        self._lag_seen = 0
        self._stand_s = 0.0  # not before
        self._wished = False  # an operator wants this head to take over
        # as candidate
        self._trying = False  # the epoch is promised here: it is no pre-vote any more
        self._promises: dict[str, Cfg | None] = {}
        self._asked_s = 0.0
        # as winner and primary
        self.cfg: Cfg | None = None  # the last value that was chosen, as this primary knows
        self._accepted: set[str] = set()
        self._grants: dict[str, float] = {}  # until when voters, and the other head by its name, promise nobody else
        self._lease_s = self._lease_before_s = 0.0
        self._lease_since_s = 0.0
        self._heard_s = 0.0  # the other head's last answer
        self._steady_from_s: float | None = None
        self._penalty_s = 0.0
        self._in_step_s: float | None = None
        self._join_s: float | None = None
        self._join_known = False  # that it joins is known to whoever acknowledges output, too
        self._join_not_before_s = 0.0
        self._leave_s: float | None = None
        self._output_lag = 0
        self._down_from_s: float | None = None

    # ---- what others ask

    @property
    def may_act(self) -> bool:
        """Whether no other head can be acting now, by the time of the last `handle`."""
        return self.role == "primary" and self._now < self.acts_until_s

    @property
    def acts_until_s(self) -> float:
        """Until when nobody else can act, if nothing more is heard. CLOCK_BOOTTIME."""
        if self.role != "primary" or not self.cfg:
            return 0.0
        if self.chosen and self.cfg.heads == (self.me,):
            return float("inf")  # no other head can win: it is not in step
        until = self._grants.get(self.other, 0.0)
        acc = self.acceptor.acc
        if acc and acc.voters and all(acc.voters):
            until = max(until, min(self._majority_grant(group) for group in acc.voters))
        return until

    def _majority_grant(self, group: Collection[str]) -> float:
        own = voters.holder(self.me)
        grants = sorted((float("inf") if v == own else self._grants.get(v, 0.0) for v in group), reverse=True)
        return grants[len(group) // 2]

    @property
    def both(self) -> bool:
        """Whether what is acknowledged must be on both heads: they are in step, or about to be."""
        if self.role != "primary" or not self.cfg:
            return False
        acc = self.acceptor.acc
        return len(self.cfg.isr) > 1 or bool(acc and len(acc.isr) > 1) or self._join_s is not None

    @property
    def holds(self) -> bool:
        """Whether nothing new should be begun for a moment."""
        return self._join_s is not None or self._leave_s is not None

    @property
    def output_lag(self) -> int:
        """Bytes of output that the other head lacks, as this primary was told last."""
        return self._output_lag

    @property
    def in_step(self) -> bool:
        """Whether this head, the primary, knows that both are in step."""
        return self.role == "primary" and self.chosen and bool(self.cfg and len(self.cfg.isr) > 1)

    @property
    def is_voting(self) -> frozenset[str]:
        """The voters whose vote counts."""
        return frozenset(self.acceptor.acc.electorate) if self.acceptor.acc else frozenset()

    @property
    def present(self) -> dict[str, tuple[str, float]]:
        """Possible voters: their rack, and when they last gave a sign of life."""
        return self._present

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
                self._stored = max(self._stored, item.serial)
                while self._then and self._then[0][0] <= self._stored:
                    self._then.popleft()[1]()
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
        while self._outbox and self._outbox[0][0] <= self._stored:
            self._effects.append(self._outbox.popleft()[1])
        effects, self._effects = self._effects, []
        return effects

    def _say(self, effect: ToHead | ToVoter) -> None:
        """Send as soon as what this head has promised so far is durable."""
        self._outbox.append((self._serial, effect))

    def _keep(self, then: Callable[[], None] | None = None) -> None:
        """Make the register durable, if it has changed."""
        kept = Kept(self.acceptor.epoch, self.acceptor.acc, self.chosen)
        if kept != self._kept:
            self._kept = kept
            self._serial += 1
            self._effects.append(Store(self._serial, kept))
        if then:
            if self._stored >= self._serial:
                then()
            else:
                self._then.append((self._serial, then))

    def _patience_s(self) -> float:
        lease_s = self._settings().lease_s
        return lease_s * (1 + RHO) + self._uniform(0.0, lease_s / 4)

    def _step_down(self, why: str) -> None:
        if self.role != "idle":
            was, self.role = self.role, "idle"
            self.why = why
            self.leader = ""
            self._grants.clear()
            self._join_s = self._leave_s = None
            self._stand_s = self._now + self._patience_s()
            if was == "primary":
                self._heard_primary_s = self._now
                self._effects.append(Became("idle", self.epoch))

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
            case Parted():
                if self.role == "primary" and message.epoch == self.epoch:
                    self._heard_s = self._now
                    self.sender.parted(message, self._now)

    def _is_beyond(self, epoch: int) -> bool:
        """Whether an operator has forced the other head, so that this one, which has a past, must begin anew."""
        fresh = self.acceptor.acc is None and self.log.last.idx == 0
        if votes.generation(epoch) > votes.generation(self.acceptor.epoch) and not fresh:
            self.foreign = True
            self._step_down("")
            self.why = "the other head was forced to go on without this one: 'beo ha rejoin --wipe' here"
        return self.foreign

    def _from_voter(self, message: Present | votes.Ballot) -> None:
        rack = message.rack if isinstance(message, Present) else self._present.get(message.voter, ("", 0.0))[0]
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
        self._seen = max(self._seen, message.promised)
        if message.epoch == self.epoch and message.promised > self.epoch and self.role != "idle":
            if self.role == "candidate" and not self._trying:
                self._try_epoch()
            else:
                self._step_down("another head was promised more")
                self._stand_s = self._now + self._uniform(0.0, RETRY_S)

    # ---- as acceptor

    def _prepare(self, message: Prepare) -> None:
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
        if self.me in message.cfg.isr and self._durable < self.log.last.idx:
            return  # in step means durable; it is asked again
        before = self.acceptor.durable
        answer = self.acceptor.accept(message)
        if self.acceptor.durable != before:
            self.chosen = False
            self._step_down("the other head acts")
        self._keep()
        self._say(ToHead(answer))

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
        safe = 0 if self._settings().level == "A" else self.commit
        ok, hint, acts = self.taker.take(message, safe)
        self._effects.extend(acts)
        for act in acts:
            if isinstance(act, Back):
                self._durable = min(self._durable, act.position.idx)
        self._lag_seen = max(0, message.last - self.taker.agreed)
        if ok:
            self.commit = max(self.commit, min(message.commit, self.taker.agreed))
            self._answer_t = message.epoch, message.t
            self._answer_append(*self._answer_t)
        else:
            self._answer_t = None
            self._say(ToHead(Appended(self.me, message.epoch, message.t, 0, False, hint, self._member)))

    @property
    def _member(self) -> str:
        """This head's name in step, at the level that holds."""
        return self._members[self._settings().level == "B"]

    def _answer_append(self, epoch: int, t: float) -> None:
        if epoch < self.acceptor.epoch:
            return
        acc = self.acceptor.acc
        received = bool(acc and self._members[1] in acc.isr)  # level B, as the primary knows it too
        match = self.taker.agreed if received else min(self.taker.agreed, self._durable)
        self._say(ToHead(Appended(self.me, epoch, t, match, True, 0, self._member)))

    def _take_part(self, message: Part) -> None:
        if not self._hear_primary(message.epoch):
            return
        have, install = self.taker.part(message)
        if install:
            self.log.install(install.position)
            self.commit = self._durable = install.position.idx
            self._effects.append(install)
        self._say(ToHead(Parted(self.me, message.epoch, message.position.idx, have)))

    def _take_over_from(self, message: HandOver) -> None:
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
        if settings.level == "A" and self._lag_seen > ASYNC_LAG and not self._wished:
            self.why = f"{self._lag_seen} entries were missing here when {self.other} was last heard: 'beo ha takeover'"
            return False
        last_was_me = acc.epoch % 2 == self._parity
        if (settings.takeover == "manual" or settings.frozen) and not (last_was_me or self._wished):
            self.why = "take-over is manual: 'beo ha takeover' here" if not settings.frozen else "frozen: 'beo ha thaw'"
            return False
        return True

    def _is_alone(self) -> bool:
        """Whether it is certain that this head goes on alone: nobody else can have been in step since."""
        return self.chosen and self.acceptor.acc is not None and self.acceptor.acc.isr == (self.me,)

    @property
    def _parity(self) -> int:
        return 1 if self.me == FIRST else 0

    def _try_epoch(self) -> None:
        epoch = max(self._seen, self.acceptor.epoch) + 1
        self.epoch = epoch + (epoch % 2 != self._parity)

    def _stand(self, pre: bool = True) -> None:
        acc = self.acceptor.acc
        assert acc
        self.role = "candidate"
        self.leader = ""
        self._trying = False
        self._promises = {}
        self._asked_s = self._now
        if self._down_from_s is None and self._heard_primary_s > self._began_s:
            self._down_from_s = self._heard_primary_s
        self._try_epoch()
        if not pre or self._is_alone():
            self._try_for_real()
        else:
            self._promises[self.me] = acc
            self._ask()
            self._count_promises()

    def _ask(self) -> None:
        acc = self.acceptor.acc
        assert acc
        message = Prepare(self.me, self.epoch, not self._trying)
        for voter in acc.electorate:
            if voter not in self._promises and not voter.startswith("holder/"):
                self._say(ToVoter(voter, message))
        if self.other and self.other not in self._promises:
            self._say(ToHead(message))

    def _try_for_real(self) -> None:
        epoch = self.epoch
        self._trying = True
        self._promises = {}
        self._asked_s = self._now
        self.acceptor.epoch = epoch

        def stored() -> None:
            if self.role == "candidate" and self.epoch == epoch and self._trying:
                self._promises[self.me] = self.acceptor.acc
                self._count_promises()

        self._keep(stored)
        if self.role == "candidate":
            self._ask()

    def _promised(self, voter: str, message: Promise) -> None:
        if self.role != "candidate" or message.epoch != self.epoch or message.pre == self._trying:
            return
        self._promises[voter] = message.acc
        self._count_promises()

    def _agree(self, who: Collection[str]) -> bool:
        """Whether these, and this head itself, are enough to decide."""
        acc = self.acceptor.acc
        if self.me not in who or acc is None:
            return False
        return self.other in who or carried(acc.voters, {*who, voters.holder(self.me)})

    def _count_promises(self) -> None:
        acc = self.acceptor.acc
        assert acc
        alone = self._is_alone() and self.me in self._promises
        if not alone and not self._agree(self._promises):
            return
        if not self._trying:
            self._try_for_real()
            return
        best = acc
        for found in self._promises.values():
            if found and found.order > best.order and not self._was_never_chosen(found):
                best = found
        if not any(member in self._members for member in best.isr):
            self._step_down("")
            self.why = f"this head isn't in step: it waits for {self.other}, which may hold newer jobs"
            self._stand_s = self._now + self._settings().lease_s
            return
        self._win(Cfg(self.epoch, best.n + 1, (self.me,), best.voters), alone)

    def _was_never_chosen(self, cfg: Cfg) -> bool:
        """Whether the other head's wish to go on alone failed: it is silent, and too many took something lower."""
        if cfg.heads != (self.other,) or self.other in self._promises or not cfg.voters:
            return False
        lower = {
            voter
            for voter, acc in self._promises.items()
            if voter != self.me and (acc is None or acc.order < cfg.order)
        }
        return carried(cfg.voters, lower)

    # ---- as winner

    def _win(self, cfg: Cfg, alone: bool) -> None:
        self.role = "won"
        self.cfg = None
        self._propose(cfg, alone)

    def _propose(self, cfg: Cfg, alone: bool = False) -> None:
        """Write a value down and ask for it, until it is chosen or another is proposed."""
        self.acceptor.acc = cfg
        self.chosen = False
        self._accepted = set()

        def stored() -> None:
            if self.acceptor.acc == cfg and self.role in ("won", "primary"):
                self._accepted.add(self.me)
                if alone:
                    self._choose()
                else:
                    self._ask_to_accept()
                    self._count_accepted()

        self._keep(stored)

    def _ask_to_accept(self) -> None:
        cfg = self.acceptor.acc
        if cfg is None or self.me not in self._accepted:
            return
        for voter in cfg.electorate:
            if voter not in self._accepted and not voter.startswith("holder/"):
                self._say(ToVoter(voter, Accept(self.me, cfg)))
        if self.other and self.other not in self._accepted:
            self._say(ToHead(Accept(self.me, cfg)))

    def _was_accepted(self, voter: str, message: Accepted) -> None:
        acc = self.acceptor.acc
        if self.role not in ("won", "primary") or self.chosen or not acc:
            return
        if (message.epoch, message.n) == acc.order:
            self._accepted.add(voter)
            self._count_accepted()

    def _count_accepted(self) -> None:
        acc = self.acceptor.acc
        if acc is None or self.chosen:
            return
        # Who is in step, and whose votes count, changes only with the other head's knowledge.
        needs_other = len(acc.isr) > 1
        if self.other in self._accepted if needs_other else self._agree(self._accepted):
            self._choose()

    def _choose(self) -> None:
        self.chosen = True
        self.cfg = self.acceptor.acc
        self._keep()
        if self.role == "won":
            self._act()
        elif self.in_step and self._in_step_s is None:
            self._in_step_s = self._now
            self._join_s = None

    def _act(self) -> None:
        """Begin to act: the register says that this head goes on alone, so all that it has is what counts."""
        self.role = "primary"
        self.leader = self.me
        self.why = ""
        self._wished = False
        self._answer_t = None
        self._grants.clear()
        self._lease_s = self._lease_before_s = self._settings().lease_s
        self._lease_since_s = self._now
        self.sender = Sender(self.log, self._now)
        took_part = self.other in self._accepted or self.other in self._promises
        self._heard_s = self._now if took_part else -1e9
        self._penalty_s = 0.0 if took_part or not self.other else STEADY_S
        self._steady_from_s = self._in_step_s = None
        self._join_s = self._leave_s = None
        down_s = self._now - self._down_from_s if self._down_from_s is not None else 0.0
        self._down_from_s = None
        self._effects.append(Became("primary", self.epoch, down_s))

    # ---- as primary

    def _until(self, t: float) -> float:
        """Until when a lease asked for at t runs."""
        shorter = min(self._lease_s, self._lease_before_s)
        return t + (self._lease_s if t >= self._lease_since_s else shorter)

    def _heard(self, t: float) -> None:
        self._heard_s = self._now
        self._grants[self.other] = max(self._grants.get(self.other, 0.0), self._until(t))

    def _lead(self) -> None:
        """Commit what is safe, and send what is new."""
        alone = self.chosen and self.cfg and self.cfg.heads == (self.me,)
        if alone or self._settings().level == "A":
            self.commit = max(self.commit, self._durable)
        else:
            self.commit = max(self.commit, min(self._durable, self.sender.match))
        if self.other:
            for message in self.sender.due(self.me, self.epoch, self._now, self._lease_s, self.commit):
                self._effects.append(ToHead(message))
        if self._join_s is not None and self._join_known and self._is_whole():
            acc = self.acceptor.acc
            if self.chosen and acc and acc.heads == (self.me,):
                self._propose(Cfg(self.epoch, acc.n + 1, tuple(sorted((self.me, self.sender.member))), acc.voters))
                self._join_s = None
        if self._leave_s is not None and self._is_whole() and self.commit == self.log.last.idx:
            self._say(ToHead(HandOver(self.me, self.epoch, self.log.last)))
            self._step_down(f"handed over to {self.other}")
            self._stand_s = self._now + 2 * self._patience_s()

    def _is_whole(self) -> bool:
        return self.sender.whole and self._durable == self.log.last.idx and not self._output_lag

    def _tick(self, item: Tick) -> None:
        if self.role == "idle":
            if self._may_stand():
                self._stand()
        elif self.role == "candidate":
            if self._trying and self._now - self._asked_s > self._settings().lease_s:
                self._step_down("nobody has answered: too few voters, and no other head")
                self._stand_s = self._now + self._uniform(0.0, RETRY_S)
            else:
                self._ask()
        elif self.role == "won":
            self._ask_to_accept()
        else:
            self._lead_on(item)

    def _lead_on(self, item: Tick) -> None:
        settings = self._settings()
        if settings.lease_s != self._lease_s:
            self._lease_before_s, self._lease_s, self._lease_since_s = self._lease_s, settings.lease_s, self._now
        self._output_lag = item.output_lag_bytes
        if not self.other:
            self._go_on_alone()  # it has left
            return
        if item.disk_s > 2 * self._lease_s:
            self._step_down("its disk takes too long")
            return
        self._effects.append(
            ToHead(self.sender.heartbeat(self.me, self.epoch, self._now, self._lease_s, self.commit, self.digest))
        )
        lease = Lease(self.me, self.epoch, self._now, self._lease_s)
        for voter in self.is_voting:
            if not voter.startswith("holder/"):
                self._effects.append(ToVoter(voter, lease))
        if not self.chosen:
            self._ask_to_accept()
        silent = self._now - self._heard_s > settings.silence_s
        stuck = self.both and (
            (self.sender.lag > 0 and self._now - self.sender.progress_s > STUCK_S) or item.output_stuck_s > STUCK_S
        )
        if silent or stuck:
            self._go_on_alone()
            return
        if self._steady_from_s is None:
            self._steady_from_s = self._now
        if self.chosen and self.cfg and self.cfg.heads == (self.me,):
            self._let_in()
        elif self.in_step:
            self._tend()

    def _go_on_alone(self) -> None:
        """The other head is silent."""
        self._steady_from_s = self._join_s = self._leave_s = None
        acc = self.acceptor.acc
        if not acc or len(acc.isr) == 1:
            return  # that is wished already
        if self._in_step_s is not None and self._now - self._in_step_s < RELAPSE_S:
            self._penalty_s = min(STEADY_MAX_S, max(STEADY_S, 2 * self._penalty_s))
        else:
            self._penalty_s = STEADY_S
        self._in_step_s = None
        self._propose(Cfg(self.epoch, acc.n + 1, (self.me,), acc.voters))

    def _let_in(self) -> None:
        """Let the other head get in step again, when it has answered for long enough and lacks little."""
        assert self._steady_from_s is not None
        if self._join_s is not None:
            self._join_known = True
            if self._now - self._join_s > JOIN_S:
                self._join_s = None
                self._join_not_before_s = self._now + JOIN_PAUSE_S
        elif (
            self._now - self._steady_from_s >= self._penalty_s
            and self._now >= self._join_not_before_s
            and self.sender.agreed
            and self.sender.lag <= JOIN_LAG
            and self._output_lag <= JOIN_LAG_BYTES
        ):
            self._join_s, self._join_known = self._now, False

    def _tend(self) -> None:
        """In step: keep enough voters alive, and the level as it should be; give the role back where that is wished."""
        acc, settings = self.acceptor.acc, self._settings()
        assert acc and self._in_step_s is not None
        if self._leave_s is not None:
            if self._now - self._leave_s > LEAVE_S:
                self._leave_s = None
                self.why = f"{self.other} was not in step within {LEAVE_S:.0f} s: not handed over"
            return
        member = self.sender.member
        if member and member not in acc.isr:
            isr = tuple(sorted((self.me, member)))
            if self.sender.whole:
                self._propose(Cfg(self.epoch, acc.n + 1, isr, acc.voters))
            return
        if len(acc.voters) > 1:
            self._propose(Cfg(self.epoch, acc.n + 1, acc.isr, acc.voters[-1:]))
            return
        alive = {v: rack for v, (rack, seen_s) in self._present.items() if self._now - seen_s <= voters.ALIVE_S}
        voting = acc.voters[0] if acc.voters else ()
        wanted = voters.choose(alive, voting, self.me)
        own = voters.holder(self.me)
        missing = any(voter not in alive and voter != own for voter in voting)
        if wanted != voting and (missing or len(wanted) != len(voting) or own in voting):
            sets = (voting, wanted) if voting else (wanted,)
            self._propose(Cfg(self.epoch, acc.n + 1, acc.isr, sets))
            return
        back = settings.failback and not settings.frozen and self.me != FIRST
        if back and self._now - self._in_step_s > FAILBACK_S:
            self._leave_s = self._now

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
            self._wished = True
            self._stand_s = self._now
        elif word == "force":
            self._force()
        else:
            raise UsageError(f"there is no wish {word[:20]!r}", "", "say switchover, takeover or force")

    def _force(self) -> None:
        """Begin a new generation without the other head, whatever it holds."""
        if self.role == "primary" and self.chosen and self.cfg and self.cfg.heads == (self.me,):
            return
        self._step_down("forced")
        generation = votes.generation(max(self._seen, self.acceptor.epoch)) + 1
        self.epoch = (generation << votes.GENERATION_SHIFT) + 2 - self._parity
        self.acceptor.epoch = self._seen = self.epoch
        self.foreign = False
        self._promises = {}
        self._win(Cfg(self.epoch, 1, (self.me,)), alone=True)
