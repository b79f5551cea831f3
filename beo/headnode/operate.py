"""What becomes of the wishes of who runs the cluster: hold, release, requeue, set, drain, resume, forget. Pure.

A verb about several jobs leaves those as they are to which it doesn't apply (they have ended, say), and fails only
where it applies to none of those that were named. Asked again, a verb does nothing more, so that an answer that was
lost can be asked for; `forget` alone then says that there is no such node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.errors import Conflict, NotFound, Refused, UsageError
from beo.headnode import moving
from beo.headnode.decide import SELECT_MAX, User, check_priority, check_room, find, pick
from beo.headnode.model import ENDED, WAITING, Job
from beo.headnode.state import State
from beo.settings import Config
from beo.spec import PRIORITY_MAX

REASON_LENGTH_MAX = 200  # of a drain: it stands in a table
JOBS_NAMED = 8  # in one sentence
PAIR_LEASE_MIN_S = 0.2  # four heartbeats of the pair: below, a busy machine loses its role to its own scheduler
PAIR_LEASE_MAX_S = 60.0  # so long would nobody act after a head's death

JobWish = ms.Hold | ms.Release | ms.Requeue | ms.SetPriority | ms.Migrate
NodeWish = ms.Drain | ms.Resume | ms.ForgetNodes


def jobs(state: State, user: User, wish: JobWish, config: Config, now_s: float) -> tuple[list[ev.Event], list[Job]]:
    """Decide on a wish about jobs. Returns the events, and the jobs that were meant."""
    if isinstance(wish, ms.Requeue):
        return _requeue(state, user, wish, config, now_s)
    if isinstance(wish, ms.Migrate):
        return moving.migrate(state, user, wish, config, now_s)
    meant = pick(state, user, wish.select)
    act: Callable[[User, Job, float], ev.Event | None]
    match wish:
        case ms.Hold():
            apt, act = [job for job in meant if job.state in WAITING], _hold
            cure = "'beo requeue --hold' ends what runs and holds it"
        case ms.Release():
            apt, act = [job for job in meant if job.state not in ENDED], _release
            cure = "'beo requeue' queues it again"
        case ms.SetPriority():
            if not -PRIORITY_MAX <= wish.priority <= PRIORITY_MAX:
                why = f"it must be from {-PRIORITY_MAX} to {PRIORITY_MAX}"
                raise UsageError(f"the priority is {wish.priority}", why, "change --priority")
            check_priority(state, user, wish.priority, config)
            apt, cure = [job for job in meant if job.state in WAITING], ""

            def act(user: User, job: Job, now_s: float) -> ev.Event | None:
                same = job.spec.priority == wish.priority
                return None if same else ev.PrioritySet(job.id, wish.priority, user.name, now_s)

    if meant and not apt and "all" not in wish.select:
        first = meant[0]
        why = "it has ended" if first.state in ENDED else "only a job that waits can be changed so"
        raise Conflict(f"job {first.id} is {first.state}", why, cure)
    _check_number(apt)
    events = [event for job in apt if (event := act(user, job, now_s))]
    return events, meant


def pair(state: State, user: User, wish: ms.SetPair, now_s: float) -> list[ev.Event]:
    """Decide on an admin's wish about what both heads agree on. Raises UsageError for a value that is none."""
    old = state.pair
    if wish.level not in (None, "A", "B", "C"):
        raise UsageError(f"there is no level {wish.level[:20]!r}", "it is A, B or C", "see 'beo ha set --help'")
    if wish.takeover not in (None, "automatic", "manual"):
        raise UsageError(f"a take-over can't be {wish.takeover[:20]!r}", "automatic or manual", "say one of both")
    words = {name: getattr(wish, name) for name in wish.__struct_fields__ if getattr(wish, name) is not None}
    new = msgspec.structs.replace(old, **words)
    if not PAIR_LEASE_MIN_S <= new.lease_s <= PAIR_LEASE_MAX_S:
        why = f"it must be from {PAIR_LEASE_MIN_S} to {PAIR_LEASE_MAX_S}"
        raise UsageError(f"a lease of {new.lease_s} s", why, "change --lease")
    if not PAIR_LEASE_MIN_S / 2 <= new.silence_s <= new.lease_s:
        why = f"it must be from {PAIR_LEASE_MIN_S / 2} to the lease of {new.lease_s}"
        raise UsageError(f"a silence of {new.silence_s} s", why, "change --silence")
    return [] if new == old else [ev.PairSet(new, user.name, now_s)]


