"""Which queued jobs start now, and where: `plan`, a pure function of the state.

Jobs are looked at in the order of the queue (queue.py): by priority, then whose user holds the fewest slots, then by
age. One whose user is at a limit of his is passed over and holds nobody up. Each other is placed first-fit on the nodes
that are ready; one that doesn't fit is passed over by smaller ones, but only for PATIENCE_S: from then on nothing
behind it starts before it, so that a steady stream of small jobs can't starve a wide one.

Where nodes are reserved, the calendar (calendar.py) says which of them a job may have.

An *errand* (a copy of files to or from a node) stands beside all that: it takes no slot, and starts on its node where
not too many of them are under way.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import NamedTuple

import msgspec

from beo import messages as ms
from beo.headnode.again import Vaults, allowed, keepers, patience_s, place_again
from beo.headnode.calendar import Calendar
from beo.headnode.model import Holding, Job, Node
from beo.headnode.queue import Shape
from beo.headnode.state import State
from beo.settings import NO_LIMITS, Limits, UsersConfig

SKIPS_MAX = 50_000  # jobs too long for what is free before a reservation, that one plan passes over
LOOKS_MAX = 2_000  # jobs and hopeless shapes that one plan looks at: bounds its time
PATIENCE_S = 600.0
SHORT_S = 10.0  # an attempt that is lost sooner may be the job's (or its warden's) own doing
BACK_OFF_MAX_S = 60.0
ERRANDS_MAX = 4  # at a time on one node: each takes a process, and its disk


class Placement(msgspec.Struct, frozen=True):
    """A job and its ranks per node: (node, first rank, ranks, slots for so many ranks more), in rank order."""

    job: int
    parts: tuple[tuple[str, int, int, int], ...]


def ranks_that_fit(job: Job, slots: int, mem_bytes: int) -> int:
    """How many ranks of a job fit into so many free slots and bytes."""
    fit = slots // job.spec.cpus
    if job.spec.mem_bytes:
        fit = min(fit, mem_bytes // job.spec.mem_bytes)
    return max(fit, 0)


def _spread(ranks: int, room: list[tuple[int, str]]) -> dict[str, int]:
    """Divide ranks evenly over nodes with limited room: the scarce ones first get what they can take."""
    shares: dict[str, int] = {}
    for left, (fit, name) in zip(range(len(room), 0, -1), sorted(room), strict=True):
        shares[name] = min(fit, ranks // left)
        ranks -= shares[name]
    for fit, name in sorted(room, reverse=True):  # what the division left over
        more = min(ranks, fit - shares[name])
        shares[name] += more
        ranks -= more
    return shares


def place(job: Job, free: dict[str, tuple[int, int]]) -> tuple[tuple[str, int, int], ...] | None:
    """Place one job on nodes with (slots, bytes) free, or None. As few nodes as fit, or exactly spec.nodes of them.

    As (node, first place, places): each is for one rank.
    """
    ranks, nodes = job.spec.places, job.spec.nodes
    room = [(fit, name) for name, (slots, size) in free.items() if (fit := ranks_that_fit(job, slots, size)) > 0]
    shares: dict[str, int] = {}
    if nodes:
        room = sorted(room, key=lambda r: (-r[0], r[1]))[:nodes]
        if len(room) < nodes or sum(fit for fit, _ in room) < ranks:
            return None
        shares = _spread(ranks, room)
    else:
        whole = next((name for fit, name in room if fit >= ranks), None)
        if whole is not None:
            return ((whole, 0, ranks),)
        left = ranks
        for fit, name in sorted(room, key=lambda r: (-r[0], r[1])):
            shares[name] = min(fit, left)
            left -= shares[name]
            if not left:
                break
        if left:
            return None
    return _in_order(shares)


def _in_order(shares: dict[str, int]) -> tuple[tuple[str, int, int], ...]:
    parts, first = [], 0
    for name in sorted(shares):
        parts.append((name, first, shares[name]))
        first += shares[name]
    return tuple(parts)


def divide(job: Job, parts: tuple[tuple[str, int, int], ...]) -> tuple[tuple[str, int, int, int], ...]:
    """Say which of the places have a rank from the beginning: (node, first rank, ranks, places without one).

    They fill node after node; with spec.nodes every node gets its share. A batch job's script has the use of them all.
    """
    ranks = job.spec.ranks
    if job.spec.batch or ranks == job.spec.places:
        return tuple((name, first, places, 0) for name, first, places in parts)
    if job.spec.nodes:
        shares = _spread(ranks, [(places, name) for name, _, places in parts])
    else:
        shares = {name: max(0, min(places, ranks - first)) for name, first, places in parts}
    divided, first = [], 0
    for name, _, places in parts:
        divided.append((name, first, shares[name], places - shares[name]))
        first += shares[name]
    return tuple(divided)


class Quotas:
    """What each user holds and may hold, as a plan goes on. closed: users at their limit of running jobs."""

    def __init__(self, state: State, users: UsersConfig) -> None:
        """Take what the state says."""
        self._state = state
        self._users = users
        self._taken: dict[str, Holding] = {}
        self.closed = {name for name in state.holdings if self._is_full(name)}

    def _is_full(self, user: str) -> bool:
        most = limits_of(self._state, self._users, user).running_max
        return bool(most) and self._jobs_of(user) >= most

    def _jobs_of(self, user: str) -> int:
        held, taken = self._state.holdings.get(user), self._taken.get(user)
        return (held.jobs if held else 0) + (taken.jobs if taken else 0)

    def slots_of(self, user: str) -> int:
        """How many slots a user's jobs hold, those placed just now included."""
        held, taken = self._state.holdings.get(user), self._taken.get(user)
        return (held.slots if held else 0) + (taken.slots if taken else 0)

    def allow(self, job: Job) -> bool:
        """Whether a job's slots are within its user's limit."""
        most = limits_of(self._state, self._users, job.user).slots_max
        return not most or self.slots_of(job.user) + job.spec.slots_in_all <= most

    def take(self, job: Job) -> None:
        """A job was placed."""
        taken = self._taken.setdefault(job.user, Holding())
        taken.jobs += 1
        taken.slots += job.spec.slots_in_all
        if self._is_full(job.user):
            self.closed.add(job.user)


