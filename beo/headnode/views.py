"""The state as clients see it: rows and details."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from beo import events as ev
from beo import messages as ms
from beo import nodeset
from beo.headnode import bundles
from beo.headnode.decide import User
from beo.headnode.explain import Outlook, describe
from beo.headnode.model import ENDED, WAITING, Authorized, Holding, Job, Node
from beo.headnode.schedule import limits_of
from beo.headnode.state import State
from beo.settings import UsersConfig
from beo.spec import JobSpec

Sight = Literal["own", "open", "private"]  # of a job: one's own (or an admin's), another's, another's without its name
OPEN_EVENTS = frozenset({"Started"})  # kinds of which everybody may read the sentence, whosever job it is


def progress(job: Job) -> str:
    """What a follower compares: changes whenever there is something new to say about a job."""
    return f"{job.state}/{job.attempt_number}"


def name_of(job: Job, sight: Sight) -> str:
    """What a job is called to somebody who sees that much of it."""
    return "-" if sight == "private" else job.spec.title


def job_row(job: Job, outlook: Outlook, sight: Sight) -> ms.JobView:
    """One row of `beo queue`. Of others' jobs it tells why they wait, not how they ended: that quotes them."""
    attempt = job.attempt
    shown = attempt if attempt and job.state not in WAITING else None
    reasons = outlook.why(job) if sight == "own" or job.state in WAITING else ()
    return ms.JobView(
        id=job.id,
        name=name_of(job, sight),
        user=job.user,
        state=job.state,
        ranks=job.spec.ranks,
        nodes=nodeset.fold([part.node for part in shown.parts]) if shown else "",
        attempt=job.attempt_number,
        submitted_s=job.submitted_s,
        started_s=shown.started_s if shown else 0.0,
        ended_s=job.ended_s,
        exit_code=job.exit_code if job.state in ENDED else -1,
        reason=reasons[0] if reasons else "",
        priority=job.spec.priority,
        code_by=job.code_by,
    )


def detail(job: Job, outlook: Outlook, sight: Sight, kept: tuple[tuple[str, int], ...] = ()) -> ms.JobDetail:
    """Everything about a job; of another's job, what its row shows and what it asked of the cluster.

    kept: what nodes keep of it in their memory.
    """
    row = job_row(job, outlook, sight)
    if sight != "own":
        return ms.JobDetail(row, _asked_for(job, row.name), job.uid, (), (row.reason,) if row.reason else ())
    attempts = tuple(
        ms.AttemptView(
            number=attempt.number,
            started_s=attempt.started_s,
            ended_s=attempt.ended_s,
            outcome=attempt.outcome,
            parts=tuple((part.node, part.first_rank, part.ranks, part.state) for part in attempt.parts),
            results=tuple(part.result for part in attempt.parts if part.result),
        )
        for attempt in job.attempts
    )
    whole = bundles.complete(job.copies)
    copies = tuple((copy.node, copy.attempt, copy.bundle, copy.size_bytes, copy.time_s) for copy in whole)
    return ms.JobDetail(row, job.spec, job.uid, attempts, tuple(outlook.why(job)), kept, copies, job.since)


def _asked_for(job: Job, name: str) -> JobSpec:
    spec = job.spec
    return JobSpec(
        argv=(),
        cwd="",
        name=name,
        ranks=spec.ranks,
        nodes=spec.nodes,
        cpus=spec.cpus,
        mem_bytes=spec.mem_bytes,
        time_limit_s=spec.time_limit_s,
        requeue=spec.requeue,
        priority=spec.priority,
        batch=spec.batch,
    )


def names(event: ev.Event, job: int, node: str) -> bool:
    """Whether an event is about a job (0: any) and about a node (empty: any); an attempt is about all its nodes."""
    if job and job != getattr(event, "job", 0) and job not in getattr(event, "jobs", ()):
        return False
    parts = event.parts if isinstance(event, ev.Started) else ()
    return not node or node == getattr(event, "node", "") or any(part.node == node for part in parts)


def event_row(index: int, epoch: int, event: ev.Event, state: State, user: User) -> ms.EventView:
    """One line of `beo events`. Of others' jobs it tells that something happened, and not in which words."""
    kind, job, node, text = describe(event)
    if job and not user.may_see(state.jobs.get(job)) and kind not in OPEN_EVENTS:
        text = ""
    return ms.EventView(index, epoch, event.time_s, kind, job, node, text)


def user_rows(state: State, users: UsersConfig) -> tuple[ms.UserView, ...]:
    """The rows of `beo users`: everybody with a key, and those who are barred."""
    found: dict[str, list[tuple[str, Authorized]]] = {}
    for key, known in state.authorized.items():
        if known.role != "worker":
            found.setdefault(known.user, []).append((key, known))
    rows = []
    for name in sorted({*found, *state.barred})[: ms.LIST_LENGTH_MAX]:
        keys = found.get(name, [])
        held, limits = state.holdings.get(name, Holding()), limits_of(state, users, name)
        rows.append(
            ms.UserView(
                name=name,
                role="barred" if name in state.barred else keys[0][1].role,
                uid=keys[0][1].uid if keys else -1,
                keys=tuple(sorted(key for key, _ in keys)),
                queued=held.waiting,
                running=held.jobs,
                slots=held.slots,
                running_max=limits.running_max,
                slots_max=limits.slots_max,
                queued_max=limits.queued_max,
            )
        )
    return tuple(rows)


def node_row(
    state: State,
    node: Node,
    silent_s: float,
    ready: bool,
    clock_s: float = 0.0,
    findings: tuple[ms.Finding, ...] = (),
    kept: Collection[int] = (),
    reserved: str = "",
) -> ms.NodeView:
    """One row of `beo nodes`; a node that is up is shown as silent if it isn't ready, and else by its drain.

    kept: jobs of which its vault keeps something. reserved: for whom it is.
    """
    jobs = tuple(sorted({job for job, _ in state.live_parts(node.name)}))
    shown = node.state if node.state != "up" or ready else "silent"
    if shown == "up" and node.drain:
        shown = "draining" if jobs else "drained"
    return ms.NodeView(
        node.name,
        shown,
        node.slots,
        node.used_slots,
        node.mem_bytes,
        jobs,
        node.address,
        node.facts,
        round(silent_s, 3),
        node.incarnation,
        f"by {node.drain.user}" + (f": {node.drain.reason}" if node.drain.reason else "") if node.drain else "",
        _why(node, shown, silent_s),
        round(clock_s, 3),
        findings,
        tuple(job for job in jobs if state.jobs[job].move and (job in kept or state.jobs[job].spec.movable)),
        reserved,
    )


def _why(node: Node, shown: str, silent_s: float) -> str:
    """Why a node gets no work, where that isn't an operator's wish."""
    if shown == "lost":
        return node.lost
    if shown == "silent":
        return f"no word of it for {silent_s:.1f} s"
    return ""
