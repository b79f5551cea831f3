"""The state as clients see it: rows and details."""

from __future__ import annotations

import msgspec

from beo import messages as ms
from beo import nodeset
from beo.headnode.explain import Outlook
from beo.headnode.model import ENDED, Job, Node
from beo.headnode.state import State


def progress(job: Job) -> str:
    """What a follower compares: changes whenever there is something new to say about a job."""
    return f"{job.state}/{job.attempt_number}"


def job_row(job: Job, outlook: Outlook) -> ms.JobView:
    """One row of `beo queue`."""
    attempt = job.attempt
    shown = attempt if attempt and job.state != "queued" else None
    reasons = outlook.why(job)
    return ms.JobView(
        id=job.id,
        name=job.spec.title,
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


def detail(job: Job, outlook: Outlook, private: bool) -> ms.JobDetail:
    """Everything about a job; environment and script only for its owner and admins (`private`)."""
    spec = job.spec if private else msgspec.structs.replace(job.spec, env={}, script="")
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
    return ms.JobDetail(job_row(job, outlook), spec, job.uid, attempts, tuple(outlook.why(job)))


def node_row(state: State, node: Node, silent_s: float, ready: bool) -> ms.NodeView:
    """One row of `beo nodes`; a node that is up but not ready is shown as silent."""
    shown = node.state if node.state != "up" or ready else "silent"
    jobs = tuple(sorted({job for job, _ in state.live_parts(node.name)}))
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
    )