def limits_of(state: State, users: UsersConfig, name: str) -> Limits:
    """Return what a user may have; admins set the limits and have none, unless they are named among them."""
    return NO_LIMITS if name in state.admins and name not in users.named else users.of(name)


def back_off_s(job: Job, now_s: float) -> float:
    """How long a job still has to wait before its next attempt: one that is lost again and again is slowed down.

    The first attempt that is lost is repeated at once; of those in a row that lasted less than SHORT_S each doubles it.
    One that was not lost, but ended by who wants another one, delays nothing.
    """
    short = 0
    for attempt in reversed(job.attempts):
        if attempt.ended_s - attempt.started_s >= SHORT_S or not attempt.cause or attempt.cause[0] != "lost":
            break
        short += 1
    delay_s = min(BACK_OFF_MAX_S, 2.0 ** (short - 2)) if short > 1 else 0.0
    passed_s = now_s - job.attempts[-1].ended_s if job.attempts else 0.0
    return delay_s - passed_s if 0 <= passed_s < delay_s else 0.0  # a clock that was set back delays nothing


def capacity(nodes: Collection[Node]) -> dict[str, tuple[int, int]]:
    """What nodes have when they are empty."""
    return {node.name: (node.slots, node.mem_bytes) for node in nodes}


class Narrow(NamedTuple):
    """Nodes that can't run every job. owned: those of one uid only, since their daemon isn't root, each with that uid.

    still: no program can be moved from or to them, as far as they have told. bare: they can't mount the tree.
    """

    owned: dict[str, int]
    still: frozenset[str]
    bare: frozenset[str]

    def shuts(self, name: str, job: Job) -> bool:
        """Whether a node can't run a job."""
        spec = job.spec
        lacks = (spec.movable and name in self.still) or (spec.in_tree and name in self.bare)
        return lacks or self.owned.get(name, job.uid) != job.uid


def narrow(nodes: Collection[Node]) -> Narrow:
    """Return which of these nodes can't run every job."""
    owned, bare = {}, set()
    for node in nodes:
        lacks = node.facts.get(ms.LACKS, "").split()
        uid = node.facts.get("uid", "0")
        if uid.isdecimal() and (uid != "0" or "users" in lacks):
            owned[node.name] = int(uid)
        if "tree" in lacks:
            bare.add(node.name)
    still = frozenset(node.name for node in nodes if node.facts.get(ms.CRIU) != ms.CRIU_WORKS)
    return Narrow(owned, still, frozenset(bare))


def open_to(job: Job, free: dict[str, tuple[int, int]], shut: Narrow) -> dict[str, tuple[int, int]]:
    """Return those of the free nodes that can run a job."""
    if not shut.owned and not job.spec.movable and not job.spec.in_tree:
        return free
    return {name: room for name, room in free.items() if not shut.shuts(name, job)}


def errands(state: State, ready: Collection[str]) -> list[Placement]:
    """Return the errands to start now: on a drained node, too."""
    placements: list[Placement] = []
    under_way = {
        name: sum(bool(job.spec.errand) for job, _, _ in state.live_parts(name).values())
        for name in set(state.queue.errands.values())
    }
    for number, name in state.queue.errands.items():
        if name in ready and name in state.nodes and under_way[name] < ERRANDS_MAX:
            under_way[name] += 1
            placements.append(Placement(number, ((name, 0, 1, 0),)))
    return placements


def free_of(state: State, ready: Collection[str]) -> dict[str, tuple[int, int]]:
    """Return what is free on the nodes that may be given work: (slots, bytes)."""
    return {
        name: (node.slots - node.used_slots, node.mem_bytes - node.used_bytes)
        for name, node in sorted(state.nodes.items())
        if name in ready and node.takes_work
    }


