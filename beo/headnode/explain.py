"""State in words: why a job waits, and what an event says."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.headnode.again import Vaults, keepers
from beo.headnode.calendar import Calendar, span
from beo.headnode.model import ENDED, WAITING, Attempt, Holding, Job, Node
from beo.headnode.queue import shape_of
from beo.headnode.schedule import (
    ERRANDS_MAX,
    Narrow,
    back_off_s,
    capacity,
    limits_of,
    narrow,
    open_to,
    place,
    ranks_that_fit,
)
from beo.headnode.state import State
from beo.settings import UsersConfig
from beo.units import approximate_size, format_duration, format_size
from beo.votes import epoch_text

NAMED_MAX = 8  # jobs and nodes named in one sentence


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _wish(job: Job) -> str:
    spec = job.spec
    words = [_counted(spec.ranks, "rank")]
    if spec.cpus > 1:
        words.append(f"of {spec.cpus} slots")
    if spec.slots > spec.ranks * spec.cpus:
        words.append(f"and {spec.slots_in_all} slots in all")
    if spec.mem_bytes:
        words.append(f"with {format_size(spec.mem_bytes)} each")
    if spec.nodes:
        words.append(f"on {_counted(spec.nodes, 'node')}")
    return " ".join(words)


class Outlook:
    """The state as it bears on waiting, worked out once for many jobs. ready: the nodes that may be given work."""

    def __init__(
        self,
        state: State,
        ready: Collection[str],
        users: UsersConfig | None = None,
        vaults: Vaults | None = None,
        calendar: Calendar | None = None,
        now_s: float = 0.0,
    ) -> None:
        """Take the state as it is now, what users may have, and which nodes keep something of which job or are whose.

        now_s: the wall clock.
        """
        self._calendar = calendar or Calendar(state, now_s, vaults)
        self._now_s = now_s
        self._vaults = vaults or {}
        self._state = state
        self._ready = frozenset(ready)
        self._users_may = users or UsersConfig()
        self._placeable: dict[tuple[object, ...], bool] = {}

    @cached_property
    def _up(self) -> list[Node]:
        return [node for node in self._state.nodes.values() if node.takes_work]

    @cached_property
    def _drained(self) -> list[str]:
        return [node.name for node in self._state.nodes.values() if node.state == "up" and node.drain]

    @cached_property
    def _capacity(self) -> dict[str, tuple[int, int]]:
        return capacity(self._up)

    @cached_property
    def _shut(self) -> Narrow:
        return narrow(self._up)

    @cached_property
    def _free(self) -> dict[str, tuple[int, int]]:
        return {
            node.name: (node.slots - node.used_slots, node.mem_bytes - node.used_bytes)
            for node in self._up
            if node.name in self._ready
        }

    @cached_property
    def _users(self) -> list[int]:
        return sorted({number for node in self._up for number, _ in self._state.live_parts(node.name)})

    def why(self, job: Job) -> list[str]:
        """Sentences on why a job is where it is; the first one fits into a table's column."""
        if job.state in ENDED:
            return [job.reason] if job.reason else []
        if job.state not in WAITING and job.attempt:
            return self._why_running(job, job.attempt)
        why = self._why_queued(job) if job.state == "queued" else [self._why_held(job)]
        return [*why, *([job.reason] if job.reason else [])]

    def _why_held(self, job: Job) -> str:
        who = f"held by {job.held_by}" + (", an admin" if job.hold == "admin" else "")
        return f"{who}: 'beo release {job.id}' lets it start"

    def _why_running(self, job: Job, attempt: Attempt) -> list[str]:
        nodes = self._state.nodes
        silent = [p.node for p in attempt.parts if p.state == "live" and nodes[p.node].state == "lost"]
        sentences = []
        if job.state == "ending":
            sentences.append(f"is ended: {job.cancel or job.requeue or (attempt.cause[2] if attempt.cause else '')}")
        if job.move and job.state == "running":
            where = nodeset.fold(job.move.leave) or "its nodes"
            sentences.append(f"is asked to leave {where} ({job.move.reason}): it does at its next checkpoint")
        if silent:
            where = nodeset.fold(silent)
            sentences.append(
                f"{where} is silent: attempt {attempt.number} may still run there, so it waits until {where} answers"
                f" or you say 'beo gone {where}'"
            )
        return sentences

    def _fits(self, job: Job, empty: bool) -> bool:
        """Whether a job fits into the cluster as it is, or as it would be with nothing in it."""
        key: tuple[object, ...] = (shape_of(job), empty)
        if self._calendar:  # it matters how long a job takes, and whether it can be moved
            key = (*key, job.spec.time_limit_s, job.spec.notice_s, self._calendar.can_move(job))
        if key not in self._placeable:
            free = self._capacity if empty else self._free
            room = self._calendar.room(job, free) if self._calendar and not empty else free
            self._placeable[key] = place(job, open_to(job, room, self._shut)) is not None
        return self._placeable[key]

    def _room(self, job: Job, name: str) -> int:
        if name not in self._free or self._calendar.barring(job, name):
            return 0
        return ranks_that_fit(job, *self._free[name])

    def _at_limit(self, job: Job) -> str:
        limits, held = limits_of(self._state, self._users_may, job.user), self._state.holdings.get(job.user, Holding())
        whose = self._users_may.where(job.user)
        if limits.running_max and held.jobs >= limits.running_max:
            return f"{job.user} has {_counted(held.jobs, 'job')} running: {whose}.running_max is {limits.running_max}"
        if limits.slots_max and held.slots + job.spec.slots_in_all > limits.slots_max:
            holds = f"{job.user} holds {_counted(held.slots, 'slot')}, it needs {job.spec.slots_in_all}"
            return f"{holds}: {whose}.slots_max is {limits.slots_max}"
        return ""

    def _why_shut(self, job: Job, names: list[str]) -> str:
        """Why these nodes can't run a job that they have room for."""
        still = [name for name in names if job.spec.movable and name in self._shut.still]
        if still:
            why = self._state.nodes[still[0]].facts.get(ms.CRIU, "not told yet")
            return f"is movable, and {nodeset.fold(still)} can't move programs ({why}): 'make criu' there"
        bare = [name for name in names if job.spec.in_tree and name in self._shut.bare]
        if bare:
            return f"runs in the tree of files, which {nodeset.fold(bare)} can't mount"
        whose = "its daemon doesn't run" if len(names) == 1 else "their daemons don't run"
        return f"{nodeset.fold(names)} can't run jobs of {job.user}: {whose} as root there"

    def _why_reserved(self, job: Job) -> list[str]:
        """Sentences on reservations that keep a job waiting: its own, and others'."""
        own = self._calendar.of(job)
        if own and not own.is_on(self._now_s):
            return [f"its reservation {own.name} begins in {format_duration(int(own.start_s - self._now_s))}"]
        where = own.nodes if own else sorted(self._free)
        barred: dict[str, list[str]] = {}
        for name in where:
            one = self._calendar.barring(job, name)
            if one:
                barred.setdefault(one.name, []).append(name)
        sentences = []
        for name, nodes in list(barred.items())[:NAMED_MAX]:
            one = self._state.reservations[name]
            verb = "is" if len(nodes) == 1 else "are"
            text = f"{nodeset.fold(nodes)} {verb} reserved {span(one, self._now_s)}"
            limit_s = job.spec.time_limit_s
            if not one.is_on(self._now_s):
                text += f": its time limit of {format_duration(limit_s)} reaches so far" if limit_s else ""
                text += ": it has no time limit (-t) that ends before" if not limit_s else ""
            sentences.append(text)
        if own and not place(job, {name: room for name, room in self._capacity.items() if name in own.nodes}):
            sentences.append(f"needs {_wish(job)}: more than reservation {own.name} has")
        elif own:
            sentences.append(f"waits for {_wish(job)} on {nodeset.fold(own.nodes)}, reservation {own.name}")
        return sentences

    def _why_queued(self, job: Job) -> list[str]:
        if job.spec.errand:
            node = self._state.nodes.get(job.spec.errand)
            if node is None or node.name not in self._ready:
                return [f"waits for {job.spec.errand}, which is silent"]
            return [f"waits until one of {ERRANDS_MAX} copies on {job.spec.errand} is done"]
        if not self._up:
            return [self._drain_sentence() or "no node is up: see 'beo nodes'"]
        if not self._fits(job, empty=True):
            shut = [node.name for node in self._up if self._shut.shuts(node.name, job)]
            if shut and place(job, self._capacity) is not None:
                return [self._why_shut(job, shut)]
            has = f"{_counted(sum(node.slots for node in self._up), 'slot')} on {_counted(len(self._up), 'node')}"
            if job.spec.mem_bytes:
                has += f" with {approximate_size(sum(node.mem_bytes for node in self._up))}"
            needs = f"needs {_wish(job)}; the cluster has {has}: it waits for more nodes"
            return [needs, *filter(None, [self._drain_sentence()])]
        limit = self._at_limit(job)
        if limit:
            return [limit]
        kept = keepers(self._state, job, self._vaults)
        missing = sorted(name for name, places in kept.items() if self._room(job, name) < places)
        if missing:
            return [f"waits for {nodeset.fold(missing)}, where it has left its checkpoint"]
        ahead = self._state.queue.ahead_of(job)
        if self._fits(job, empty=False):
            slowed_s = back_off_s(job, job.attempts[-1].ended_s) if job.attempts else 0.0
            if slowed_s:
                return [f"waits {format_duration(slowed_s)} before the next attempt: the last ones were lost at once"]
            return [f"waits behind {_counted(ahead, 'job')}" if ahead else "starts now"]
        reserved = self._why_reserved(job) if self._calendar else []
        if reserved and (self._calendar.of(job) or place(job, open_to(job, self._free, self._shut))):
            return reserved
        sentences = []
        if self._users:
            named = ", ".join(map(str, self._users[:NAMED_MAX])) + (" …" if len(self._users) > NAMED_MAX else "")
            sentences.append(f"waits for {_wish(job)}: job{'s' * (len(self._users) > 1)} {named} in the way")
        waiting = [node.name for node in self._up if node.name not in self._ready]
        if waiting:
            sentences.append(f"{nodeset.fold(waiting)} has not told yet what it runs")
        still = [name for name in self._shut.still if job.spec.movable and self._room(job, name)]
        if still:
            sentences.append(self._why_shut(job, sorted(still)))
        if ahead:
            sentences.append(f"{_counted(ahead, 'job')} ahead of it in the queue")
        sentences += [*reserved, *filter(None, [self._drain_sentence()])]
        return sentences or [f"waits for {_wish(job)}"]

    def _drain_sentence(self) -> str:
        if not self._drained:
            return ""
        verb = "is" if len(self._drained) == 1 else "are"
        return f"{nodeset.fold(self._drained)} {verb} drained: 'beo resume' lets new work in"


