"""Reservations: what a wish for one becomes, and what becomes of them as time passes. Pure.

Nothing runs longer or ends sooner by a reservation's making: jobs are asked to leave its nodes shortly before it
begins, as a drain asks them (moving.py), and where it begins is the calendar's to say (calendar.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.errors import Conflict, NotFound, UsageError
from beo.headnode.again import Vaults
from beo.headnode.calendar import Calendar, in_the_way, is_gone_by, span
from beo.headnode.decide import User, check_key
from beo.headnode.model import ENDED, Job, Reservation
from beo.headnode.state import State
from beo.spec import NODES_MAX, RESERVATION_LENGTH_MAX, TIME_LIMIT_MAX_S
from beo.units import format_duration

RESERVATIONS_MAX = 100  # each is looked at whenever something is to start
USERS_MAX = 256  # of one reservation
FOR_MIN_S = 1.0
AHEAD_MAX_S = 366 * 86_400.0
LATE_S = 60.0  # so old a start still means now: somebody typed it, and clocks differ
JOBS_MAX = 1_000  # of one, in an answer


def make(
    state: State, user: User, wish: ms.Reserve, vaults: Vaults, moves: bool, now_s: float
) -> tuple[list[ev.Event], str]:
    """Reserve nodes, once per key; returns the reservation's name. moves: as in `Calendar`."""
    check_key(wish.key, "the reservation")
    known = next((one for one in state.reservations.values() if one.key == wish.key), None)
    if known:
        return [], known.name
    if len(state.reservations) >= RESERVATIONS_MAX:
        raise Conflict(f"{RESERVATIONS_MAX} reservations are made already", "there is a limit", "cancel some of them")
    start_s = _start_s(wish, now_s)
    if not FOR_MIN_S <= wish.for_s <= TIME_LIMIT_MAX_S:
        why = f"it must be from {format_duration(FOR_MIN_S)} to {format_duration(TIME_LIMIT_MAX_S)}"
        raise UsageError(f"a reservation for {wish.for_s:.16g} s", why, "change --for")
    name = _name(state, wish.name)
    users = _users(state, wish.users or (user.name,))
    end_s = start_s + wish.for_s
    calendar = Calendar(state, now_s, vaults, moves)
    if bool(wish.nodes) == bool(wish.count):
        raise UsageError("which nodes", "it is either so many or these", "say -N 4, or --nodes node[01-04]")
    if wish.nodes:
        nodes = _named(state, wish.nodes, calendar, start_s, end_s)
    else:
        nodes = _chosen(state, wish.count, calendar, start_s, end_s)
    made = (state.next_reservation, wish.key, name, user.name, users, nodes, not wish.nodes)
    return [ev.Reserved(*made, start_s, end_s, wish.kill, now_s)], name


def _start_s(wish: ms.Reserve, now_s: float) -> float:
    if not 0 <= wish.after_s <= AHEAD_MAX_S:
        raise UsageError(f"a start in {wish.after_s:.16g} s", "that is none", "change --start")
    start_s = wish.start_s or now_s + wish.after_s
    if start_s < now_s - LATE_S:
        why = f"that was {format_duration(int(now_s - start_s))} ago, by the head's clock"
        raise UsageError("the reservation would begin in the past", why, "change --start")
    if not start_s <= now_s + AHEAD_MAX_S:
        raise UsageError("the reservation would begin too late", "a year ahead is the limit", "change --start")
    return max(start_s, now_s)


def _name(state: State, wanted: str) -> str:
    if not wanted:
        number = state.next_reservation
        while f"r{number}" in state.reservations:
            number += 1
        return f"r{number}"
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{RESERVATION_LENGTH_MAX - 1}}}", wanted):
        why = f"it has 1 to {RESERVATION_LENGTH_MAX} letters, digits and . _ -"
        raise UsageError(f"{wanted[:RESERVATION_LENGTH_MAX]!r} is no name for a reservation", why, "change --name")
    if wanted in state.reservations:
        raise Conflict(f"there is a reservation {wanted} already", "", "choose another --name, or cancel that one")
    return wanted


