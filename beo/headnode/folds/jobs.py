"""Jobs, and what is wished of them."""

from __future__ import annotations

from itertools import islice

import msgspec

from beo import events as ev
from beo.headnode import bundles
from beo.headnode.folds.attempts import CODE_CANCELLED
from beo.headnode.known import Folds, Known
from beo.headnode.model import ENDED, WAITING, Job, Move, Signal, Submission, VaultCopy

SIGNALS_KEPT = 32  # per job: to be delivered again, and to recognise a repeated request
KEYS_KEEP_S = 7 * 86_400.0  # a submission key is remembered for so long, and as long as its job's record
KEYS_MAX = 1_000_000  # about 300 MB; beyond, the oldest are forgotten, and nothing as old as they is taken any more
KEYS_DROPPED = 10_000  # at a time: forgetting them one by one would search the table's emptied front each time


def _submitted(state: Known, event: ev.Submitted) -> None:
    if event.job != state.next_job or event.key in state.keys:
        return
    state.next_job += 1
    job = Job(event.job, event.key, event.user, event.uid, event.gid, event.groups, event.spec, event.time_s)
    state.share_environment(job)
    state.jobs[job.id] = job
    state.keys[event.key] = Submission(job.id, event.time_s)
    if len(state.keys) > KEYS_MAX:
        _drop_keys(state, list(islice(state.keys, KEYS_DROPPED)))
    if event.hold:
        job.hold, job.held_by = "owner", job.user
    state.changed.add(job.id)
    state.wait(job)


def _drop_keys(state: Known, keys: list[str]) -> None:
    for key in keys:
        state.keys_from_s = max(state.keys_from_s, state.keys.pop(key).time_s)


def _cancel_requested(state: Known, event: ev.CancelRequested) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state in ENDED or job.cancel:
        return
    job.cancel = event.reason
    state.changed.add(job.id)
    if job.state in WAITING:
        state.wait_no_more(job)
        job.end("cancelled", CODE_CANCELLED, event.reason, "beo", event.time_s)
    else:
        job.state = "ending"


def _job_held(state: Known, event: ev.JobHeld) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state not in WAITING or job.hold == "admin":
        return
    state.wait_no_more(job)
    job.hold, job.held_by = event.by, event.user
    state.wait(job)
    state.changed.add(job.id)


def _job_released(state: Known, event: ev.JobReleased) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state != "held":
        return
    state.wait_no_more(job)
    job.hold = job.held_by = ""
    state.wait(job)
    state.changed.add(job.id)


def _priority_set(state: Known, event: ev.PrioritySet) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state not in WAITING:
        return
    state.wait_no_more(job)
    job.spec = msgspec.structs.replace(job.spec, priority=event.priority)
    state.wait(job)
    state.changed.add(job.id)


def _requeue_requested(state: Known, event: ev.RequeueRequested) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state in WAITING or job.attempt_number != event.attempt or job.requeue:
        return
    if job.state not in ENDED and job.cancel:
        return
    if event.hold:
        job.hold, job.held_by = event.hold, event.user
    state.changed.add(job.id)
    reason = event.reason or f"requeued by {event.user}"
    if job.state not in ENDED:
        job.state, job.requeue = "ending", reason
        return
    if job.state == "done":
        job.copies = []  # of its way there: who has ended well begins anew
    job.cancel, job.reason, job.exit_code, job.code_by, job.ended_s = "", reason, -1, "job", 0.0
    state.wait(job)


def _move_requested(state: Known, event: ev.MoveRequested) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state != "running" or job.attempt_number != event.attempt:
        return
    if event.for_job:
        state.making_room[job.id] = event.for_job, event.time_s
    job.move = Move(event.attempt, event.leave, event.to, event.why, event.user, event.for_job, event.time_s)
    state.changed.add(job.id)


def _signal_requested(state: Known, event: ev.SignalRequested) -> None:
    job = state.jobs.get(event.job)
    if not job or job.state in ENDED or event.attempt != job.attempt_number:
        return
    if event.serial != job.signal_serial + 1:
        return
    asked = Signal(event.serial, event.attempt, event.signal, event.key)
    job.signals = [*job.signals[-(SIGNALS_KEPT - 1) :], asked]
    state.changed.add(job.id)


def _process_signalled(state: Known, event: ev.ProcessSignalled) -> None:
    """Nothing changes: the entry says who did it."""


def _vault_copied(state: Known, event: ev.VaultCopied) -> None:
    job = state.jobs.get(event.job)
    attempt = next((one for one in job.attempts if one.number == event.attempt), None) if job else None
    if not job or not attempt or not any(part.node == event.node for part in attempt.parts):
        return
    where = event.attempt, len(attempt.parts), event.node
    one = VaultCopy(*where, event.bundle, event.size_bytes, event.time_s, event.checkpoints)
    job.copies = bundles.kept([*job.copies, one])
    state.changed.add(job.id)


def _forgotten(state: Known, event: ev.Forgotten) -> None:
    for number in event.jobs:
        job = state.jobs.get(number)
        if job and job.state in ENDED:
            del state.jobs[number]
    stale = []
    for key, submission in state.keys.items():
        if submission.job in state.jobs or submission.time_s > event.time_s - KEYS_KEEP_S:
            break  # what stands behind it may go another time: there is a limit on them all
        stale.append(key)
    _drop_keys(state, stale)


FOLDS: Folds = {
    ev.Submitted: _submitted,
    ev.CancelRequested: _cancel_requested,
    ev.JobHeld: _job_held,
    ev.JobReleased: _job_released,
    ev.PrioritySet: _priority_set,
    ev.RequeueRequested: _requeue_requested,
    ev.MoveRequested: _move_requested,
    ev.SignalRequested: _signal_requested,
    ev.ProcessSignalled: _process_signalled,
    ev.VaultCopied: _vault_copied,
    ev.Forgotten: _forgotten,
}
