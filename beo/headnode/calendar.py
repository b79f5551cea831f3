"""Whose the nodes are, and when: what reservations mean for where a job may start. Pure.

While a reservation is on, its nodes start jobs of it only, and those start nowhere else. Before that nothing is started
there that would reach into it: a job whose time limit ends before it may, and so may one that can be moved, which is
asked to leave shortly before (moving.py). What can't be moved and has no limit waits for other nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import inf, nextafter

from beo.headnode.again import Room, Vaults
from beo.headnode.model import Job, Reservation
from beo.headnode.state import State
from beo.units import format_duration

NAMED_MAX = 4  # users in one sentence


class Calendar:
    """The reservations that bear on what is started now; false where there are none.

    vaults: which nodes keep something of which job. moves: whether a job can leave all its nodes at all.
    """

    def __init__(self, state: State, now_s: float, vaults: Vaults | None = None, moves: bool = True) -> None:
        """Take the state, and the wall clock."""
        self._now_s = now_s
        self._vaults: Vaults = vaults or {}
        self._moves = moves
        self._all = state.reservations

    @cached_property
    def _on(self) -> dict[str, list[Reservation]]:
        """Node -> its reservations that aren't over, the next one first."""
        found: dict[str, list[Reservation]] = {}
        for one in sorted(self._all.values(), key=lambda one: (one.start_s, one.number)):
            if self._now_s < one.end_s:
                for name in one.nodes:
                    found.setdefault(name, []).append(one)
        return found

    @cached_property
    def _first_s(self) -> dict[str, float]:
        return {name: found[0].start_s for name, found in self._on.items()}

    def __bool__(self) -> bool:
        """Whether there is any reservation."""
        return bool(self._all)

    def of(self, job: Job) -> Reservation | None:
        """Return the reservation that a job belongs to."""
        one = self._all.get(job.spec.reservation) if job.spec.reservation else None
        return one if one and one.has(job) else None

    def room(self, job: Job, free: Room) -> dict[str, tuple[int, int]]:
        """Return those of the free nodes on which this job may start now, in their order."""
        own = self.of(job)
        if own:
            nodes = set(own.nodes) if own.is_on(self._now_s) else set()
            return {name: free[name] for name in free if name in nodes and not self.barring(job, name)}
        until_s, first_s = self._until_s(job), self._first_s
        return {name: room for name, room in free.items() if first_s.get(name, inf) >= until_s}

    def barring(self, job: Job, node: str) -> Reservation | None:
        """Return the reservation for which a job may not start on a node now, or None."""
        own = self.of(job)
        first = next((one for one in self._on.get(node, ()) if one is not own), None)
        return first if first and first.start_s < self._until_s(job) else None

    def _until_s(self, job: Job) -> float:
        """How long a node must be free of reservations for a job: to the end of its time, or until it could be asked.

        Where the next reservation begins later than that, all that follow do.
        """
        spec = job.spec
        end_s = self._now_s + spec.time_limit_s if spec.time_limit_s else inf
        return min(end_s, nextafter(self._now_s + spec.notice_s, inf)) if self.can_move(job) else end_s

    def can_move(self, job: Job) -> bool:
        """Whether a job said that it can go on elsewhere, or has shown it by what its nodes keep of it."""
        spec = job.spec
        if not self._moves or spec.attached:
            return False
        if spec.movable or spec.signal or spec.goes_on or job.copies:
            return True
        parts = job.attempt.parts if job.attempt else ()
        return any(job.id in self._vaults.get(part.node, ()) for part in parts)

    def of_node(self, name: str) -> Sequence[Reservation]:
        """Return the reservations of a node that aren't over, the next one first."""
        return self._on.get(name, ())


def span(one: Reservation, now_s: float) -> str:
    """For whom a reservation is, and when, as seen from now: no clock of another zone has to be read."""
    whose = ", ".join(one.users[:NAMED_MAX]) + (" …" if len(one.users) > NAMED_MAX else "")
    if one.is_on(now_s):
        return f"for {whose} ({one.name}) for {format_duration(int(one.end_s - now_s))} more"
    long = format_duration(int(one.end_s - one.start_s))
    return f"for {whose} ({one.name}) in {format_duration(int(one.start_s - now_s))}, for {long}"


def asks_s(job: Job, one: Reservation) -> float:
    """When a job is asked to leave the nodes of a reservation: so long before that it can take a checkpoint."""
    return one.start_s - job.spec.notice_s


def is_gone_by(job: Job, one: Reservation) -> bool:
    """Whether a running job's own time is up when a reservation begins."""
    attempt = job.attempt
    limit_s = job.spec.time_limit_s
    return bool(attempt and limit_s and attempt.started_s + limit_s <= one.start_s)


def in_the_way(state: State, one: Reservation) -> Mapping[int, tuple[Job, tuple[str, ...]]]:
    """Return the jobs that run on a reservation's nodes and aren't of it, with those nodes. Copies don't count."""
    found: dict[int, tuple[Job, tuple[str, ...]]] = {}
    for name in one.nodes:
        for job, _, _ in state.live_parts(name).values():
            if not one.has(job) and not job.spec.errand:
                found[job.id] = job, (*found.get(job.id, (job, ()))[1], name)
    return dict(sorted(found.items()))