def _users(state: State, wanted: Sequence[str]) -> tuple[str, ...]:
    if len(wanted) > USERS_MAX:
        raise UsageError(f"{len(wanted)} users of one reservation", f"the limit is {USERS_MAX}", "name fewer")
    known = {found.user for found in state.authorized.values() if found.role in ("user", "admin")}
    for name in wanted:
        if name not in known:
            raise NotFound.among("user", name, known, "see 'beo users'")
    return tuple(sorted(set(wanted)))


def _named(state: State, text: str, calendar: Calendar, start_s: float, end_s: float) -> tuple[str, ...]:
    names = nodeset.expand(text)
    if len(names) > NODES_MAX:
        raise UsageError(f"{len(names)} nodes", f"the limit is {NODES_MAX}", "change --nodes")
    for name in names:
        if name not in state.nodes:
            raise NotFound.among("node", name, state.nodes, "see 'beo nodes'")
        other = _overlap(calendar, name, start_s, end_s)
        if other:
            why = f"as {other.name}, by {other.user}"
            raise Conflict(f"{name} is reserved in that time already", why, "see 'beo reserve list'")
    return tuple(names)


def _overlap(calendar: Calendar, name: str, start_s: float, end_s: float) -> Reservation | None:
    return next((one for one in calendar.of_node(name) if one.start_s < end_s and start_s < one.end_s), None)


def _chosen(state: State, count: int, calendar: Calendar, start_s: float, end_s: float) -> tuple[str, ...]:
    if not 0 < count <= NODES_MAX:
        raise UsageError(f"{count} nodes", f"it must be from 1 to {NODES_MAX}", "change -N")
    able = choose(state, count, calendar, start_s, end_s)
    if len(able) < count:
        has = f"{len(able)} can be had then" if able else "none can be had then"
        why = f"of {len(state.nodes)} nodes {has}: others are reserved, drained or lost"
        raise Conflict(f"{count} nodes can't be reserved", why, "see 'beo reserve list' and 'beo nodes'")
    return able


def choose(
    state: State, count: int, calendar: Calendar, start_s: float, end_s: float, without: Collection[str] = ()
) -> tuple[str, ...]:
    """Return up to so many nodes that nobody else has then: those where the least would be disturbed.

    What can't be moved and would still run at the start counts first, then what would have to move.
    """
    ranked = []
    for name, node in state.nodes.items():
        if node.takes_work and name not in without and not _overlap(calendar, name, start_s, end_s):
            slots = {True: 0, False: 0}
            for job, attempt, part in state.live_parts(name).values():
                limit_s = job.spec.time_limit_s
                if not job.spec.errand and not (limit_s and attempt.started_s + limit_s <= start_s):
                    slots[calendar.can_move(job)] += part.places * job.spec.slots_per_place
            ranked.append((slots[False], slots[True], nodeset.natural_key(name), name))
    return tuple(sorted((name for *_, name in sorted(ranked)[:count]), key=nodeset.natural_key))


def cancel(state: State, user: User, names: Sequence[str], now_s: float) -> list[ev.Event]:
    """End reservations by name."""
    if not names:
        raise UsageError("no reservation named", "", "see 'beo reserve list'")
    return [ev.ReservationEnded(one.name, user.name, now_s) for one in pick(state, names)]


def pick(state: State, names: Sequence[str]) -> list[Reservation]:
    """Return reservations by name, or all, the next to begin first; NotFound names the nearest."""
    for name in names:
        if name not in state.reservations:
            raise NotFound.among("reservation", name, state.reservations, "see 'beo reserve list'")
    meant = [one for one in state.reservations.values() if not names or one.name in names]
    return sorted(meant, key=lambda one: (one.start_s, one.number))


