"""Who is to go on elsewhere: what a drain, `beo migrate`, reservations and jobs of a higher priority ask of jobs. Pure.

Nothing is ended here. A job is *asked* to move: its ranks are told to take a checkpoint at their next safe point and to
end with `EXIT_HALTED`, and only then is it queued again (folds/attempts.py). One whose program knows nothing of
checkpoints goes on as if nothing had been said.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.errors import Conflict, NotFound
from beo.headnode import again
from beo.headnode.again import Vaults
from beo.headnode.calendar import Calendar, asks_s, in_the_way, is_gone_by
from beo.headnode.decide import User, find
from beo.headnode.model import Attempt, Job
from beo.headnode.schedule import Quotas, capacity, free_of, narrow, open_to, place
from beo.headnode.state import State
from beo.settings import Config

ROOM_S = 600.0  # for a program to come to its next safe point
PREEMPT_LOOKS = 10  # waiting jobs for which it is looked whether others should make room


def drain(state: State, user: User, names: Collection[str], config: Config, now_s: float) -> list[ev.Event]:
    """Ask what runs on these nodes, which are being drained, to go on elsewhere."""
    jobs = {job.id: job for name in names for job, _, _ in state.live_parts(name).values()}
    found: list[ev.Event] = []
    for _, job in sorted(jobs.items()):
        attempt = job.attempt
        if not attempt or job.state != "running" or job.spec.errand:
            continue
        leave = tuple(part.node for part in attempt.parts if part.node in names or state.nodes[part.node].drain)
        if _is_news(job, leave, config):
            found.append(ev.MoveRequested(job.id, attempt.number, leave, (), "drain", user.name, now_s))
    return found


def _is_news(job: Job, leave: Collection[str], config: Config) -> bool:
    """Whether a running job is to be asked to leave these of its nodes: it can, and has not been asked before."""
    attempt = job.attempts[-1]
    if _needs_tree(job, attempt, leave) and not can_leave_all(config):
        return False
    move = job.move if job.move and job.move.attempt == attempt.number else None
    return not move or not set(leave) <= set(move.leave)


def reserve(state: State, config: Config, now_s: float) -> list[ev.Event]:
    """Ask what runs on nodes whose reservation is about to begin, or is on, to go on elsewhere.

    How long before, a job's own notice says. One whose time is up by then anyway is left in peace.
    """
    leaves: dict[int, set[str]] = {}
    whose: dict[int, str] = {}
    for one in state.reservations.values():
        if now_s < one.end_s:
            for job, names in in_the_way(state, one).values():
                is_due = now_s >= asks_s(job, one) and not is_gone_by(job, one)
                if job.state == "running" and (is_due or now_s >= one.start_s):
                    leaves.setdefault(job.id, set()).update(names)
                    whose[job.id] = one.user
    found: list[ev.Event] = []
    for number, barred in sorted(leaves.items()):
        job = state.jobs[number]
        attempt = job.attempts[-1]
        leave = tuple(part.node for part in attempt.parts if part.node in barred or state.nodes[part.node].drain)
        if _is_news(job, leave, config):
            found.append(ev.MoveRequested(number, attempt.number, leave, (), "reserve", whose[number], now_s))
    return found


def _needs_tree(job: Job, attempt: Attempt, leave: Collection[str]) -> bool:
    """Whether what a job keeps goes by way of the tree: it leaves all its nodes at once, or its ranks move."""
    return job.spec.migratable or len(leave) == len(attempt.parts)


def can_leave_all(config: Config) -> bool:
    """Whether a job can leave all its nodes at once: by way of the tree, where there is one."""
    return config.files.backend == "beo"


def migrate(
    state: State, user: User, wish: ms.Migrate, config: Config, now_s: float
) -> tuple[list[ev.Event], list[Job]]:
    """Ask jobs to go on elsewhere. Raises where one can't: it doesn't run, or there is no such place."""
    meant = [find(state, number) for number, _ in wish.jobs]
    to = _targets(state, wish.nodes)
    events: list[ev.Event] = []
    for number, told in dict.fromkeys(wish.jobs):
        job = state.jobs[number]
        attempt = job.attempt
        if attempt and attempt.number > told:
            continue  # it has moved meanwhile: asked twice
        if not attempt or job.state != "running":
            raise Conflict(f"job {number} is {job.state}", "only a job that runs can move", "see 'beo queue'")
        if job.spec.errand or job.spec.attached:
            why = "it belongs to the terminal that it was started from"
            raise Conflict(f"job {number} can't move", why, "submit such a job with 'beo submit'")
        here = tuple(part.node for part in attempt.parts)
        leave = tuple(name for name in here if name not in to)
        if not leave:
            raise Conflict(f"job {number} runs on {nodeset.fold(here)} already", "", "name other nodes")
        if _needs_tree(job, attempt, leave) and not can_leave_all(config):
            why = "its checkpoint would go by way of the tree, and files.backend is 'shared'"
            cure = "set files.backend to 'beo'" if job.spec.migratable else "name nodes of which it has one already"
            raise Conflict(f"job {number} can't leave {'its' if job.spec.migratable else 'all its'} nodes", why, cure)
        _check_room(state, job, leave, to)
        events.append(ev.MoveRequested(number, attempt.number, leave, to, "migrate", user.name, now_s))
    return events, meant


def _targets(state: State, nodes: str) -> tuple[str, ...]:
    names = nodeset.expand(nodes) if nodes else []
    for name in names:
        node = state.nodes.get(name)
        if not node:
            raise NotFound.among("node", name, state.nodes, "see 'beo nodes'")
        if not node.takes_work:
            shown = "drained" if node.state == "up" else node.state
            cure = f"'beo resume {name}', or name others" if node.state == "up" else "see 'beo nodes'"
            raise Conflict(f"{name} is {shown}", "no job can go on there", cure)
    return tuple(names)


def _check_room(state: State, job: Job, leave: Collection[str], to: Collection[str]) -> None:
    """Refuse what could never be placed; whether there is room just now shows when it is queued."""
    up = [n for n in state.nodes.values() if n.takes_work and n.name not in leave and (not to or n.name in to)]
    if place(job, open_to(job, capacity(up), narrow(up))) is None:
        if place(job, capacity(up)) is not None and job.spec.movable:
            why = "on none of the nodes that it may go to a criu works"
            raise Conflict(f"job {job.id} can't move", why, "'make criu' there, see 'beo nodes'")
        slots = sum(node.slots for node in up)
        where = f"{nodeset.fold(to)} has" if to else "the other nodes have"
        why = f"{where} {slots} slots, and it needs {job.spec.slots_in_all}"
        raise Conflict(f"job {job.id} can't move", why, "name more nodes, or wait for some")


def preempt(
    state: State, ready: Collection[str], vaults: Vaults, config: Config, now_s: float
) -> list[ev.MoveRequested]:
    """Ask jobs to make room for one that waits, of a priority that is higher by `head.preempt_above` than theirs.

    Only such that have taken a checkpoint, as few as do, of the lowest priority and the youngest first. They are queued
    again when they have halted; until then nobody else is asked for that room.
    """
    free = free_of(state, ready)
    for number in state.making_room:
        _give_back(state.jobs[number], free)
    quotas = Quotas(state, config.users)
    calendar = Calendar(state, now_s, vaults, can_leave_all(config))
    walk = state.queue.walk(set(), quotas.closed, quotas.slots_of)
    for number, _ in islice(walk, PREEMPT_LOOKS):
        job = state.jobs[number]
        if job.attempts or not quotas.allow(job):
            continue
        highest = job.spec.priority - config.head.preempt_above
        if not any(priority <= highest for priority in state.priorities):
            continue
        room = calendar.room(job, free) if calendar else free
        if place(job, open_to(job, room, narrow(state.nodes.values()))):
            return []  # it starts now, or when those have halted that were asked to
        apt = [one for one in _running(state) if _may_be_asked(one, highest, vaults)]
        apt.sort(key=lambda one: (one.spec.priority, -one.attempts[-1].started_s, -one.id))
        chosen = _enough(state, job, apt, room)
        if chosen:
            return [_make_room(one, job, config, now_s) for one in chosen]
    return []


def awaited(state: State, now_s: float) -> frozenset[int]:
    """The jobs for which running ones are making room: nobody else gets it. One that doesn't halt holds up nobody."""
    return frozenset(number for number, since_s in state.making_room.values() if now_s - since_s < ROOM_S)