def go_on(
    state: State, job: Job, free: dict[str, tuple[int, int]], vaults: Vaults, now_s: float
) -> tuple[tuple[str, int, int], ...] | None:
    """Place a job that may have left a checkpoint somewhere; as `place`, and None while it waits for that, too."""
    room = allowed(job, free)
    kept = keepers(state, job, vaults)
    is_patient = now_s - job.attempts[-1].ended_s < patience_s(job, kept, vaults)
    if kept:
        fits = {name: ranks_that_fit(job, slots, size) for name, (slots, size) in room.items()}
        shares = place_again(job, kept, fits)
        if shares or is_patient:
            return _in_order(shares) if shares else None
    parts = place(job, room)
    return parts if parts or is_patient else place(job, free)


class TooLong:
    """Which jobs would reach into a reservation wherever there is room: of one shape, all that last as long."""

    def __init__(self, calendar: Calendar) -> None:
        """Know none."""
        self._calendar = calendar
        self._shortest_s: dict[tuple[Shape, bool, float], float] = {}
        self.skips = 0

    def _kind(self, shape: Shape, job: Job) -> tuple[Shape, bool, float]:
        moves = self._calendar.can_move(job)
        return shape, moves, job.spec.notice_s if moves else 0.0

    def add(self, shape: Shape, job: Job) -> None:
        """A job found no room for this reason alone."""
        limit_s = job.spec.time_limit_s or inf
        kind = self._kind(shape, job)
        self._shortest_s[kind] = min(limit_s, self._shortest_s.get(kind, inf))

    def covers(self, shape: Shape, job: Job) -> bool:
        """Whether a job that has not run yet can be passed over."""
        if not self._shortest_s or job.attempts:
            return False
        shortest_s = self._shortest_s.get(self._kind(shape, job))
        is_covered = shortest_s is not None and (job.spec.time_limit_s or inf) >= shortest_s
        self.skips += is_covered
        return is_covered


def _would_fit(job: Job, room: dict[str, tuple[int, int]], shut: Narrow) -> bool:
    return place(job, open_to(job, room, shut)) is not None


def plan(
    state: State,
    ready: Collection[str],
    now_s: float,
    users: UsersConfig | None = None,
    vaults: Vaults | None = None,
    awaited: Collection[int] = (),
    moves: bool = True,
) -> list[Placement]:
    """Return the starts to make now. `ready` names the nodes that may be given work; now_s is the wall clock.

    vaults: which nodes keep something of which job. awaited: jobs for which others are making room. moves: whether
    a job can leave all its nodes.
    """
    users = users or UsersConfig()
    ready = frozenset(ready)
    free = {name: room for name, room in free_of(state, ready).items() if room[0] > 0}
    everything = capacity([node for node in state.nodes.values() if node.takes_work])
    shut = narrow([node for node in state.nodes.values() if node.takes_work])
    free_slots = sum(slots for slots, _ in free.values())
    placements = errands(state, ready)
    hopeless: set[Shape] = set()
    quotas = Quotas(state, users)
    calendar = Calendar(state, now_s, vaults, moves)
    reserved = bool(calendar)
    too_long = TooLong(calendar)
    looks = 0
    for number, shape in state.queue.walk(hopeless, quotas.closed, quotas.slots_of):
        if not free or looks >= LOOKS_MAX:
            break
        job = state.jobs[number]
        if reserved and too_long.covers(shape, job):
            if too_long.skips > SKIPS_MAX:
                break
            continue
        looks += 1
        if back_off_s(job, now_s):
            continue
        if not quotas.allow(job):
            hopeless.add(shape)
            continue
        parts = None
        if job.spec.slots_in_all <= free_slots:
            room = open_to(job, calendar.room(job, free) if reserved else free, shut)
            parts = go_on(state, job, room, vaults or {}, now_s) if job.attempts else place(job, room)
        if parts is None:
            if number in awaited:
                break
            own = calendar.of(job) if reserved else None
            if not job.attempts:
                if reserved and not own and _would_fit(job, free, shut):
                    too_long.add(shape, job)
                else:
                    hopeless.add(shape)
            is_patient = now_s - job.submitted_s <= PATIENCE_S
            if not is_patient and _would_fit(job, calendar.room(job, everything) if reserved else everything, shut):
                if not own:
                    break
                free = {name: room for name, room in free.items() if name not in own.nodes}
            continue
        placements.append(Placement(number, divide(job, parts)))
        free_slots -= job.spec.slots_in_all
        quotas.take(job)
        for name, _, places in parts:
            slots, size = free[name]
            slots, size = slots - places * job.spec.cpus, size - places * job.spec.mem_bytes
            if slots > 0:
                free[name] = (slots, size)
            else:
                del free[name]
    return placements
