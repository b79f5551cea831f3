"""A head's part in the register: it asks for promises, wins with the best value that it was told, and has it chosen.

The proposer of a Paxos register (register.py is the acceptor). What is particular: a head may only win with a value
that names it as in step; a winner first goes on alone; and who is in step and whose votes count changes one step at a
time, the other head knowing of it. No time here: when to stand and what to propose is said by who knows (leading.py,
pair.py).

Nothing that shows what this head has promised leaves before that is durable: such messages wait for their `Store`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from beo.ha import voters
from beo.ha.acts import Effect, Kept, Store, ToHead, ToVoter
from beo.ha.register import Acceptor, carried
from beo.votes import Accept, Accepted, Cfg, Prepare, Promise, Refuse

FIRST = "A"  # the head with odd epochs, which failback prefers


class Proposer:
    """What one head has promised, taken and proposed. Who extends it says what follows (`_act`, `_step_down`)."""

    def __init__(self, me: str, other: str, kept: Kept, incarnation: str) -> None:
        """Take what was kept; incarnation: this life's, by which the head is in step at level B."""
        self.me = me
        self.other = other
        self.role = "idle"
        self.why = ""  # it doesn't act or isn't in step, where there is a reason to tell
        self.leader = ""  # who acts, as far as this head knows
        self.epoch = 0  # its own: of its candidacy or its acting
        self.acceptor = Acceptor(me, kept.epoch, kept.acc)
        self.chosen = kept.chosen  # the acceptor's value is known to be chosen
        self.cfg: Cfg | None = None  # the last value that was chosen, as this primary knows
        self._members = (me, f"{me}/{incarnation}")
        self._seen = kept.epoch  # the highest epoch that was heard of
        self._trying = False  # as candidate: the epoch is promised here, it is no pre-vote any more
        self._promises: dict[str, Cfg | None] = {}
        self._accepted: set[str] = set()
        self._upto = 0  # index up to which the journal goes with what is proposed
        self._effects: list[Effect] = []
        self._outbox: deque[tuple[int, ToHead | ToVoter]] = deque()
        self._then: deque[tuple[int, Callable[[], None]]] = deque()
        self._serial = self._stored = 0
        self._kept = kept

    # ---- what must be durable first

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

    def _has_stored(self, serial: int) -> None:
        """What was kept up to this serial is durable."""
        self._stored = max(self._stored, serial)
        while self._then and self._then[0][0] <= self._stored:
            self._then.popleft()[1]()

    def _flush(self) -> list[Effect]:
        """Take all effects; what waits for the disk stays."""
        while self._outbox and self._outbox[0][0] <= self._stored:
            self._effects.append(self._outbox.popleft()[1])
        effects, self._effects = self._effects, []
        return effects

    def _step_down(self, why: str) -> None:
        """Be idle, for this reason."""
        self.role = "idle"
        self.why = why
        self.leader = ""

    # ---- as candidate

    def _is_alone(self) -> bool:
        """Whether it is certain that this head goes on alone: nobody else can have been in step since."""
        return self.chosen and self.acceptor.acc is not None and self.acceptor.acc.isr == (self.me,)

    @property
    def _parity(self) -> int:
        return 1 if self.me == FIRST else 0

    def _try_epoch(self) -> None:
        epoch = max(self._seen, self.acceptor.epoch) + 1
        self.epoch = epoch + (epoch % 2 != self._parity)

    def _run_for(self, pre: bool) -> None:
        """Become a candidate; pre: ask first, without consequences, whether it would be promised enough."""
        acc = self.acceptor.acc
        assert acc
        self.role = "candidate"
        self.leader = ""
        self._trying = False
        self._promises = {}
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

    def _refused(self, message: Refuse) -> None:
        self._seen = max(self._seen, message.promised)
        if message.epoch == self.epoch and message.promised > self.epoch and self.role != "idle":
            if self.role == "candidate" and not self._trying:
                self._try_epoch()
            else:
                self._step_down("another head was promised more")

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
        self.chosen = alone  # in one write: killed between two, a head without voters could never go on
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
                self._say(ToVoter(voter, Accept(self.me, cfg, self._upto)))
        if self.other and self.other not in self._accepted:
            self._say(ToHead(Accept(self.me, cfg, self._upto)))

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
        """The value stands: whoever won with it acts now."""
        self.chosen = True
        self.cfg = self.acceptor.acc
        self._keep()
        if self.role == "won":
            self._act()

    def _act(self) -> None:
        """Begin to act: the register says that this head goes on alone, so all that it has is what counts."""
        self.role = "primary"
        self.leader = self.me
        self.why = ""
