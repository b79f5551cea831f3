"""Where the next attempt of a job goes that may have left a checkpoint in its nodes' memories. Pure.

A checkpoint lies in the *vaults* of the nodes on which the last attempt ran, and what one lost node had is made again
from what the others have. So the next attempt gets those nodes that still keep something of the job, each for as many
ranks as before, and a spare for each that is missing. Where one of them is taken or silent at the moment the job waits
for it, but not for ever: a job that computes something again is better than one that never ends.

An attempt that ended before it had taken a checkpoint of its own has nothing of worth on the nodes that were new to it,
and those that it had left still have the last one: then they are gone back to.
"""

from __future__ import annotations

from collections.abc import Mapping

from beo import messages as ms
from beo.headnode import bundles
from beo.headnode.model import Job, Node
from beo.headnode.state import State

KEEPERS_S = 60.0  # for so long a job waits for nodes that may keep its checkpoint, or do, and so does the tree
ALONE_S = 3_600.0  # and for so long where they alone have it

PREEMPT = "preempt"  # why a job was asked to move: to make room, so it may go back

Vaults = Mapping[str, Mapping[int, ms.Kept]]  # node -> job -> what its vault keeps of it; absent: it hasn't told yet
Room = Mapping[str, tuple[int, int]]  # node -> free (slots, bytes)


def keepers(state: State, job: Job, vaults: Vaults) -> dict[str, int]:
    """Return the nodes that may keep a checkpoint of this job, with how many of its places each had."""
    attempt = job.attempt
    if not attempt or attempt.void or job.spec.errand:
        return {}
    last = {
        part.node: part.places
        for part in attempt.parts
        if part.node not in attempt.left and _may_keep(state.nodes.get(part.node), job.id, vaults) and part.places
    }
    return _holders(state, job, last, vaults)


def _holders(state: State, job: Job, last: dict[str, int], vaults: Vaults) -> dict[str, int]:
    """Return the keepers of the last attempt, with others in the place of those that have less than these."""
    taken_s = {name: kept[job.id].newest_s for name, kept in vaults.items() if job.id in kept}
    newest_s = max(taken_s.values(), default=0.0)
    places = {part.node: part.places for attempt in job.attempts for part in attempt.parts if part.places}
    best = [name for name in sorted(places) if newest_s and taken_s.get(name) == newest_s]
    away = {*last, *(job.attempts[-1].left)}
    others = [name for name in best if name not in away and _may_keep(state.nodes.get(name), job.id, vaults)]
    if not others:
        return last
    found = {name: more for name, more in last.items() if taken_s.get(name, newest_s) == newest_s}
    for name in others:
        if sum(found.values()) + places[name] <= job.spec.places:
            found[name] = places[name]
    return found


def _may_keep(node: Node | None, job: int, vaults: Vaults) -> bool:
    if node is None or not node.takes_work:
        return False
    told = vaults.get(node.name)
    return job in told if told is not None else ms.VAULT in node.facts


def patience_s(job: Job, kept: Mapping[str, int], vaults: Vaults) -> float:
    """How long a job waits for its keepers before it goes anywhere."""
    is_alone = any(job.id in vaults.get(name, ()) for name in kept) and not bundles.complete(job.copies)
    return ALONE_S if is_alone else KEEPERS_S


def allowed(job: Job, free: Room) -> dict[str, tuple[int, int]]:
    """Return those of the free nodes on which a job may go on that was asked to move."""
    move = job.move
    if not move or move.why == PREEMPT:
        return dict(free)
    return {name: room for name, room in free.items() if name not in move.leave and (not move.to or name in move.to)}


def place_again(job: Job, kept: Mapping[str, int], fits: Mapping[str, int]) -> dict[str, int] | None:
    """Return how many ranks go to which node, or None: not now.

    kept: of `keepers`, not empty. fits: how many ranks of the job each node has room for.
    """
    if any(fits.get(name, 0) < places for name, places in kept.items()):
        return None
    shares = dict(kept)
    spares = {name: room for name, room in fits.items() if name not in kept}
    missing = sorted(_missing(job, kept), reverse=True)
    for places in missing:
        able = sorted((room, name) for name, room in spares.items() if room >= places)
        if not able:
            break
        if sum(shares.values()) + places > job.spec.places:  # others than the last attempt's are gone back to
            continue
        shares[able[0][1]] = places
        del spares[able[0][1]]
    left = job.spec.places - sum(shares.values())
    if job.spec.nodes:
        return shares if not left and len(shares) == job.spec.nodes else None
    for name in [*(n for _, n in sorted(((r, n) for n, r in spares.items()), reverse=True)), *sorted(kept)]:
        more = min(left, fits[name] - shares.get(name, 0))
        if more > 0:
            shares[name] = shares.get(name, 0) + more
            left -= more
    return shares if not left else None


def _missing(job: Job, kept: Mapping[str, int]) -> list[int]:
    """The places of those nodes of the last attempt that are to be replaced."""
    attempt = job.attempt
    return [part.places for part in attempt.parts if part.node not in kept and part.places] if attempt else []
