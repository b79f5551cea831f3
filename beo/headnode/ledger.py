"""What ended jobs took: a page at a time, the newest first, so that no question takes the head long. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from beo import messages as ms
from beo import nodeset
from beo.errors import UsageError
from beo.headnode.decide import User, pick
from beo.headnode.model import ENDED, Job
from beo.headnode.state import State

PAGE_MAX = 1_000  # rows in one answer
SCAN_MAX = 20_000  # jobs looked at for one answer: about 10 ms


def page(state: State, user: User, wish: ms.ListHistory, name_of: Callable[[Job], str]) -> ms.HistoryAre:
    """Return the newest jobs below `wish.before` that are meant. name_of: what this user may know a job by."""
    foreign = [word for word in wish.states if word not in ENDED]
    if foreign:
        raise UsageError(f"no job ends as {foreign[0]!r}", "", f"choose from {', '.join(sorted(ENDED))}")
    ids = [job.id for job in pick(state, user, wish.select)] if wish.select else list(state.jobs)
    at = bisect_left(ids, wish.before) if wish.before > 0 else len(ids)
    limit = max(1, min(wish.limit, PAGE_MAX))
    states = frozenset(wish.states) or ENDED
    rows: list[ms.JobRecord] = []
    low = max(0, at - SCAN_MAX)
    while at > low and len(rows) < limit:
        at -= 1
        job = state.jobs[ids[at]]
        if (
            job.state in states
            and wish.user in ("", job.user)
            and job.ended_s >= wish.since_s
            and (not wish.until_s or job.ended_s < wish.until_s)
        ):
            rows.append(record(job, name_of(job), user.may(job)))
    return ms.HistoryAre(tuple(rows), ids[at] if at else 0)


def record(job: Job, name: str, private: bool) -> ms.JobRecord:
    """Return what a job took, over the attempts that are kept; in whose words it ended only where `private`."""
    results = [result for attempt in job.attempts for part in attempt.parts if part.result for result in [part.result]]
    ranks = [rank for result in results for rank in result.ranks]
    first = job.attempts[0].started_s if job.attempts and job.attempts[0].number == 1 else 0.0
    last = job.attempts[-1] if job.attempts else None
    return ms.JobRecord(
        id=job.id,
        name=name,
        user=job.user,
        state=job.state,
        exit_code=job.exit_code,
        code_by=job.code_by,
        submitted_s=job.submitted_s,
        started_s=last.started_s if last else 0.0,
        ended_s=job.ended_s,
        waited_s=max(0.0, (first or job.ended_s) - job.submitted_s),
        ran_s=sum(max(0.0, attempt.ended_s - attempt.started_s) for attempt in job.attempts if attempt.ended_s),
        cpu_s=round(sum(rank.user_s + rank.system_s for rank in ranks), 6),
        peak_bytes=max((rank.peak_bytes for rank in ranks), default=0),
        ranks=job.spec.ranks,
        slots=job.spec.slots_in_all,
        nodes=nodeset.fold([part.node for part in last.parts]) if last else "",
        attempts=job.attempt_number,
        reason=job.reason if private else "",
    )
