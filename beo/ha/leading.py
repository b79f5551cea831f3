"""A head as primary: until when it may act, how far the journal is safe, and who is in step and votes. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection

from beo.ha import voters
from beo.ha.acts import Became, Kept, Tick, ToHead, ToVoter
from beo.ha.log import Log
from beo.ha.proposer import FIRST, Proposer
from beo.ha.register import RHO
from beo.ha.sending import Sender
from beo.votes import Cfg, HandOver, Hello, Lease, PairSettings

JOIN_LAG = 64  # entries that may be missing when new ones wait a moment so that the other head gets in step
JOIN_LAG_BYTES = 4 << 20  # the same of output
JOIN_S = 0.5  # so long may they wait; then they go on, and it is tried again
JOIN_PAUSE_S = 0.5
AUDIBLE_MAX = 64  # voters that a head tells the other one of: a dozen times as many as vote
STUCK_S = 1.0  # who takes nothing for so long counts as silent, however well its heartbeat goes
STEADY_S = 2.0  # after it was silent, it must have answered for so long before it is in step again
STEADY_MAX_S = 60.0  # doubled with each relapse up to here
RELAPSE_S = 600.0  # in step for so long, and the relapses are forgotten
LEAVE_S = 1.0  # a planned hand-over that takes longer is given up
FAILBACK_S = 5.0  # in step for so long before the first head gets its role back


class Leader(Proposer):
    """What a head does while it is primary."""

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
        super().__init__(me, other, kept, incarnation)
        self.log = log
        self.commit = 0
        self.sender = Sender(log, 0.0)
        self.digest: tuple[int, bytes] = (0, b"")  # of this head's state, for the standby to compare
        self._durable = durable
        self._settings = settings
        self._uniform = uniform
        self._now = self._began_s = 0.0
        self.peer: Hello | None = None  # how the other head introduced itself last
        self._present: dict[str, tuple[str, float]] = {}  # voter -> its rack, when it last gave a sign of life
        self._stand_s = 0.0  # no candidate before
        self._down_from_s: float | None = None  # since then nobody acts, as far as this head knows
        self._grants: dict[str, float] = {}  # until when voters, and the other head by its name, promise nobody else
        self._lease_s = self._lease_least_s = 0.0  # now, and the shortest of this epoch
        self._lease_since_s = 0.0
        self._heard_s = 0.0  # the other head's last answer
        self._steady_from_s: float | None = None
        self._penalty_s = 0.0
        self._fell = False  # out of step before: the next time is a relapse
        self._in_step_s: float | None = None
        self._join_s: float | None = None
        self._join_known = False  # that it joins is known to whoever acknowledges output, too
        self._join_not_before_s = 0.0
        self._leave_s: float | None = None
        self._output_lag = 0
        self._unsynced = 0, 0, 0.0  # this entry, this Store and all before were made then, and were not durable at last

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

    def audible(self, now_s: float) -> tuple[str, ...]:
        """Return the possible voters that this head hears."""
        alive = (voter for voter, (_, seen_s) in self._present.items() if now_s - seen_s <= voters.ALIVE_S)
        return tuple(sorted(alive)[:AUDIBLE_MAX])

    @property
    def present(self) -> dict[str, tuple[str, float]]:
        """Possible voters: their rack, and when they last gave a sign of life."""
        return self._present

    # ---- the beginning and the end

    def _act(self) -> None:
        super()._act()
        self._grants.clear()
        self._lease_s = self._lease_least_s = self._settings().lease_s
        self._lease_since_s = self._now
        self._unsynced = 0, 0, self._now
        self.sender = Sender(self.log, self._now)
        took_part = self.other in self._accepted or self.other in self._promises
        self._heard_s = self._now if took_part else -1e9
        self._penalty_s = 0.0 if took_part or not self.other else STEADY_S
        self._fell = False
        self._steady_from_s = self._in_step_s = None
        self._join_s = self._leave_s = None
        down_s = self._now - self._down_from_s if self._down_from_s is not None else 0.0
        self._down_from_s = None
        self._effects.append(Became("primary", self.epoch, down_s))

    def _propose(self, cfg: Cfg, alone: bool = False) -> None:
        self._upto = self.log.last.idx
        super()._propose(cfg, alone)

    def _choose(self) -> None:
        super()._choose()
        if self.in_step and self._in_step_s is None:
            self._in_step_s = self._now
            self._join_s = None

    def _step_down(self, why: str) -> None:
        if self.role != "idle":
            was = self.role
            super()._step_down(why)
            self._grants.clear()
            self._join_s = self._leave_s = None
            self._stand_s = self._now + self._patience_s()
            if was == "primary":
                self._effects.append(Became("idle", self.epoch))

    def _patience_s(self) -> float:
        lease_s = self._settings().lease_s
        return lease_s * (1 + RHO) + self._uniform(0.0, lease_s / 4)

    # ---- while it acts

    def _until(self, t: float) -> float:
        """Until when a lease asked for at t runs."""
        return t + (self._lease_s if t >= self._lease_since_s else self._lease_least_s)

    def _heard(self, t: float) -> None:
        self._heard_s = self._now
        self._grants[self.other] = max(self._grants.get(self.other, 0.0), self._until(t))

    def _lead(self) -> None:
        """Commit what is safe, and send what is new."""
        alone = self.chosen and self.cfg and self.cfg.heads == (self.me,)
        level = self._settings().level
        if alone or level == "A":
            self.commit = max(self.commit, self._durable)
        elif level == "B" or self.sender.member == self.other:  # else it speaks of what it has received
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

    def _lead_on(self, item: Tick) -> None:
        settings = self._settings()
        if settings.lease_s != self._lease_s:
            self._lease_s, self._lease_since_s = settings.lease_s, self._now
            self._lease_least_s = min(self._lease_least_s, self._lease_s)
        self._output_lag = item.output_lag_bytes
        if not self.other:
            self._go_on_alone()  # it has left
            return
        if max(item.disk_s, self._disk_s()) > 2 * self._lease_s:
            self._step_down("its disk takes too long")
            return
        self._effects.append(
            ToHead(self.sender.heartbeat(self.me, self.epoch, self._now, self._lease_s, self.commit, self.digest))
        )
        lease = Lease(self.me, self.epoch, self._now, self._lease_s)
        for voter in self.acceptor.acc.electorate if self.acceptor.acc else ():
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
        if self._leave_s is not None and self._now - self._leave_s > LEAVE_S:
            self._leave_s = None
            self.why = f"{self.other} was not in step within {LEAVE_S:.0f} s: not handed over"
        if self.chosen and self.cfg and self.cfg.heads == (self.me,):
            self._let_in()
        elif self.in_step:
            self._tend()

    def _disk_s(self) -> float:
        """For how long this head's disk has owed something, at least: under load it always owes the newest."""
        index, serial, since_s = self._unsynced
        if self._durable < index or self._stored < serial:
            return self._now - since_s
        self._unsynced = self.log.last.idx, self._serial, self._now
        return 0.0

    def _go_on_alone(self) -> None:
        """The other head is silent."""
        self._steady_from_s = self._join_s = self._leave_s = None
        acc = self.acceptor.acc
        if not acc or len(acc.isr) == 1:
            return  # that is wished already
        if self._in_step_s is not None and self._now - self._in_step_s >= RELAPSE_S:
            self._fell = False
        self._penalty_s = min(STEADY_MAX_S, 2 * self._penalty_s) if self._fell else STEADY_S
        self._fell = True
        self._in_step_s = None
        self._propose(Cfg(self.epoch, acc.n + 1, (self.me,), acc.voters))

    def _was_emptied(self, t: float) -> None:
        """The other head, asked at t, knows nothing of the register: it began anew, maybe before anybody missed it."""
        if self._in_step_s is not None and t > self._in_step_s:  # else it may have answered before it was told
            self._go_on_alone()

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
            return
        member = self.sender.member
        if member and member not in acc.isr:
            self._propose(Cfg(self.epoch, acc.n + 1, tuple(sorted((self.me, member))), acc.voters))
            return
        if len(acc.voters) > 1:
            self._propose(Cfg(self.epoch, acc.n + 1, acc.isr, acc.voters[-1:]))
            return
        alive = {v: rack for v, (rack, seen_s) in self._present.items() if self._now - seen_s <= voters.ALIVE_S}
        voting = acc.voters[0] if acc.voters else ()
        if voting and self._now - self._began_s <= voters.ALIVE_S:
            return  # this head has just been started, and who is alive may not have said so yet
        there = self.peer.voters if self.peer else ()  # a voter that only one head hears is of little use
        common = {voter: rack for voter, rack in alive.items() if not there or voter in there}
        wanted = voters.choose(common, voting, self.me)
        own = voters.holder(self.me)
        missing = any(voter not in common and voter != own for voter in voting)
        if wanted != voting and (missing or len(wanted) != len(voting) or own in voting):
            sets = (voting, wanted) if voting else (wanted,)
            self._propose(Cfg(self.epoch, acc.n + 1, acc.isr, sets))
            return
        back = settings.failback and not settings.frozen and self.me != FIRST
        if back and self._now - self._in_step_s > FAILBACK_S:
            self._leave_s = self._now