def _running(state: State) -> list[Job]:
    found = {job.id: job for parts in state.live.values() for job, _, _ in parts.values() if job.state == "running"}
    return [found[number] for number in sorted(found)]


def _may_be_asked(job: Job, highest: int, vaults: Vaults) -> bool:
    spec, attempt = job.spec, job.attempt
    if not attempt or job.move or spec.errand or spec.attached or spec.priority > highest:
        return False
    return any(job.id in vaults.get(part.node, ()) for part in attempt.parts)


def _give_back(job: Job, free: dict[str, tuple[int, int]]) -> None:
    """Count a running job's slots and memory as free."""
    for part in job.attempt.parts if job.attempt else ():
        if part.state == "live" and part.node in free:
            slots, size = free[part.node]
            free[part.node] = slots + part.places * job.spec.slots_per_place, size + part.places * job.spec.mem_bytes


def _enough(state: State, job: Job, apt: list[Job], free: dict[str, tuple[int, int]]) -> list[Job]:
    """Return which of these jobs have to go so that a job fits; none, if not even all of them do."""
    shut = narrow(state.nodes.values())

    def fits(gone: list[Job]) -> bool:
        room = dict(free)
        for one in gone:
            _give_back(one, room)
        return place(job, open_to(job, room, shut)) is not None

    chosen: list[Job] = []
    for one in apt:
        chosen.append(one)
        if fits(chosen):
            break
    else:
        return []
    for one in list(chosen):  # one that was taken early may not be needed
        rest = [other for other in chosen if other is not one]
        if fits(rest):
            chosen = rest
    return chosen


def _make_room(one: Job, job: Job, config: Config, now_s: float) -> ev.MoveRequested:
    attempt = one.attempts[-1]
    leave = tuple(part.node for part in attempt.parts) if can_leave_all(config) else ()
    return ev.MoveRequested(one.id, attempt.number, leave, (), again.PREEMPT, job.user, now_s, job.id)
