"""Which queued jobs start now, and where: `plan`, a pure function of the state.

Jobs are looked at by priority, then by age. Each is placed first-fit on the nodes that are ready; one that doesn't fit
is passed over by smaller ones, but only for PATIENCE_S: from then on nothing behind it starts before it, so that a
steady stream of small jobs can't starve a wide one.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from beo.headnode.model import Job, Node
from beo.headnode.queue import Shape
from beo.headnode.state import State

LOOKS_MAX = 2_000  # jobs and hopeless shapes that one plan looks at: bounds its time
PATIENCE_S = 600.0
SHORT_S = 10.0  # an attempt that is lost sooner may be the job's (or its warden's) own doing
BACK_OFF_MAX_S = 60.0


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


def plan(state: State, ready: Collection[str], now_s: float) -> list[Placement]:
    """Return the starts to make now. `ready` names the nodes that may be given work; now_s is the wall clock."""
    ready = frozenset(ready)
    free = {
        name: (node.slots - node.used_slots, node.mem_bytes - node.used_bytes)
        for name, node in sorted(state.nodes.items())
        if name in ready and node.takes_work and node.slots > node.used_slots
    }
    everything = capacity([node for node in state.nodes.values() if node.takes_work])
    free_slots = sum(slots for slots, _ in free.values())
    placements: list[Placement] = []
    hopeless: set[Shape] = set()
    for looks, (number, shape) in enumerate(state.queue.walk(hopeless)):
        if not free or looks >= LOOKS_MAX:
            break
        job = state.jobs[number]
        if back_off_s(job, now_s):
            continue
        parts = place(job, free) if job.spec.slots_in_all <= free_slots else None
        if parts is None:
            hopeless.add(shape)
            if now_s - job.submitted_s > PATIENCE_S and place(job, everything):
                break
            continue
        placements.append(Placement(number, divide(job, parts)))
        free_slots -= job.spec.slots_in_all
        for name, _, places in parts:
            slots, size = free[name]
            slots, size = slots - places * job.spec.cpus, size - places * job.spec.mem_bytes
            if slots > 0:
                free[name] = (slots, size)
            else:
                del free[name]
    return placements
