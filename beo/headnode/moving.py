"""Who is to go on elsewhere: what a drain and `beo migrate` ask of jobs. Pure.

Nothing is ended here. A job is *asked* to move: its ranks are told to take a checkpoint at their next safe point and to
end with `EXIT_HALTED`, and only then is it queued again (state.py). One whose program knows nothing of checkpoints goes
on as if nothing had been said.
"""

from __future__ import annotations

from collections.abc import Collection

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.errors import Conflict, NotFound
from beo.headnode.decide import User, find
from beo.headnode.model import Job
from beo.headnode.schedule import capacity, narrow, open_to, place
from beo.headnode.state import State


def drain(state: State, user: User, names: Collection[str], now_s: float) -> list[ev.Event]:
    """Ask what runs on these nodes, which are being drained, to go on elsewhere."""
    jobs = {job.id: job for name in names for job, _, _ in state.live_parts(name).values()}
    found: list[ev.Event] = []
    for _, job in sorted(jobs.items()):
        attempt = job.attempt
        if not attempt or job.state != "running" or job.spec.errand:
            continue
        leave = tuple(part.node for part in attempt.parts if part.node in names or state.nodes[part.node].drain)
        if not job.move or not set(leave) <= set(job.move.leave):
            found.append(ev.MoveRequested(job.id, attempt.number, leave, (), "drain", user.name, now_s))
    return found


def migrate(state: State, user: User, wish: ms.Migrate, now_s: float) -> tuple[list[ev.Event], list[Job]]:
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
            raise Conflict(f"{name} is {shown}", "no job can go on there", "see 'beo nodes'")
    return tuple(names)


def _check_room(state: State, job: Job, leave: Collection[str], to: Collection[str]) -> None:
    """Refuse what could never be placed; whether there is room just now shows when it is queued."""
    up = [n for n in state.nodes.values() if n.takes_work and n.name not in leave and (not to or n.name in to)]
    if place(job, open_to(job.uid, capacity(up), narrow(up))) is None:
        slots = sum(node.slots for node in up)
        where = f"{nodeset.fold(to)} has" if to else "the other nodes have"
        why = f"{where} {slots} slots, and it needs {job.spec.slots_in_all}"
        raise Conflict(f"job {job.id} can't move", why, "name more nodes, or wait for some")
