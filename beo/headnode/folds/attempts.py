"""Attempts: how they start, how their parts end, and what the job is then."""

from __future__ import annotations

from beo import events as ev
from beo.errors import EXIT_HALTED, EXIT_UNRESTORED
from beo.headnode import bundles
from beo.headnode.known import Folds, Known
from beo.headnode.model import LEASHABLE, Attempt, Job, Move, PartState

LOSSES_MAX = 50  # a job that loses its nodes so often is itself the likely cause; then it is 'lost'
ATTEMPTS_KEPT = 8  # records of the last attempts per job; older ones are only counted
CODE_TIME_LIMIT = 124  # as timeout(1)
CODE_CANCELLED = 143  # as if ended by SIGTERM, which is what happened
CODE_LOST = 75  # EX_TEMPFAIL: not the job's own failure
CODE_FILES = 74  # EX_IOERR: of the files that it was to have, or has made
CODE_OUT_OF_MEMORY = 137  # the kernel's SIGKILL

Cause = tuple[str, int, str]  # kind, code, sentence


def _started(state: Known, event: ev.Started) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state != "queued" or event.attempt != job.attempt_number + 1:
        return
    for placed in event.parts:
        node = state.nodes.get(placed.node)
        if not node or node.state != "up" or node.incarnation != placed.incarnation:
            return
    parts = [
        PartState(
            p.node,
            p.incarnation,
            p.first_rank,
            p.ranks,
            "reserved" if job.spec.batch and n and not event.whole else "live",
            more=p.more,
        )
        for n, p in enumerate(event.parts)
    ]
    leashed = job.spec.requeue == "auto" and all(
        state.nodes[p.node].facts.get("contain") in LEASHABLE for p in event.parts
    )
    if not job.attempt or not job.attempt.moved:
        job.since = event.attempt
    attempt = Attempt(event.attempt, state.index, event.nonce, event.time_s, parts, leashed)
    job.attempts = [*job.attempts[-(ATTEMPTS_KEPT - 1) :], attempt]
    job.state, job.reason, job.move = "running", "", None
    state.changed.add(job.id)
    state.wait_no_more(job)
    state.run(job)
    for part in parts:
        state.place(job, attempt, part)


def _part_ended(state: Known, event: ev.PartEnded) -> None:
    found = _find_part(state, event.job, event.attempt, event.node)
    if not found:
        return
    job, attempt, part = found
    part.result = event.result
    told, ranks = len(event.result.ranks), part.ranks
    if job.spec.batch:  # its script runs on the first node; the others have a warden for its steps
        ranks = 1 if part is attempt.parts[0] else 0
    cause = _cause(event.result, event.node)
    if not event.result.reason and told < ranks:  # a job is done when every rank was seen to end well
        cause = ("lost", CODE_LOST, f"{event.node} told the end of {told} ranks of {ranks}")
    _end_part(state, job, attempt, part, "ended", cause, event.time_s)


def _part_gone(state: Known, event: ev.PartGone) -> None:
    found = _find_part(state, event.job, event.attempt, event.node)
    if found:
        _lose(state, *found, f"{event.node}: {event.reason}", event.time_s)


def lose_part(state: Known, job: Job, attempt: Attempt, part: PartState, reason: str, time_s: float) -> None:
    """Count a part as lost, whether ranks of it ran or it was only reserved."""
    if part.state == "live":
        _lose(state, job, attempt, part, reason, time_s)
    elif part.state == "reserved" and not attempt.over:  # a batch job's further node: the allocation is broken
        _blame(attempt, ("lost", CODE_LOST, reason))
        job.state = "ending"
        state.changed.add(job.id)


def _find_part(state: Known, job_id: int, number: int, node: str) -> tuple[Job, Attempt, PartState] | None:
    found = state.live_parts(node).get((job_id, number))
    return found if found and found[2].state == "live" else None


def _lose(state: Known, job: Job, attempt: Attempt, part: PartState, reason: str, time_s: float) -> None:
    _end_part(state, job, attempt, part, "gone", ("lost", CODE_LOST, reason), time_s)


def _end_part(
    state: Known, job: Job, attempt: Attempt, part: PartState, how: str, cause: Cause | None, time_s: float
) -> None:
    part.state = how
    state.free(job, attempt, part)
    if cause:
        _blame(attempt, cause)
    state.changed.add(job.id)
    if not attempt.over:
        if attempt.cause:
            job.state = "ending"
        return
    for other in attempt.parts:
        if other.state == "reserved":
            other.state = "ended"
            state.free(job, attempt, other)
    _conclude(state, job, attempt, time_s)