def keep(state: State, vaults: Vaults, moves: bool, now_s: float) -> list[ev.Event]:
    """Say what time has done: reservations that are over, others' nodes for lost ones, and what is to be ended."""
    events: list[ev.Event] = []
    for one in state.reservations.values():
        if now_s >= one.end_s:
            events.append(ev.ReservationEnded(one.name, "", now_s))
            continue
        lost = [name for name in one.nodes if _is_missing(state, name)]
        if one.chosen and lost and not events:  # one at a time: two could choose the same node
            calendar = Calendar(state, now_s, vaults, moves)
            found = choose(state, len(lost), calendar, max(now_s, one.start_s), one.end_s, one.nodes)
            stay = [name for name in one.nodes if name not in lost[: len(found)]]
            if found:
                names = sorted((*stay, *found), key=nodeset.natural_key)
                events.append(ev.ReservationMoved(one.name, tuple(names), now_s))
        if one.kill and now_s >= one.start_s:
            jobs = (job for job, _ in in_the_way(state, one).values())
            events += [_end(job, one, now_s) for job in jobs if job.state == "running"]
    return events


def _is_missing(state: State, name: str) -> bool:
    node = state.nodes.get(name)
    return node is None or not node.takes_work


def _end(job: Job, one: Reservation, now_s: float) -> ev.Event:
    """End what is in the way: it runs again elsewhere, unless it can't."""
    why = f"{nodeset.fold(one.nodes)} is reserved as {one.name}"
    if job.spec.requeue == "never" or job.spec.attached or job.spec.stdin:
        return ev.CancelRequested(job.id, one.user, why, now_s)
    return ev.RequeueRequested(job.id, job.attempt_number, one.user, now_s, reason=f"was ended: {why}")


def on_node(calendar: Calendar, name: str, now_s: float) -> str:
    """For whom a node is reserved, now or next; "": for nobody."""
    one = next(iter(calendar.of_node(name)), None)
    return f"reserved {span(one, now_s)}" if one else ""


def row(state: State, one: Reservation, calendar: Calendar, now_s: float) -> ms.ReservationView:
    """One row of `beo reserve list`."""
    jobs = tuple(job.id for job in state.jobs.values() if one.has(job) and job.state not in ENDED)[:JOBS_MAX]
    ways = in_the_way(state, one).values()
    return ms.ReservationView(
        name=one.name,
        state="on" if one.is_on(now_s) else "planned",
        user=one.user,
        users=one.users,
        nodes=nodeset.fold(one.nodes),
        chosen=one.chosen,
        start_s=one.start_s,
        end_s=one.end_s,
        kill=one.kill,
        jobs=jobs,
        in_the_way=tuple(
            ms.InTheWay(job.id, nodeset.fold(names), _fate(job, one, calendar, now_s))
            for job, names in list(ways)[:JOBS_MAX]
        ),
        missing=nodeset.fold([name for name in one.nodes if _is_missing(state, name)]),
        slots=sum(state.nodes[name].slots for name in one.nodes if name in state.nodes),
        starts_in_s=round(one.start_s - now_s, 3),
        ends_in_s=round(one.end_s - now_s, 3),
    )


def _fate(job: Job, one: Reservation, calendar: Calendar, now_s: float) -> str:
    """What becomes of a job that is in the way."""
    attempt = job.attempt
    limit_s = job.spec.time_limit_s
    if job.state == "ending":
        return "is being ended"
    if is_gone_by(job, one) and now_s < one.start_s:
        return "its time is up before"
    if one.kill:
        at = " at the start" if now_s < one.start_s else ""
        end = f"is ended{at}"
    elif attempt and limit_s:
        left_s = attempt.started_s + limit_s - max(now_s, one.start_s)
        end = f"may hold it up for {format_duration(max(0, int(left_s)))}"
    else:
        end = "may hold it up to its own end"
    if job.move and attempt and job.move.attempt == attempt.number:
        return f"is asked to move, and else {end}"
    if calendar.can_move(job) and now_s < one.start_s:
        return f"will be asked to move {format_duration(job.spec.notice_s)} before"
    return end
