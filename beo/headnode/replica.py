"""One head as a whole: its log, its state, its role beside the other head, and, while it acts, the head's core. Pure.

What the server and the simulator run alike. Everything that comes goes through `handle`; what is to be done comes back
as effects, in order. As standby the state follows the primary's entries, so that a take-over begins with all of it in
memory; clients are told where the primary is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Union

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import version, votes
from beo.entries import Entry, Position
from beo.errors import BeoError, Conflict, Internal
from beo.ha import acts as pacts
from beo.ha.log import Log
from beo.ha.pair import Pair
from beo.ha.voters import HOLDER
from beo.headnode import acts, decide, heads, permissions
from beo.headnode.core import VOTER_WORDS, Head
from beo.headnode.model import HeadInfo
from beo.headnode.state import State
from beo.settings import Config

HELD_MAX = 10_000  # messages that wait while the other head gets in step; more are dropped, and come again
VOTERS_MAX = 1_024  # possible voters that are known: a cluster has 200 nodes


class Me(msgspec.Struct, frozen=True):
    """Who this head is: its name, where it is reached, this life's incarnation, and the version it speaks."""

    name: str
    control: str
    bulk: str
    links: tuple[str, ...]
    incarnation: str
    version: str


class Facts(msgspec.Struct):
    """What the shell knows and `beo ha status` tells."""

    findings: tuple[str, ...] = ()
    orphans: int = 0
    config: dict[str, str] = {}


# ---- inputs and effects besides those of acts.py and of the pair


class Ticked(msgspec.Struct, frozen=True):
    """Time has passed; see ha.acts.Tick."""

    tick: pacts.Tick


class Rebuilt(msgspec.Struct, frozen=True):
    """The journal is cut back, and this is the state as it was there."""

    state: State


class Snapshot(msgspec.Struct, frozen=True):
    """The newest snapshot, which the other head needs."""

    position: Position
    data: bytes


class Write(msgspec.Struct, frozen=True):
    """Append this entry to the journal; it is this event."""

    entry: Entry
    event: ev.Event


class FetchSnapshot(msgspec.Struct, frozen=True):
    """Read the newest snapshot for the other head, and say `Snapshot`."""


Input = Union[  # noqa: UP007
    acts.Begin, acts.Asked, acts.Knocked, acts.Turn, Ticked, Rebuilt, Snapshot, pacts.Input
]
Effect = Union[  # noqa: UP007
    acts.Send, acts.Over, acts.Forget, acts.Greet, Write, FetchSnapshot, pacts.ToHead, pacts.Store, pacts.Became,
    pacts.Back, pacts.Install
]  # fmt: skip


