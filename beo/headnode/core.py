"""The head's core: messages, ticks and "this is durable" in, effects out. Pure, and the same in the simulator.

Between the journal's facts (state.py) and the deciders stand the things that are only true now and are not worth an
entry: who is connected, when a node last gave a sign of life, who waits for an answer. They start empty with each head.

An answer leaves only when everything that it could depend on is durable: every `Send` waits in `_outbox` for the index
of the tip at the time of deciding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.account import Account
from beo.errors import BeoError, UsageError
from beo.headnode import (
    admit,
    booting,
    decide,
    heads,
    inquiries,
    joining,
    ledger,
    moving,
    operate,
    permissions,
    reservations,
    tokens,
    vaults,
    views,
)
from beo.headnode.acts import (
    Append,
    Asked,
    Begin,
    Durable,
    Effect,
    Forget,
    Greet,
    Knock,
    Knocked,
    Noted,
    Now,
    Over,
    Send,
    Tick,
    Turn,
)
from beo.headnode.calendar import Calendar
from beo.headnode.decide import User
from beo.headnode.explain import Outlook
from beo.headnode.inquiries import Inquiries, Inquiry
from beo.headnode.model import ENDED, Attempt, Job, PartState
from beo.headnode.schedule import plan
from beo.headnode.state import State
from beo.headnode.waiters import Waiter, Waiters
from beo.settings import Config

VOTER_WORDS = votes.Present | votes.Promise | votes.Accepted | votes.Granted | votes.Refuse
AGENT_WORDS = (
    ms.Join | ms.Ping | ms.Ended | ms.Gone | ms.Delivered | ms.Health | ms.Processes | ms.Hits | ms.Vouch
) | (ms.VaultsAre | ms.VaultCopied)
RHO = 0.01  # how wrong a machine's clock rate may be
RESEND_S = 1.0  # a command that isn't answered is repeated after this
READY_HEARTBEATS = 4.0  # a node silent for more heartbeats than this gets no new work
PLAN_EVERY_S = 1.0
KEEP_EVERY_S = 0.5  # between looks at what time has done to reservations
FORGET_EVERY_S = 30.0
ERRAND_KEEP_S = 60.0  # its client has all of it before it ends
FORGET_BATCH = 10_000  # jobs per Forgotten entry
FINDINGS_MAX = 32  # that one node may have
NOTE_LENGTH_MAX = 500  # of what a node says about an end
DETAILS_MAX = 100  # jobs that one `beo show` can show


class _Session:
    """What is known of a node in this epoch."""

    def __init__(self, peer: bytes, incarnation: str, heard_s: float) -> None:
        self.peer = peer
        self.incarnation = incarnation
        self.heard_s = heard_s  # last PING that was answered
        self.clock_s = 0.0  # how far its wall clock is ahead of ours
        self.findings: tuple[ms.Finding, ...] = ()
        self.vaults: dict[int, ms.Kept] | None = None  # job -> what its vault keeps; None: it hasn't told
        self.learned = 0  # as its last Join says
        self.told = False  # it has said what it runs, so starts may be sent
        self.sent: dict[tuple[str, int, int], float] = {}  # (command, job, attempt) -> when
        self.signalled: dict[tuple[int, int], int] = {}  # (job, attempt) -> serial known to be delivered


class Head:
    """The core of the head. `handle` is its only verb."""

    def __init__(
        self,
        state: State,
        config: Config,
        nonce: Callable[[], str],
        bulk: str,
        version: str,
        durable: int | None = None,
    ) -> None:
        """Take the replayed state. nonce gives a fresh random name; bulk is the address of the bulk plane.

        durable: the index up to which all is safe; None: all that the state has.
        """
        self.state = state
        self._config = config
        self._nonce = nonce
        self._bulk = bulk
        self._version = version
        self._durable = state.index if durable is None else durable
        self._began_s = 0.0
        self._began_index = 0
        self._effects: list[Effect] = []
        self._outbox: deque[tuple[int, Send | Over | Forget | Greet]] = deque()
        self._sessions: dict[str, _Session] = {}
        self._waiters = Waiters()
        self._inquiries = Inquiries()
        self._moments = joining.Moments(nonce)
        self._attached_s: dict[int, float] = {}  # job of `beo run` -> last sign of its client
        self._dirty = True
        self._planned_s = 0.0
        self._forget_s = 0.0
        self._kept_s = 0.0  # reservations
        self._ready: frozenset[str] = frozenset()

    # ---- the frame

    def handle(self, item: Begin | Asked | Knocked | Noted | Durable | Tick | Turn, now: Now) -> list[Effect]:
        """Take one input, return its effects in order."""
        match item:
            case Asked():
                self._asked(item, now)
            case Knocked():
                self._knocked(item, now)
            case Noted():
                self._append(item.event)
            case Durable():
                self._durable = max(self._durable, item.index)
            case Turn():
                self._schedule(now)
            case Tick():
                self._tick(now)
            case Begin():
                self._begin(item, now)
        self._settle(now)
        while now.may_act and self._outbox and self._outbox[0][0] <= self._durable:
            self._effects.append(self._outbox.popleft()[1])
        effects, self._effects = self._effects, []
        return effects

    def _append(self, event: ev.Event) -> None:
        self.state.apply(event)
        self._effects.append(Append(self.state.index, event))
        if isinstance(event, ev.HeadJoined):
            for session in self._sessions.values():  # they must know where else to go
                self._welcome(session)

    def _later(self, effect: Send | Over | Forget | Greet) -> None:
        self._outbox.append((self.state.index, effect))

    def _send(
        self,
        peer: bytes,
        message: ms.HeadAnswer | ms.HeadCommand,
        request: int = 0,
    ) -> None:
        self._later(Send(peer, request, message))

    def _begin(self, item: Begin, now: Now) -> None:
        for event in item.birth:
            self._append(event)
        epoch = item.epoch or (self.state.epoch + 2 if self.state.epoch else 1)
        self._append(ev.EpochBegan(epoch, item.head or self.state.head, now.wall_s, item.down_s))
        self._began_index = self.state.index
        for event in item.news:
            self._append(event)
        self._began_s = self._forget_s = now.boot_s
        for job in self.state.jobs.values():
            if job.spec.attached and job.state not in ENDED:
                self._attached_s[job.id] = now.boot_s

    def _asked(self, item: Asked, now: Now) -> None:
        message = item.message
        if isinstance(message, VOTER_WORDS):
            return  # the pair hears them: replica.py
        try:
            user = permissions.check(self.state, decide.user_of(self.state, item.key), message)
            if isinstance(message, AGENT_WORDS):
                self._told(item, message, now)
                return
            answer = self._answer(item, message, user, now)
        except BeoError as error:
            answer = decide.failure(error)
        if answer is not None:
            self._send(item.peer, answer, item.request)

    # ---- clients

    def _answer(self, item: Asked, message: ms.ClientRequest, user: User, now: Now) -> ms.HeadAnswer | None:
        state = self.state
        events: list[ev.Event] = []
        answer: ms.HeadAnswer | None
        match message:
            case ms.Submit():
                events, answer = decide.submit(state, user, message, self._config, now.wall_s, item.account)
                if message.spec.attached and events:
                    self._attached_s[state.next_job] = now.boot_s
            case ms.Cancel():
                return self._change(now, user, *decide.cancel(state, user, message.select, now.wall_s))
            case ms.Hold() | ms.Release() | ms.Requeue() | ms.SetPriority() | ms.Migrate():
                return self._change(now, user, *operate.jobs(state, user, message, self._config, now.wall_s))
            case ms.Drain() | ms.Resume() | ms.ForgetNodes():
                events, names = operate.nodes(state, user, message, self._config, now.wall_s)
                for event in events:
                    self._append(event)
                self._dirty = True
                return self._nodes([name for name in names if name in state.nodes], now)
            case ms.Reserve():
                events, name = reservations.make(state, user, message, self._vaults(), self._moves, now.wall_s)
                self._take(events)
                return self._reservations([name], now)
            case ms.ListReservations():
                return self._reservations(message.names, now)
            case ms.CancelReservations():
                answer = self._reservations(message.names, now)
                events = reservations.cancel(state, user, message.names, now.wall_s)
                self._dirty = True
            case ms.AskRanks():
                return self._ask_ranks(message, user, now)
            case ms.Signal():
                events, answer = decide.signal(state, user, message, now.wall_s)
            case ms.DeclareGone():
                events, answer = decide.declare_gone(state, user, message.node, now.wall_s)
            case ms.ListProcesses():
                return self._inspect(item, message, user, now)
            case ms.SignalProcesses():
                return self._strike(item, message, user, now)
            case ms.WaitJobs():
                return self._wait(item, message, user, now)
            case ms.RevokeKeys():
                events, answer = admit.revoke(state, user.name, message.word, now.wall_s), ms.Done()
            case ms.SetPair():
                events, answer = operate.pair(state, user, message, now.wall_s), ms.Done()
            case ms.AllowUser():
                events, answer = admit.allow(state, user.name, message.user, now.wall_s), ms.Done()
            case ms.ListUsers():
                answer = ms.UsersAre(views.user_rows(state, self._config.users))
            case ms.Info():
                who = (user.name, self._version, self._bulk, user.role, user.uid, heads.listed(state))
                answer = ms.InfoIs(state.cluster, state.head, state.epoch, *who)
            case ms.ListJobs():
                answer = self._list(message, user, now)
            case ms.ListHistory():
                answer = ledger.page(state, user, message, lambda job: views.name_of(job, self._sight(user, job)))
            case ms.ShowJob():
                jobs = decide.pick(state, user, message.select)[:DETAILS_MAX]
                outlook = self._outlook(now)
                answer = ms.DetailsAre(
                    tuple(views.detail(job, outlook, self._sight(user, job), self._kept(job)) for job in jobs)
                )
            case ms.ListNodes():
                shown = (name for name in sorted(state.nodes) if permissions.sees_node(state, user, name))
                answer = self._nodes(shown, now)
            case ms.Enrol():
                events, answer = tokens.enrol(state, item.key, message, self._bulk, now.wall_s)
            case ms.JoinHead():
                events, answer = heads.join(state, item.key, message, now.wall_s)
            case ms.LeaveHead():
                events, answer = heads.leave(state, user, message.head, now.wall_s), ms.Done()
            case ms.MakeToken():
                events, answer = tokens.make(state, user.name, message, now.wall_s)
            case ms.RevokeTokens():
                events, answer = tokens.revoke(state, user.name, message.numbers, now.wall_s)
            case ms.ListTokens():
                answer = tokens.listed(state, now.wall_s)
            case ms.AskPlace():
                answer = tokens.place(state, message.node, self._bulk, booting.settings_of(self._config), now.wall_s)
            case _ if isinstance(message, booting.WISHES):
                why = self._moments.why
                events, answer = booting.decide(state, self._config.boot, user.name, message, why, now.wall_s)
            case ms.JoinMachine():
                events, answer = joining.join(state, self._config, self._moments, message, now.wall_s)
            case _:
                raise UsageError(f"the head can't answer {type(message).__name__}", "", "update this beo")
        for event in events:
            self._append(event)
        return answer

    def _ask_ranks(self, message: ms.AskRanks, user: User, now: Now) -> ms.JobsAre:
        """Pass something on to the ranks of jobs that run. It is no fact of the cluster's: it changes no decision."""
        if message.do not in vaults.ASKS:
            raise UsageError(f"ranks can't be asked to {message.do[:20]!r}", "", f"ask for {' or '.join(vaults.ASKS)}")
        jobs = [job for job in decide.pick(self.state, user, message.select) if job.state == "running"]
        for job in jobs:
            for part in job.attempts[-1].parts:
                session = self._sessions.get(part.node)
                if session and session.told:
                    key = job.id, job.attempt_number
                    halt = ms.Halt(self.state.epoch, session.incarnation, *key, user.name, (), message.do)
                    self._send(session.peer, halt)
        return ms.JobsAre(self._rows(jobs[: ms.LIST_LENGTH_MAX], user, now), max(0, len(jobs) - ms.LIST_LENGTH_MAX))

    def _change(self, now: Now, user: User, events: list[ev.Event], jobs: list[Job]) -> ms.JobsAre:
        """Take the events of a wish about jobs; the answer shows what became of those that were meant."""
        for event in events:
            self._append(event)
        return ms.JobsAre(self._rows(jobs[: ms.LIST_LENGTH_MAX], user, now), max(0, len(jobs) - ms.LIST_LENGTH_MAX))

    def _nodes(self, names: Iterable[str], now: Now) -> ms.NodesAre:
        nodes, calendar = self.state.nodes, self._calendar(now)
        return ms.NodesAre(
            tuple(
                views.node_row(
                    self.state,
                    nodes[name],
                    now.boot_s - self._heard_s(name),
                    name in self._ready,
                    *self._health(name),
                    reservations.on_node(calendar, name, now.wall_s),
                )
                for name in names
            )
        )

    @property
    def _moves(self) -> bool:
        return moving.can_leave_all(self._config)

    def _calendar(self, now: Now) -> Calendar:
        return Calendar(self.state, now.wall_s, self._vaults(), self._moves)

    def _reservations(self, names: Collection[str], now: Now) -> ms.ReservationsAre:
        calendar = self._calendar(now)
        found = reservations.pick(self.state, tuple(names))
        return ms.ReservationsAre(tuple(reservations.row(self.state, one, calendar, now.wall_s) for one in found))

    def _take(self, events: Iterable[ev.Event]) -> None:
        for event in events:
            self._append(event)
            self._dirty = True

    def _keep_reservations(self, now: Now) -> None:
        """Have reservations end, find other nodes for lost ones, and ask what is in their way to move."""
        self._take(reservations.keep(self.state, self._vaults(), self._moves, now.wall_s))
        self._take(moving.reserve(self.state, self._config, now.wall_s))

    def _vaults(self) -> dict[str, dict[int, ms.Kept]]:
        """Node -> job -> what its vault keeps, of the nodes that have told."""
        sessions = self._sessions.items()
        return {name: session.vaults for name, session in sessions if session.vaults is not None}

    def _kept(self, job: Job) -> tuple[tuple[str, int], ...]:
        told = sorted(self._vaults().items())
        return tuple((name, kept[job.id].size_bytes) for name, kept in told if job.id in kept)

    def _health(self, node: str) -> tuple[float, tuple[ms.Finding, ...], Collection[int]]:
        session = self._sessions.get(node)
        return (session.clock_s, session.findings, session.vaults or ()) if session else (0.0, (), ())

    def _outlook(self, now: Now) -> Outlook:
        kept = self._vaults()
        calendar = Calendar(self.state, now.wall_s, kept, self._moves)
        return Outlook(self.state, self._ready, self._config.users, kept, calendar, now.wall_s)

    def _rows(self, jobs: Iterable[Job], user: User, now: Now) -> tuple[ms.JobView, ...]:
        outlook = self._outlook(now)
        return tuple(views.job_row(job, outlook, self._sight(user, job)) for job in jobs)

    def _sight(self, user: User, job: Job) -> views.Sight:
        return "own" if user.may(job) else "private" if self._config.head.private else "open"

    def _list(self, message: ms.ListJobs, user: User, now: Now) -> ms.JobsAre:
        if message.select:
            jobs = decide.pick(self.state, user, message.select)
        else:
            jobs = [job for job in self.state.jobs.values() if message.ended or job.state not in ENDED]
        limit = max(1, min(message.limit, ms.LIST_LENGTH_MAX))
        more = max(0, len(jobs) - limit)
        shown = jobs[-limit:] if message.ended else jobs[:limit]
        return ms.JobsAre(self._rows(shown, user, now), more)

    def _wait(self, item: Asked, message: ms.WaitJobs, user: User, now: Now) -> ms.HeadAnswer | None:
        if len(message.jobs) > ms.LIST_LENGTH_MAX:
            raise UsageError(f"{len(message.jobs)} jobs at once", f"the limit is {ms.LIST_LENGTH_MAX}", "")
        jobs = [decide.find(self.state, number) for number in sorted(set(message.jobs))]
        wait_s = min(ms.WAIT_MAX_S, message.wait_s)
        if message.attached:
            wait_s = min(self._config.head.attached_grace_s / 2, wait_s)  # who only waits gives no sign of life
            for job in jobs:
                if job.id in self._attached_s and user.may(job):
                    self._attached_s[job.id] = now.boot_s
        left = {job.id for job in jobs if job.state not in ENDED}
        known = message.known if len(jobs) == 1 else ""
        changed = known and views.progress(jobs[0]) != known
        waiter = Waiter(item.peer, item.request, tuple(job.id for job in jobs), left, now.boot_s + wait_s, known, user)
        if left and not changed and wait_s > 0 and self._waiters.add(waiter):
            return None
        return ms.JobsAre(self._rows(jobs, user, now))

    # ---- questions that are passed on to nodes

    def _inspect(self, item: Asked, message: ms.ListProcesses, user: User, now: Now) -> ms.HeadAnswer | None:
        jobs, attempts = inquiries.whom_to_inspect(self.state, user, message)
        inquiry = self._inquiry(item, jobs, attempts, False, now)
        if not inquiry.open:
            return inquiry.answer()
        ask = self._inquiries.add(inquiry, self.state.epoch)
        for node in sorted(inquiry.open):
            session = self._sessions[node]
            where = (self.state.epoch, session.incarnation, ask)
            self._send(session.peer, ms.Inspect(*where, tuple(attempts[node]), ms.PROCESSES_MAX))
        return None

    def _strike(self, item: Asked, message: ms.SignalProcesses, user: User, now: Now) -> ms.HeadAnswer | None:
        jobs, strikes = inquiries.whom_to_strike(self.state, message)
        inquiry = self._inquiry(item, jobs, strikes, True, now)
        if not inquiry.open:
            return inquiry.answer()
        ask = self._inquiries.add(inquiry, self.state.epoch)
        for target in message.targets:
            what = (target.job, target.node, target.pid, target.rank)
            self._append(ev.ProcessSignalled(*what, message.signal, user.name, now.wall_s))
        for node in sorted(inquiry.open):
            session = self._sessions[node]
            where = (self.state.epoch, session.incarnation, ask)
            self._send(session.peer, ms.Strike(*where, message.key, message.signal, tuple(strikes[node])))
        return None

    def _inquiry(self, item: Asked, jobs: dict[int, str], nodes: Iterable[str], strikes: bool, now: Now) -> Inquiry:
        asked = {node for node in nodes if node in self._sessions and self._sessions[node].told}
        silent = {node for node in nodes if node not in asked}
        return Inquiry(item.peer, item.request, jobs, asked, now.boot_s + ms.INSPECT_S, strikes, silent)

    def _tell(self, found: Iterable[Inquiry]) -> None:
        for inquiry in found:
            self._send(inquiry.peer, inquiry.answer(), inquiry.request)

    def _wake(self, waiters: Iterable[Waiter], now: Now) -> None:
        for waiter in waiters:
            jobs = [self.state.jobs[number] for number in waiter.jobs if number in self.state.jobs]
            self._send(waiter.peer, ms.JobsAre(self._rows(jobs, waiter.user, now)), waiter.request)

    # ---- workers

    def _heard_s(self, node: str) -> float:
        session = self._sessions.get(node)
        return max(self._began_s, session.heard_s if session else self._began_s)

    def _told(self, item: Asked, message: ms.AgentReport, now: Now) -> None:
        peer = item.peer
        if isinstance(message, ms.Join):
            self._join(peer, message, now)
            return
        node = self.state.nodes.get(message.node)
        if not node or node.incarnation != message.incarnation or node.state != "up":
            self._send(peer, ms.Dead(self.state.epoch, message.incarnation))
            return
        session = self._session(message.node, message.incarnation, peer, now)
        match message:
            case ms.Ping():
                self._ping(session, message, now)
            case ms.Processes() | ms.Hits():
                whole = self._inquiries.told(message)
                self._tell([whole] if whole else [])
            case ms.Delivered():
                known = session.signalled.get((message.job, message.attempt), 0)
                session.signalled[message.job, message.attempt] = max(known, message.serial)
            case ms.Health():
                session.clock_s = message.wall_s - now.wall_s
                session.findings = message.findings[:FINDINGS_MAX]
            case ms.VaultCopied():
                self._vault_copied(message, now)
            case ms.VaultsAre():
                self._vaults_are(session, message, now)
            case ms.Vouch():
                self._vouch(item, message, now)
            case ms.Ended() | ms.Gone():
                self._ended(message, now)
                self._send(peer, ms.Committed(self.state.epoch, message.job, message.attempt))

    def _vouch(self, item: Asked, message: ms.Vouch, now: Now) -> None:
        account = item.account or Account(message.uid, "")
        wish = Knock(message.uid, message.gid, message.groups, message.key)
        error = None
        try:
            for event in admit.vouch(self.state, message.node, wish, account, now.wall_s):
                self._append(event)
        except BeoError as refusal:
            error = refusal.to_dict()
        answer = ms.Vouched(self.state.epoch, message.incarnation, message.visitor, account.name, error)
        self._send(item.peer, answer)

    def _vault_copied(self, message: ms.VaultCopied, now: Now) -> None:
        if vaults.is_news(self.state, message):
            where = message.job, message.attempt, message.node
            size_bytes, checkpoints = max(0, message.size_bytes), message.checkpoints[: ms.CHECKPOINTS_MAX]
            self._append(ev.VaultCopied(*where, message.bundle, size_bytes, now.wall_s, checkpoints))

    def _vaults_are(self, session: _Session, message: ms.VaultsAre, now: Now) -> None:
        """Take what a vault keeps, and say what of it is of no more use."""
        kept = {one.job: one for one in message.vaults[: ms.VAULTS_MAX]}
        over = tuple(number for number in kept if vaults.is_over(self.state, number, now.wall_s, message.node))
        if session.vaults is None or session.vaults.keys() != kept.keys():
            self._dirty = True  # a job may have waited to know where its checkpoint is
        session.vaults = kept
        if over:
            self._send(session.peer, ms.VaultsOver(self.state.epoch, session.incarnation, over))

    def _knocked(self, item: Knocked, now: Now) -> None:
        error = None
        try:
            for event in admit.knock(self.state, item.knock, item.account, now.wall_s):
                self._append(event)
        except BeoError as refusal:
            error = refusal.to_dict()
        self._later(Greet(item.visitor, item.account.name, error))

    def _ended(self, message: ms.Ended | ms.Gone, now: Now) -> None:
        found = self.state.live_parts(message.node).get((message.job, message.attempt))
        if not found or found[2].state != "live":
            return
        where = (message.job, message.attempt, message.node)
        if isinstance(message, ms.Gone):
            self._append(ev.PartGone(*where, message.reason[:NOTE_LENGTH_MAX], now.wall_s))
            return
        told = message.result
        result = msgspec.structs.replace(told, ranks=told.ranks[: found[2].ranks], note=told.note[:NOTE_LENGTH_MAX])
        self._append(ev.PartEnded(*where, result, now.wall_s))

    def _session(self, node: str, incarnation: str, peer: bytes, now: Now) -> _Session:
        session = self._sessions.get(node)
        if not session or session.incarnation != incarnation:
            session = self._sessions[node] = _Session(peer, incarnation, now.boot_s)
        session.peer = peer
        return session

    def _join(self, peer: bytes, message: ms.Join, now: Now) -> None:
        events = decide.join(self.state, message, now.wall_s)
        if events is None:
            self._send(peer, ms.Dead(self.state.epoch, message.incarnation))
            return
        for event in events:
            self._append(event)
        session = self._session(message.node, message.incarnation, peer, now)
        session.heard_s, session.learned = now.boot_s, message.learned
        self._dirty = True
        self._welcome(session)

    def _welcome(self, session: _Session) -> None:
        known = heads.listed(self.state), self._began_index, session.learned
        self._send(session.peer, ms.Welcome(self.state.epoch, session.incarnation, self._bulk, *known))

    def _ping(self, session: _Session, message: ms.Ping, now: Now) -> None:
        state = self.state
        session.heard_s = now.boot_s
        live = self._live(message.node)
        lease_s = self._config.worker.lease_s
        running, ended = set(message.running), set(message.ended)
        # What the node names has arrived there, so only what it doesn't name may still be on its way.
        unanswered = (attempt.index for key, (_, attempt, _) in live.items() if key not in running and key not in ended)
        settled = min(unanswered, default=state.index + 1) - 1
        if not session.told:
            session.told = self._dirty = True
            self._welcome(session)
        self._send(session.peer, ms.Pong(state.epoch, message.incarnation, message.t_ns, lease_s, settled))
        for key in sorted(running - live.keys()):
            message_out = ms.Kill(state.epoch, session.incarnation, *key, "this attempt is over", 0.0)
            self._command(session, "kill", key, now, message_out)
        for key in sorted(ended - live.keys()):
            self._send(session.peer, ms.Committed(state.epoch, *key))
        for key, (job, attempt, _) in sorted(live.items(), key=lambda item: item[0]):
            if key in ended:
                continue  # it says so itself, again and again
            if job.state == "ending":
                self._end(session, job, attempt, now)
            elif key in running:
                self._halt(session, job, attempt, now)
                self._deliver(session, job, attempt, now)
            else:
                self._command(session, "start", key, now, self._start(session, job, attempt))
        session.sent = {k: sent_s for k, sent_s in session.sent.items() if (k[1], k[2]) in live}
        session.signalled = {k: serial for k, serial in session.signalled.items() if k in live}

    def _live(self, node: str) -> dict[tuple[int, int], tuple[Job, Attempt, PartState]]:
        return {key: found for key, found in self.state.live_parts(node).items() if found[2].state == "live"}

    def _command(
        self,
        session: _Session,
        kind: str,
        key: tuple[int, int],
        now: Now,
        message: ms.HeadCommand,
    ) -> None:
        """Send a command unless the same one is under way."""
        last_s = session.sent.get((kind, *key))
        if last_s is None or now.boot_s - last_s >= RESEND_S:
            session.sent[kind, *key] = now.boot_s
            self._send(session.peer, message)

    def _end(self, session: _Session, job: Job, attempt: Attempt, now: Now) -> None:
        """Make a part end: gently for a cancelled job, at once for what is left of a broken attempt."""
        broken = attempt.cause is not None
        reason = attempt.cause[2] if attempt.cause else job.cancel or job.requeue
        grace_s = 0.0 if broken else self._config.worker.grace_s
        key = (job.id, attempt.number)
        message = ms.Kill(self.state.epoch, session.incarnation, *key, reason, grace_s, attempt.index, not broken)
        self._command(session, "kill broken" if broken else "kill", key, now, message)

    def _halt(self, session: _Session, job: Job, attempt: Attempt, now: Now) -> None:
        """Ask a part to take a checkpoint and to end, where its job is to go on elsewhere."""
        move = job.move
        if move and move.attempt == attempt.number:
            key = (job.id, attempt.number)
            message = ms.Halt(self.state.epoch, session.incarnation, *key, move.why, move.leave)
            self._command(session, "halt", key, now, message)

    def _deliver(self, session: _Session, job: Job, attempt: Attempt, now: Now) -> None:
        key = (job.id, attempt.number)
        delivered = session.signalled.get(key, 0)
        for asked in job.signals:
            if asked.attempt == attempt.number and asked.serial > delivered:
                message = ms.Deliver(self.state.epoch, session.incarnation, *key, asked.serial, asked.number)
                self._command(session, f"signal {asked.serial}", key, now, message)

    def _start(self, session: _Session, job: Job, attempt: Attempt) -> ms.Start:
        nodes = self.state.nodes
        peers = tuple(
            ms.Peer(p.node, p.incarnation, nodes[p.node].address, nodes[p.node].key, p.first_rank, p.ranks, p.more)
            for p in attempt.parts
        )
        return ms.Start(
            self.state.epoch,
            session.incarnation,
            attempt.index,
            job.id,
            attempt.number,
            self.state.cluster,
            attempt.nonce,
            job.user,
            job.uid,
            job.gid,
            job.groups,
            job.spec,
            peers,
            vaults.mtbf_s(self.state, len(peers), attempt.started_s),
            *vaults.copies(job, attempt, self._vaults()),
        )

    # ---- time, and what follows from changes

    def _tick(self, now: Now) -> None:
        if self.state.queue and now.boot_s - self._planned_s >= PLAN_EVERY_S:
            self._dirty = True  # for what depends on time alone: a job's back-off, the patience of a wide one
        self._look_at_nodes(now)
        self._wake(self._waiters.late(now.boot_s), now)
        self._tell(self._inquiries.late(now.boot_s))
        for number, seen_s in list(self._attached_s.items()):
            job = self.state.jobs.get(number)
            if not job or job.state in ENDED:
                del self._attached_s[number]
            elif now.boot_s - seen_s > self._config.head.attached_grace_s and not job.cancel:
                self._append(ev.CancelRequested(number, job.user, "its 'beo run' has gone", now.wall_s))
        if self.state.reservations and now.boot_s - self._kept_s >= KEEP_EVERY_S:
            self._kept_s = now.boot_s
            self._keep_reservations(now)
        if now.boot_s - self._forget_s >= FORGET_EVERY_S:
            self._forget_s = now.boot_s
            self._forget(now)

    def _look_at_nodes(self, now: Now) -> None:
        """Declare lost what has been silent for longer than its lease; see who may be given work."""
        worker = self._config.worker
        ready = []
        for name, node in sorted(self.state.nodes.items()):
            if node.state != "up":
                continue
            silent_s = now.boot_s - self._heard_s(name)
            session = self._sessions.get(name)
            if silent_s > worker.lease_s * (1 + 3 * RHO):
                self._append(ev.NodeLost(name, node.incarnation, f"silent for {silent_s:.1f} s", now.wall_s))
                self._sessions.pop(name, None)
            elif session and session.told and silent_s <= worker.heartbeat_s * READY_HEARTBEATS:
                ready.append(name)
        if self._ready != frozenset(ready):
            self._ready, self._dirty = frozenset(ready), True

    def _forget(self, now: Now) -> None:
        keep_s, keep = self._config.head.finished_keep_s, self._config.head.finished_max
        ended = [job for job in self.state.jobs.values() if job.state in ENDED]
        over = max(0, len(ended) - keep)
        ended.sort(key=lambda job: (job.ended_s, job.id))
        before_s = {True: now.wall_s - ERRAND_KEEP_S, False: now.wall_s - keep_s}  # an errand's output is a whole copy
        old = [job.id for n, job in enumerate(ended) if n < over or job.ended_s < before_s[bool(job.spec.errand)]]
        for first in range(0, len(old), FORGET_BATCH):
            jobs = tuple(sorted(old[first : first + FORGET_BATCH]))
            self._append(ev.Forgotten(jobs, now.wall_s))
            self._later(Forget(jobs))

    def _schedule(self, now: Now) -> None:
        if not self._dirty:
            return
        self._dirty = False
        self._planned_s = now.boot_s
        self._look_at_nodes(now)
        awaited = moving.awaited(self.state, now.wall_s)
        users, kept = self._config.users, self._vaults()
        for placement in plan(self.state, self._ready, now.wall_s, users, kept, awaited, self._moves):
            job = self.state.jobs[placement.job]
            parts = tuple(
                ev.Part(name, self.state.nodes[name].incarnation, first, ranks, more)
                for name, first, ranks, more in placement.parts
            )
            self._append(ev.Started(job.id, job.attempt_number + 1, parts, self._nonce(), now.wall_s, whole=True))
        if self.state.queue and self._config.head.preempt_above:
            for move in moving.preempt(self.state, self._ready, kept, self._config, now.wall_s):
                self._append(move)

    def _settle(self, now: Now) -> None:
        """Follow up on every job that the events of this turn changed."""
        changed = self.state.changed
        while changed:
            numbers = sorted(changed)
            changed.clear()
            for number in numbers:
                job = self.state.jobs.get(number)
                if job:
                    self._follow_up(job, now)
            self._later(Over(tuple(numbers)))

    def _follow_up(self, job: Job, now: Now) -> None:
        attempt = job.attempt
        if attempt and job.state in ("running", "ending"):
            for part in attempt.parts:
                session = self._sessions.get(part.node)
                if part.state != "live" or not session or not session.told or session.incarnation != part.incarnation:
                    continue
                if job.state == "ending":
                    self._end(session, job, attempt, now)
                elif ("start", job.id, attempt.number) not in session.sent:
                    self._command(session, "start", (job.id, attempt.number), now, self._start(session, job, attempt))
                else:
                    self._halt(session, job, attempt, now)
                    self._deliver(session, job, attempt, now)
        if job.state != "running":
            self._dirty = True
        self._wake(self._waiters.changed(job.id, views.progress(job), job.state in ENDED), now)