def _check_number(apt: list[Job]) -> None:
    if len(apt) > SELECT_MAX:
        raise UsageError(f"{len(apt)} jobs at once", f"the limit is {SELECT_MAX}", "name them in ranges")


def _level(user: User, job: Job) -> str:
    """Who may release what this user holds: an admin's hold on his own job is like anybody's on theirs."""
    return "owner" if user.name == job.user else "admin"


def _hold(user: User, job: Job, now_s: float) -> ev.Event | None:
    level = _level(user, job)
    if job.hold == "admin" or job.hold == level:
        return None
    return ev.JobHeld(job.id, user.name, level, now_s)


def _release(user: User, job: Job, now_s: float) -> ev.Event | None:
    if job.state != "held":
        return None  # also one that was released before, and whose release is repeated
    if job.hold == "admin" and user.role != "admin":
        raise Refused(f"job {job.id} is held by {job.held_by}, an admin", "its owner can't release it", "ask an admin")
    return ev.JobReleased(job.id, user.name, now_s)


def _requeue(
    state: State, user: User, wish: ms.Requeue, config: Config, now_s: float
) -> tuple[list[ev.Event], list[Job]]:
    meant = [find(state, number) for number, _ in wish.jobs]
    _check_number(meant)
    events: list[ev.Event] = []
    more: Counter[str] = Counter()  # that wait then, by owner
    for number, attempt in dict.fromkeys(wish.jobs):
        job = state.jobs[number]
        if job.attempt_number != attempt or job.state in WAITING or job.requeue:
            continue  # it waits, or runs again, already
        if job.spec.stdin and job.attempts:
            why = "it read what its 'beo run' gave it, and that is gone"
            raise Conflict(f"job {job.id} can't be run again", why, "run it anew")
        if job.spec.attached and job.state in ENDED:
            raise Conflict(f"job {job.id} can't be run again", "its 'beo run' has ended", "run it anew")
        if job.state not in ENDED and job.cancel:
            raise Conflict(f"job {job.id} is being ended ({job.cancel})", "", "requeue it when it has ended")
        if job.state in ENDED:
            more[job.user] += 1
            check_room(state, job.user, config, more.total(), more[job.user])
        hold = _level(user, job) if wish.hold else ""
        events.append(ev.RequeueRequested(job.id, attempt, user.name, now_s, hold))
    return events, meant


def nodes(state: State, user: User, wish: NodeWish, config: Config, now_s: float) -> tuple[list[ev.Event], list[str]]:
    """Decide on an admin's wish about nodes. Returns the events, and the names that were meant."""
    names = nodeset.expand(wish.nodes)
    if not names:
        raise UsageError("no node named", "", "name some: node03, or node[01-04]")
    for name in names:
        if name not in state.nodes:
            raise NotFound.among("node", name, state.nodes, "see 'beo nodes'")
    found = [state.nodes[name] for name in names]
    match wish:
        case ms.Drain():
            if len(wish.reason) > REASON_LENGTH_MAX or not wish.reason.isprintable():
                why = f"it is one line of at most {REASON_LENGTH_MAX} characters"
                raise UsageError("the reason is not usable", why, "change --reason")
            same = (user.name, wish.reason)
            drained: list[ev.Event] = [
                ev.NodeDrained(node.name, user.name, wish.reason, now_s)
                for node in found
                if not node.drain or (node.drain.user, node.drain.reason) != same
            ]
            return [*drained, *moving.drain(state, user, names, config, now_s)], names
        case ms.Resume():
            return [ev.NodeResumed(node.name, user.name, now_s) for node in found if node.drain], names
        case ms.ForgetNodes():
            for node in found:
                if node.state != "lost":
                    raise Conflict(f"{node.name} is {node.state}", "only a lost node can be forgotten", "stop it first")
                _check_forgettable(state, node.name)
            return [ev.NodeForgotten(node.name, node.incarnation, user.name, now_s) for node in found], names


def _check_forgettable(state: State, name: str) -> None:
    """Refuse to forget a node of which something may live, or that a job which has not ended has to name."""
    alive = sorted({number for number, _ in state.live_parts(name)})
    needed = alive or state.jobs_with(name)
    if not needed:
        return
    which = ", ".join(map(str, needed[:JOBS_NAMED])) + (" …" if len(needed) > JOBS_NAMED else "")
    jobs = f"job{'s' * (len(needed) > 1)} {which}"
    if alive:
        cure = f"'beo gone {name}' says that it is off"
        raise Conflict(f"{name} can't be forgotten", f"{jobs} may still run there", cure)
    raise Conflict(f"{name} can't be forgotten", f"{jobs} ran there, and elsewhere still does", "wait for its end")