class Replica:
    """One head. `handle` is its only verb; `state` and `pair` are for reading."""

    def __init__(
        self,
        me: Me,
        others: dict[str, HeadInfo],
        state: State,
        kept: pacts.Kept,
        log: Log,
        config: Config,
        nonce: Callable[[], str],
        uniform: Callable[[float, float], float],
    ) -> None:
        """Take what was replayed and kept. others: heads that are known before the journal says so."""
        self.me = me
        self.state = state
        self.facts = Facts()
        self.head: Head | None = None
        self._others = others
        self._config = config
        self._nonce = nonce
        self._birth: tuple[ev.Event, ...] = ()
        self._down_s = 0.0  # before this head was started, if it was the last to act
        self._log = log
        self.pair = Pair(me.name, "", kept, log, log.last.idx, me.incarnation, uniform, lambda: self.state.pair)
        self._effects: list[Effect] = []
        self._now = acts.Now(0.0, 0.0)
        self._committed = 0
        self._grown = False
        self._held: deque[acts.Asked | acts.Knocked] = deque()
        self._voters: dict[str, tuple[bytes, str, str]] = {}  # voter -> its connection, its key, its node
        self._waiting: list[Entry] | None = None  # entries to be applied when the state is rebuilt
        self._forgotten: deque[tuple[int, tuple[int, ...]]] = deque()  # as standby, until committed
        self._meet_other()

    # ---- the frame

    def handle(self, item: Input, now: acts.Now) -> list[Effect]:
        """Take one input, return its effects in order. Raises Internal where this head must end."""
        self._now = now
        match item:
            case acts.Asked():
                self._asked(item)
            case acts.Knocked():
                self._knocked(item)
            case acts.Turn():
                if not self.pair.holds:
                    self._lead(item)
            case Ticked():
                self.pair.digest = max(self.state.digests.items(), default=(0, b""))
                self._run(item.tick)
                if self.pair.role == "primary" and self.pair.sender.needs_snapshot:
                    self._effects.append(FetchSnapshot())
                if not self.pair.holds:
                    self._lead(acts.Tick())
            case acts.Begin():
                self._birth, self._down_s = item.birth, item.down_s
                self._run(pacts.Begin())
            case Rebuilt():
                self._rebuilt(item.state)
            case Snapshot():
                first = votes.Part(self.me.name, self.pair.epoch, item.position, 0, len(item.data), b"")
                self.pair.sender.offer(first, item.data)
            case pacts.FromHead():
                self._run(item)
                self._compare(item.message)
            case _:
                self._run(item)
        self._settle()
        effects, self._effects = self._effects, []
        return effects

    def _settle(self) -> None:
        """Follow up until nothing new comes: what was held, what has grown, what is safe now."""
        while self._held and not self.pair.holds and self.head:
            self._lead(self._held.popleft())
        if self._grown:
            self._grown = False
            self._run(pacts.Grown())
        if self.head and self.pair.commit > self._committed:
            self._committed = self.pair.commit
            self._lead(acts.Durable(self._committed))
            if self._grown:
                self._settle()
        while self._forgotten and self._forgotten[0][0] <= self.pair.commit:
            self._effects.append(acts.Forget(self._forgotten.popleft()[1]))

    # ---- who asks

    def _asked(self, item: acts.Asked) -> None:
        message: Any = item.message
        if isinstance(message, VOTER_WORDS):
            self._vote(item.peer, item.key, message)
        elif isinstance(message, ms.AskPair | ms.Steer):
            self._steered(item, message)
        elif isinstance(message, ms.LeaveHead) and self.pair.both:
            why = "its votes and its disk are counted on"
            self._reply(
                item, decide.failure(Conflict("both heads are in step", why, "'beo head leave' there ends it first"))
            )
        elif self.pair.role != "primary" or not self.head:
            if item.request:
                self._reply(item, self._elsewhere())
        elif self.pair.holds:
            if len(self._held) < HELD_MAX:
                self._held.append(item)
        else:
            self._lead(item)

    def _knocked(self, item: acts.Knocked) -> None:
        if not self.head:
            self._turn_away(item.visitor)
        elif not self.pair.holds:
            self._lead(item)
        elif len(self._held) < HELD_MAX:
            self._held.append(item)

    def _turn_away(self, visitor: int) -> None:
        where = self._elsewhere().head or "another machine"
        error = {"kind": "NoHead", "what": "this head doesn't act", "why": "", "cure": f"ask the one at {where}"}
        self._effects.append(acts.Greet(visitor, "", error))

    def _elsewhere(self) -> ms.Elsewhere:
        leader = self.state.heads.get(self.pair.leader) or self._others.get(self.pair.leader)
        known = leader if leader and self.pair.leader != self.me.name else None
        return ms.Elsewhere(known.control if known else "", self.pair.acceptor.epoch)

    def _reply(self, item: acts.Asked, answer: ms.HeadAnswer) -> None:
        self._effects.append(acts.Send(item.peer, item.request, answer))

    def _vote(self, peer: bytes, key: str, message: Any) -> None:
        """Hear a voter: who speaks in its name must hold the key that introduced it."""
        user = decide.user_of(self.state, key)
        try:
            user, _ = permissions.check_role(user, message)
        except BeoError:
            return
        if isinstance(message, votes.Present):
            name, _, nonce = message.voter.partition("/")
            own = message.node == name and permissions.speaks_for(self.state, user, message.node)
            witness = user.role == "witness" and name == user.node
            if not nonce or name == HOLDER or not (own if user.role == "worker" else witness):
                return
            for old in [voter for voter, (_, _, node) in self._voters.items() if node == name]:
                if old != message.voter:
                    del self._voters[old]
            if message.voter not in self._voters and len(self._voters) >= VOTERS_MAX:
                return
            self._voters[message.voter] = peer, key, name
        elif self._voters.get(message.voter, (b"", "", ""))[1] != key:
            return
        self._run(pacts.FromVoter(message))

    def _steered(self, item: acts.Asked, message: ms.AskPair | ms.Steer) -> None:
        try:
            user = permissions.check(self.state, decide.user_of(self.state, item.key), message)
            if isinstance(message, ms.AskPair):
                self._reply(item, self._pair_is())
            elif message.wish in ("freeze", "thaw"):
                if not self.head:
                    self._reply(item, self._elsewhere())
                    return
                frozen = message.wish == "freeze"
                if self.state.pair.frozen != frozen:
                    settings = msgspec.structs.replace(self.state.pair, frozen=frozen)
                    self._lead(acts.Noted(ev.PairSet(settings, user.name, self._now.wall_s)))
                self._reply(item, ms.Done())
            else:
                self._run(pacts.Wish(message.wish))
                self._reply(item, ms.Done())
        except BeoError as error:
            self._reply(item, decide.failure(error))

    def _pair_is(self) -> ms.PairIs:
        pair, state, now_s = self.pair, self.state, self._now.boot_s
        settings = state.pair
        role, in_step = pair.role, pair.in_step
        if role == "idle" and pair.leader and now_s - pair.heard_s <= settings.lease_s:
            role = "standby"
            in_step = len(pair.acceptor.acc.isr) > 1 if pair.acceptor.acc else False
        heads = {**self._others, **state.heads}
        views = tuple(ms.HeadView(name, one.control, one.bulk, one.links) for name, one in sorted(heads.items()))
        voting = pair.is_voting
        voters = tuple(
            ms.VoterView(voter, voter.partition("/")[0], rack, voter in voting, now_s - seen_s)
            for voter, (rack, seen_s) in sorted(pair.present.items())
        )
        gone = sorted(voting - pair.present.keys())
        absent = tuple(ms.VoterView(voter, voter.partition("/")[0], "", True, -1.0) for voter in gone)
        return ms.PairIs(
            self.me.name,
            role,
            pair.why,
            pair.epoch if pair.role != "idle" else pair.acceptor.epoch,
            pair.acceptor.acc,
            in_step,
            pair.leader,
            self._log.last.idx,
            pair.commit,
            pair.sender.match if pair.role == "primary" else 0,
            pair.output_lag,
            now_s - pair.heard_s if pair.heard_s > 0 else -1.0,
            views,
            (*voters, *absent),
            settings.level,
            settings.takeover,
            settings.failback,
            settings.frozen,
            settings.lease_s,
            settings.silence_s,
            state.born_s,
            state.down_s,
            state.takeovers,
            self.facts.orphans,
            self.facts.findings,
            self.me.version,
            ev.FORMAT,
            pair.peer.version if pair.peer else "",
            self.facts.config,
        )

    # ---- the pair

    def _run(self, item: pacts.Input) -> None:
        for effect in self.pair.handle(item, self._now.boot_s):
            match effect:
                case pacts.ToVoter():
                    if found := self._voters.get(effect.voter):
                        self._effects.append(acts.Send(found[0], 0, effect.message))
                case pacts.Became():
                    self._became(effect)
                case pacts.Copied():
                    if self._waiting is not None:
                        self._waiting.extend(effect.entries)
                    else:
                        self._copy(effect.entries)
                case pacts.Back():
                    self._waiting = []
                    self._effects.append(effect)
                case pacts.Install():
                    self._effects.append(effect)
                    self._replace(State.decode(effect.data))
                case _:
                    self._effects.append(effect)

    def _became(self, effect: pacts.Became) -> None:
        self._effects.append(effect)
        if effect.role != "primary":
            self.head = None
            for item in self._held:
                if isinstance(item, acts.Knocked):
                    self._turn_away(item.visitor)
                elif item.request:
                    self._reply(item, self._elsewhere())
            self._held.clear()
            return
        me = self.me
        self._committed = 0
        self.head = Head(self.state, self._config, self._nonce, me.bulk, me.version, durable=self.pair.commit)
        birth = () if self.state.index else self._birth
        own = ms.HeadView(me.name, me.control, me.bulk, me.links)
        news = tuple(heads.begin(self.state, own, self._now.wall_s))
        down_s = effect.down_s or (self._down_s if self.state.head == me.name else 0.0)
        self._down_s = 0.0
        self._lead(acts.Begin(birth, me.name, effect.epoch, news, down_s))

    def _copy(self, entries: tuple[Entry, ...] | list[Entry]) -> None:
        """As standby: apply what the primary has appended."""
        for entry in entries:
            event = ev.decode(entry.data)
            self._effects.append(Write(entry, event))
            self.state.apply(event)
            if isinstance(event, ev.Forgotten):
                self._forgotten.append((entry.index, event.jobs))
            elif isinstance(event, ev.HeadJoined | ev.HeadLeft):
                self._meet_other()
        self.state.changed.clear()

    def _rebuilt(self, state: State) -> None:
        self._replace(state)
        entries, self._waiting = self._waiting, None
        self._copy(entries or [])

    def _replace(self, state: State) -> None:
        self.state = state
        state.changed.clear()
        self._forgotten.clear()
        self._meet_other()

    def _meet_other(self) -> None:
        heads = self.state.heads if len(self.state.heads) > 1 else {**self._others, **self.state.heads}
        self.pair.other = next((name for name in sorted(heads) if name != self.me.name), "")

    # ---- the head that acts

    def _lead(self, item: Any) -> None:
        if self.head:
            may_act = self._now.boot_s < self.pair.acts_until_s
            self._perform(self.head.handle(item, msgspec.structs.replace(self._now, may_act=may_act)))

    def _perform(self, effects: list[acts.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, acts.Append):
                entry = self._log.append(self.state.epoch, ev.encode(effect.event))
                if entry.index != effect.index:
                    raise Internal(f"entry {effect.index} became {entry.index}", "state and journal differ", "restart")
                self._effects.append(Write(entry, effect.event))
                self._grown = True
                if isinstance(effect.event, ev.HeadJoined | ev.HeadLeft):
                    self._meet_other()
            else:
                self._effects.append(effect)

    # ---- the comparison of states

    def _compare(self, message: votes.PairMessage) -> None:
        """As standby: end where the primary's state differs from this one at the same entry."""
        if isinstance(message, votes.Append) and not self.head and self._waiting is None:
            index, digest = message.digest
            if self.pair.peer and self.pair.peer.state_format != version.STATE_FORMAT:
                return  # of another beo, which may keep another state of the same entries
            if index > self.pair.taker.agreed_with(message.epoch):
                return  # a tail that will be cut
            if self.state.digests.get(index, digest) != digest:
                raise Internal(
                    f"this head's state at entry {index} is not the primary's",
                    "the same entries gave another state",
                    "install the same beo on both heads, then 'beo ha rejoin --wipe' here",
                )