def describe(event: ev.Event) -> tuple[str, int, str, str]:
    """Return an event as (kind, job or 0, node or '', sentence)."""
    kind = type(event).__name__
    match event:
        case ev.Born():
            return kind, 0, "", f"cluster {event.cluster} with head {event.head}"
        case ev.EpochBegan():
            return kind, 0, "", f"head {event.head} acts, epoch {epoch_text(event.epoch)}"
        case ev.HeadJoined():
            return kind, 0, "", f"head {event.head} at {event.control}, links {', '.join(event.links) or 'none'}"
        case ev.HeadLeft():
            return kind, 0, "", f"head {event.head} belongs to the cluster no more, by {event.user}"
        case ev.PairSet():
            pair = event.settings
            words = f"level {pair.level}, take-over {pair.takeover}, failback {'on' if pair.failback else 'off'}"
            return kind, 0, "", f"{words}{', frozen' if pair.frozen else ''}, lease {pair.lease_s} s, by {event.user}"
        case ev.KeyAuthorized():
            return kind, 0, "", f"key {event.key[:8]}… is {event.role} {event.user}"
        case ev.KeysRevoked():
            which = f"{_counted(len(event.keys), 'key')} of {event.user} revoked by {event.by}"
            return kind, 0, "", which + (", who is barred" if event.barred else "")
        case ev.UserAllowed():
            return kind, 0, "", f"{event.by} allowed {event.user} again"
        case ev.Submitted():
            words = " ".join(event.spec.argv)
            return kind, event.job, "", f"{event.user}: {words[:120]}"
        case ev.Started():
            where = nodeset.fold([part.node for part in event.parts])
            ranks = sum(part.ranks for part in event.parts)
            return kind, event.job, "", f"attempt {event.attempt}, {_counted(ranks, 'rank')} on {where}"
        case ev.PartEnded():
            result = event.result
            worst = max((r.status for r in result.ranks), default=0)
            text = result.note or result.reason or f"status {worst}"
            return kind, event.job, event.node, f"attempt {event.attempt}: {text}"
        case ev.PartGone():
            return kind, event.job, event.node, f"attempt {event.attempt}: {event.reason}"
        case ev.CancelRequested():
            return kind, event.job, "", event.reason
        case ev.SignalRequested():
            return kind, event.job, "", f"signal {event.signal} by {event.user}"
        case ev.NodeJoined():
            kept = f", still running {_counted(len(event.running), 'attempt')}" if event.running else ""
            return kind, 0, event.node, f"{_counted(event.slots, 'slot')}, {approximate_size(event.mem_bytes)}{kept}"
        case ev.NodeLost():
            return kind, 0, event.node, event.reason
        case ev.NodeGone():
            return kind, 0, event.node, f"{event.user} said that it is off"
        case ev.JobHeld():
            return kind, event.job, "", f"held by {event.user}" + (", an admin" if event.by == "admin" else "")
        case ev.JobReleased():
            return kind, event.job, "", f"released by {event.user}"
        case ev.RequeueRequested():
            held = ", to be held" if event.hold else ""
            return kind, event.job, "", f"attempt {event.attempt}: requeued by {event.user}{held}"
        case ev.MoveRequested():
            where = f"leaves {nodeset.fold(event.leave) or 'its nodes'}" + (
                f" for {nodeset.fold(event.to)}" if event.to else ""
            )
            return kind, event.job, "", f"attempt {event.attempt} {where}: {event.why} by {event.user}"
        case ev.VaultCopied():
            text = f"attempt {event.attempt}: {approximate_size(event.size_bytes)} of its checkpoint copied to the head"
            return kind, event.job, event.node, text
        case ev.ProcessSignalled():
            what = f"rank {event.rank}" if event.rank >= 0 else f"process {event.pid}"
            return kind, event.job, event.node, f"signal {event.signal} for {what} by {event.user}"
        case ev.PrioritySet():
            return kind, event.job, "", f"priority {event.priority} by {event.user}"
        case ev.NodeDrained():
            return kind, 0, event.node, f"drained by {event.user}" + (f": {event.reason}" if event.reason else "")
        case ev.NodeResumed():
            return kind, 0, event.node, f"resumed by {event.user}"
        case ev.NodeForgotten():
            return kind, 0, event.node, f"off the record by {event.user}"
        case ev.Reserved():
            whose = ", ".join(event.users[:NAMED_MAX]) + (" …" if len(event.users) > NAMED_MAX else "")
            long = format_duration(int(event.end_s - event.start_s))
            in_s = format_duration(max(0, int(event.start_s - event.time_s)))
            text = f"{event.name}: {nodeset.fold(event.nodes)} for {whose}, in {in_s} for {long}, by {event.user}"
            return kind, 0, "", text
        case ev.ReservationMoved():
            return kind, 0, "", f"{event.name} has {nodeset.fold(event.nodes)} now: others were lost or drained"
        case ev.ReservationEnded():
            return kind, 0, "", f"{event.name} was cancelled by {event.user}" if event.user else f"{event.name} is over"
        case ev.Forgotten():
            return kind, 0, "", f"records of {_counted(len(event.jobs), 'ended job')} dropped"
        case ev.KeyRevoked():
            return kind, 0, "", f"key {event.key[:8]}… was revoked by {event.user}"
        case ev.TokenMade():
            return kind, 0, "", f"token {event.number} of {event.maker} for {_counted(event.uses, event.role)}"
        case ev.MachineLeased():
            where = f" at {event.address}" if event.address else ""
            return kind, 0, event.name, f"the machine {event.mac}{where} is {event.name}"
        case ev.MachineOpened():
            return kind, 0, "", f"the machine {event.mac} has fetched its boot script"
        case ev.MachineAsked():
            return kind, 0, "", f"the machine {event.mac} wants to join by key {event.key[:8]}…"
        case ev.MachineApproved():
            return kind, 0, "", f"{event.user} approved key {event.key[:8]}… of the machine {event.mac}"
        case ev.MachineJoined():
            return kind, 0, event.node, f"the machine {event.mac} has joined by key {event.key[:8]}…"
        case ev.MachineSet():
            where = f" at {event.address}" if event.address else ""
            return kind, 0, event.name, f"the machine {event.mac}{where} was set by {event.user}"
        case ev.MachineForgotten():
            return kind, 0, "", f"the machine {event.mac} is off the record, by {event.user}"
        case ev.Enrolled():
            return kind, 0, event.node, f"key {event.key[:8]}… was authorized by a token"
