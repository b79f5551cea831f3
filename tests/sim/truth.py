"""What is really so: sees every head, disk and voter at once, and raises Violation where a promise is broken.

The invariants are named as in docs/replication.md: I1 no two heads act at one instant, I2 what was acknowledged is in
every later primary's log, I4 one committed entry per index, I5 one primary per epoch, I6 the chosen values of the
register form one chain. I3 (attempts) is worker.py's, I7 (all is well in the end) world.py's.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import votes
from beo.entries import Entry
from beo.ha import acts as pacts
from beo.ha import voters
from beo.ha.register import carried
from beo.votes import Cfg
from tests.sim.clock import Violation
from tests.sim.head import HeadHost

if TYPE_CHECKING:
    from tests.sim.world import Simulation

DIGEST_EVERY = 8  # entries
OPERATIONS = (
    ev.JobHeld,
    ev.JobReleased,
    ev.RequeueRequested,
    ev.PrioritySet,
    ev.NodeDrained,
    ev.NodeResumed,
    ev.NodeForgotten,
)


class Truth:
    """The observer."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self.primary: HeadHost | None = None  # who became it last
        self.epoch = 0
        self.takeovers: list[float] = []
        self._primaries: dict[int, tuple[str, int]] = {}
        self._accepted: dict[Cfg, set[str]] = {}
        self._chosen: dict[tuple[int, int], Cfg] = {}
        self._order: list[tuple[int, int]] = []
        self._committed: dict[int, tuple[int, bytes]] = {}
        self._commits: dict[str, int] = {}  # head -> how far its commit index was looked at
        self._epochs: dict[str, int] = {}
        self._digests: dict[tuple[int, bytes], tuple[str, bytes]] = {}
        self._digest_at: dict[str, int] = {}
        self._incarnations: dict[str, str] = {}  # of nodes, ever
        self._where: dict[str, list[Entry]] = {}  # key -> the entries that any head has written of it
        self.released: dict[str, int] = {}  # key -> job: an answer to its client has left a head
        self.excused: set[str] = set()  # keys that were lost where the level allows it
        self.lost_jobs: set[int] = set()  # jobs of which some entry was lost where the level allows it
        self.requeued: set[int] = set()  # jobs that an operator let begin again
        self.commits = 0
        self.operated: Counter[str] = Counter()  # entries by which somebody ran the cluster

    # ---- who acts

    def look(self, host: HeadHost) -> None:
        """Look at a head after each of its steps."""
        assert self._sim
        replica = host.replica
        if not replica:
            return
        pair = replica.pair
        if pair.role == "primary":
            other = self._sim.heads.get(host.other)
            if other and other.replica and other.replica.pair.role == "primary":
                now_s = self._sim.clock.s
                until_s = [one.time.true_s(one.replica.pair.acts_until_s) for one in (host, other) if one.replica]
                if all(now_s < end_s for end_s in until_s):
                    raise Violation(f"I1: both heads may act at {now_s:.4f}: {until_s}")
        if pair.chosen and pair.acceptor.acc and pair.role == "primary":
            self._is_chosen(pair.acceptor.acc)
        if pair.commit > self._commits.get(host.name, 0):
            self._look_at_commit(host, pair.commit)
        state = replica.state
        if not state.index % DIGEST_EVERY and state.index != self._digest_at.get(host.name):
            self._look_at_state(host)

    def became(self, host: HeadHost, effect: pacts.Became) -> None:
        """A head's role is another."""
        sim = self._sim
        sim.say(f"{host.name} became {effect.role} in epoch {votes.epoch_text(effect.epoch)}")
        if effect.role != "primary":
            return
        who = (host.name, host.life)
        if self._primaries.setdefault(effect.epoch, who) != who:
            raise Violation(f"I5: epoch {effect.epoch} has two primaries: {who}, {self._primaries[effect.epoch]}")
        if effect.epoch > self.epoch:
            if self.primary and self.primary is not host:
                self.takeovers.append(effect.down_s)
            self.primary, self.epoch = host, effect.epoch
            self._look_at_submissions(host)

    def _look_at_submissions(self, host: HeadHost) -> None:
        assert host.replica
        log = host.replica.pair.log
        if self._sim.level == "A" and (other := self._sim.heads.get(host.other)):
            self._void([e for e in other.disk.entries if (p := log.position(e.index)) is None or p.hash != e.hash])
        keys = host.replica.state.keys
        for key, job in self.released.items():
            found = keys.get(key)
            if (not found or found.job != job) and key not in self.excused:
                raise Violation(f"I2: {host.name} acts in epoch {self.epoch} without job {job}, acknowledged as {key}")

    def _void(self, entries: list[Entry]) -> None:
        """These are lost, and the level allows it: their indices, and the numbers of their jobs, are given again."""
        for entry in entries:
            self._committed.pop(entry.index, None)
            try:
                event = ev.decode(entry.data)
            except msgspec.DecodeError:
                continue  # torn or damaged: nobody acted on it, or nobody can tell
            if isinstance(event, ev.Submitted):
                if event.key in self.released:
                    self.excused.add(event.key)
                self.lost_jobs.add(event.job)
            elif job := getattr(event, "job", 0):
                self.lost_jobs.add(job)

    # ---- what is committed and acknowledged

    def _look_at_commit(self, host: HeadHost, commit: int) -> None:
        first = self._commits.get(host.name, 0) + 1
        self._commits[host.name] = commit
        if self._sim.level == "A" and host is not self.primary:
            return  # who was followed by another, and doesn't know it yet, has nobody to tell
        for index in range(first, commit + 1):
            position = host.disk.locate(index)
            if position is None:
                continue  # cut off here
            value = (position.epoch, position.hash)
            if self._committed.setdefault(index, value) != value:
                raise Violation(f"I4: {host.name} commits another entry {index} than was committed before")
        self.commits = max(self.commits, commit)

    def writes(self, host: HeadHost, entry: Entry, event: ev.Event) -> None:
        """A head appends an entry to its journal."""
        if isinstance(event, ev.Submitted):
            self._where.setdefault(event.key, []).append(entry)
        elif isinstance(event, ev.Started) and host.replica and host.replica.head:
            nodes = host.replica.state.nodes
            if any(nodes[part.node].drain for part in event.parts):
                raise Violation(f"job {event.job} is placed on a drained node")
        elif isinstance(event, ev.NodeJoined):
            node = self._incarnations.setdefault(event.incarnation, event.node)
            if node != event.node:
                raise Violation(f"incarnation {event.incarnation} is of {node} and of {event.node}")
        elif isinstance(event, OPERATIONS):
            self.operated[type(event).__name__] += 1
            if isinstance(event, ev.RequeueRequested):
                self.requeued.add(event.job)

    def releases(self, host: HeadHost, key: str, job: int) -> None:
        """A head tells a client that its submission is job `job`: then it must be as safe as the level says."""
        level = self._sim.level
        entries = [one for one in self._where[key] if self._holds(host, one, durable=True)]
        if not entries:
            raise Violation(f"{host.name} acknowledges {key}, which isn't durable there")
        other = self._sim.heads.get(host.other)
        newest = self._chosen[self._order[-1]] if self._order else None
        if other and newest and len(newest.isr) > 1 and level != "A":
            member = f"{other.name}/{other.incarnation}"
            if level == "C" and not any(self._holds(other, one, durable=True) for one in entries):
                raise Violation(f"{host.name} acknowledges {key}, which isn't durable on {other.name}, in step")
            must = level == "B" and other.runs and member in newest.isr
            if must and not any(self._holds(other, one, durable=False) for one in entries):
                raise Violation(f"{host.name} acknowledges {key}, which {other.name}, in step, hasn't received")
        if self.released.setdefault(key, job) != job and key not in self.excused:
            raise Violation(f"submission {key} is job {self.released[key]} and job {job}")

    def answers(self, host: HeadHost, message: object) -> None:
        """A head answers a client: that is to act, so no other head may be acting."""
        if isinstance(message, ms.SubmittedIs | ms.JobsAre | ms.InfoIs) and not self._sim.acts(host):
            raise Violation(f"I1: {host.name} answers, and has no lease: {message}")

    def _holds(self, host: HeadHost, entry: Entry, durable: bool) -> bool:
        disk = host.disk
        if entry.index <= disk.cut.idx:
            value = (entry.epoch, entry.hash)  # cut off means committed; another one was there once, and is an orphan
            return self._committed.get(entry.index, value) == value
        found = disk.locate(entry.index)
        return found is not None and found.hash == entry.hash and (not durable or entry.index <= disk.durable)

    def lost(self, host: HeadHost, entries: list[Entry]) -> None:
        """A crash has lost these entries. At level B what only this head had may be among them: a double failure."""
        if self._sim.level == "B" and self.alone == host.name:
            self._void(entries)

    # ---- states

    def _look_at_state(self, host: HeadHost) -> None:
        assert host.replica
        state = host.replica.state
        self._digest_at[host.name] = state.index
        position = host.replica.pair.log.position(state.index)
        if position is None:
            return
        digest = blake2b(state.encode(), digest_size=8).digest()
        who, before = self._digests.setdefault((state.index, position.hash), (host.name, digest))
        if before != digest:
            raise Violation(f"{host.name}'s state at entry {state.index} is not {who}'s")

    # ---- the register

    def starts_with(self, host: HeadHost) -> None:
        """What is in a head's register file is accepted there."""
        epoch = host.disk.kept.epoch
        if epoch < self._epochs.get(host.name, 0):
            raise Violation(f"{host.name} went back from epoch {self._epochs[host.name]} to {epoch}")
        self._epochs[host.name] = epoch
        if host.disk.kept.acc:
            self.accepted(host.disk.kept.acc, host.name)

    def shows(self, host: HeadHost, message: object) -> None:
        """A head sends this: what it promises or has taken must be on its disk."""
        kept = host.disk.kept
        match message:
            case votes.Prepare(pre=False) | votes.Promise(pre=False) | votes.Append():
                durable = kept.epoch >= message.epoch
            case votes.Accepted():
                durable = kept.acc is not None and kept.acc.order >= (message.epoch, message.n)
            case votes.Accept():
                durable = kept.acc is not None and kept.acc.order >= message.cfg.order
            case _:
                return
        if not durable:
            raise Violation(f"{host.name} shows {message}, and its disk has {kept}")

    def accepted(self, cfg: Cfg, who: str) -> None:
        """An acceptor has taken a value."""
        takers = self._accepted.setdefault(cfg, set())
        if who in takers:
            return
        takers.add(who)
        heads = set(cfg.heads)
        proposer = "A" if cfg.epoch % 2 else "B"
        if len(heads) > 1:
            chosen = heads <= takers
        else:
            both = {"A", "B"} <= takers
            chosen = proposer in takers and (both or carried(cfg.voters, {*takers, voters.holder(proposer)}))
        if chosen:
            self._is_chosen(cfg)

    def _is_chosen(self, cfg: Cfg) -> None:
        known = self._chosen.get(cfg.order)
        if known is None:
            self._chosen[cfg.order] = cfg
            insort(self._order, cfg.order)
            place = self._order.index(cfg.order)
            for at in (place, place + 1):
                if 0 < at < len(self._order):
                    self._follows(self._chosen[self._order[at - 1]], self._chosen[self._order[at]])
        elif known != cfg:
            raise Violation(f"I6: {known} and {cfg} were chosen")

    def _follows(self, before: Cfg, after: Cfg) -> None:
        if votes.generation(before.epoch) != votes.generation(after.epoch):
            return  # an operator has said that the other head is dead
        # Who goes on alone must have been in step: by the value chosen before, or by one that was proposed since and is
        # what this one was derived from. That is enough: both in step is proposed only when the other head has all
        # that is durable here, and from then on a commit needs both, chosen or not.
        alone = set(after.heads) if len(after.heads) == 1 else set()
        since = (cfg for cfg in self._accepted if before.order < cfg.order < after.order and cfg.n < after.n)
        follows = alone <= set(before.heads) or any(alone < set(cfg.heads) for cfg in since)
        if after.n <= before.n or not follows:
            raise Violation(f"I6: {after} was chosen after {before}")

    @property
    def changes(self) -> int:
        """How often another value of the register was chosen."""
        return len(self._order)

    @property
    def alone(self) -> str:
        """The head that goes on alone by the newest value that is chosen, "" if both are in step."""
        newest = self._chosen[self._order[-1]] if self._order else None
        return newest.heads[0] if newest and len(newest.heads) == 1 else ""

    # ---- lives

    def ends(self, host: HeadHost) -> None:
        """A head's process has ended: it commits nothing more."""
        self._commits[host.name] = 0

    def wiped(self, host: HeadHost) -> None:
        """A head has begun anew."""
        self._epochs.pop(host.name, None)
        self._digest_at.pop(host.name, None)