def _conclude(state: Known, job: Job, attempt: Attempt, time_s: float) -> None:
    attempt.ended_s = time_s
    state.run_no_more(job)
    kind, code, text = attempt.cause or _verdict(attempt)
    attempt.outcome = text or kind
    job.losses += kind == "lost"
    is_unrestored = attempt.number > 1 and kind in ("", "rank") and code == EXIT_UNRESTORED
    move, job.move = job.move, None  # one that isn't done is off: what the attempt leaves behind is where it was
    if job.requeue and not job.cancel:
        attempt.outcome = job.reason = job.requeue
        job.requeue = ""
        state.wait(job)
    elif job.cancel:
        job.end("cancelled", CODE_CANCELLED, job.cancel, "beo", time_s)
    elif reason := _goes_on(job, attempt, move, kind, code):
        attempt.outcome = job.reason = reason
        attempt.moved = True
        if move and move.attempt == attempt.number:
            attempt.left, job.move = move.leave, move
        state.wait(job)
    elif is_unrestored and _has_copies(job, attempt) and job.losses < LOSSES_MAX:
        attempt.outcome = job.reason = "its checkpoint was lost: it goes on with the copy at the head"
        attempt.void = True
        job.losses += 1
        state.wait(job)
    elif kind != "lost":
        text = "its checkpoint is lost, and no whole copy of it is at the head" if is_unrestored else text
        by = "beo" if kind in ("time limit", "staging", "collecting") else "job"
        job.end("failed" if code else "done", code, text, by, time_s)
    elif job.spec.requeue == "never" or job.losses >= LOSSES_MAX:
        job.end("lost", CODE_LOST, text, "beo", time_s)
    else:
        job.reason = f"attempt {attempt.number} was lost ({text})"
        state.wait(job)


def _has_copies(job: Job, attempt: Attempt) -> bool:
    """Whether an attempt could begin with copies at the head, and this one hasn't begun with the same in vain."""
    whole = bundles.complete(job.copies)
    before = next((one for one in job.attempts if one.number == attempt.number - 1), None)
    return bool(whole) and not (before and before.void and whole[0].attempt < attempt.number)


def _goes_on(job: Job, attempt: Attempt, move: Move | None, kind: str, code: int) -> str:
    """Why a job goes on as another attempt, though nothing was lost; "": it doesn't.

    A program that takes checkpoints with beo says so by its exit code. One that has its own gets a signal, and goes on
    unless it says that it is done.
    """
    if kind not in ("", "rank", "time limit"):
        return ""
    has_halted = code == EXIT_HALTED or (job.spec.signal and code)
    if has_halted and move and move.attempt == attempt.number:
        return move.reason
    if has_halted and job.spec.goes_on and (kind == "time limit" or code == EXIT_HALTED):
        return "its time was up: it goes on"
    return ""


def _blame(attempt: Attempt, cause: Cause) -> None:
    """Note what ended an attempt: the first thing, or a loss, by which MPI ends other ranks before a lease is over."""
    if not attempt.cause or (cause[0], attempt.cause[0]) == ("lost", "rank"):
        attempt.cause = cause


def _cause(result: ev.PartResult, node: str) -> Cause | None:
    """Say what a part's end means for the attempt, or None: nothing by itself."""
    if result.reason in ("", "peer", "ended"):
        return None
    if result.reason in ("silence", "lost"):
        return ("lost", CODE_LOST, result.note or f"{node}: {result.reason}")
    if result.reason == "time limit":
        return ("time limit", CODE_TIME_LIMIT, result.note or "time limit")
    if result.reason in ("staging", "collecting"):
        return (result.reason, CODE_FILES, result.note or f"{node}: {result.reason}")
    if result.reason == "out of memory":
        return ("out of memory", CODE_OUT_OF_MEMORY, result.note or f"out of memory on {node}")
    statuses = {r.rank: r.status for r in result.steps} | {r.rank: r.status for r in result.ranks}
    status = statuses.get(result.culprit) or 1
    return ("rank", status, result.note or f"rank {result.culprit} ended with {status}")


def _verdict(attempt: Attempt) -> Cause:
    """The outcome of an attempt that nothing ended: the lowest failed rank's status, or 0. Spawned ones count too."""
    results = [part.result for part in attempt.parts if part.result]
    failed = [(r.rank, r.status) for result in results for r in result.ranks if r.status]
    failed += [(r.rank, r.status) for result in results for r in result.steps if r.status and r.spawned]
    if not failed:
        return ("", 0, "")
    rank, status = min(failed)
    ranks = sum(part.ranks for part in attempt.parts)
    ranks += any(r.spawned for result in results for r in result.steps)
    return ("", status, f"rank {rank} exited with {status}" if ranks > 1 else f"exit code {status}")


FOLDS: Folds = {
    ev.Started: _started,
    ev.PartEnded: _part_ended,
    ev.PartGone: _part_gone,
}
