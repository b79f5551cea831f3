"""What the head knows of checkpoints in the workers' memory: until when they are kept, and what failures to expect.

Pure.
"""

from __future__ import annotations

import re

from beo import messages as ms
from beo.headnode import bundles
from beo.headnode.again import Vaults
from beo.headnode.model import ENDED, Attempt, Job
from beo.headnode.state import State

ASKS = ("checkpoint", "scrub")  # what ranks may be asked to do, and go on
KEEP_FAILED_S = 3_600.0  # 'beo requeue' goes on with the checkpoint of a job that failed, was lost or ran out of time
LEFT_S = 60.0  # a job that has run elsewhere for so long has no more use for what it left on a node
NODE_MTBF_S = 30 * 86_400.0  # what is assumed of a node until the cluster has lost some: a PC in an office


def is_over(state: State, number: int, now_s: float, node: str = "") -> bool:
    """Whether what a vault keeps of a job is of no more use; `node`: in that node's."""
    job = state.jobs.get(number)
    if not job:
        return True
    last = job.attempt
    if node and last and job.state not in ENDED:
        here = next((one for one in reversed(job.attempts) if any(part.node == node for part in one.parts)), None)
        if here and here.left_all:
            return True
        return here is not last and job.state == "running" and now_s - last.started_s > LEFT_S
    if job.state in ("failed", "lost"):
        return now_s - job.ended_s > KEEP_FAILED_S
    return job.state in ENDED


def is_news(state: State, told: ms.VaultCopied) -> bool:
    """Whether a node tells of a copy that isn't on record, of a job that is."""
    job = state.jobs.get(told.job)
    if not job or not re.fullmatch(r"[0-9a-f]{64}", told.bundle):
        return False
    if any(len(name) > ms.CHECKPOINT_NAME_MAX for name, _, _ in told.checkpoints):
        return False
    return all((c.attempt, c.node, c.bundle) != (told.attempt, told.node, told.bundle) for c in job.copies)


def copies(job: Job, attempt: Attempt, told: Vaults) -> tuple[tuple[tuple[str, str], ...], bool]:
    """Return which node of an attempt is to begin with which copy from the tree, as (node, bundle), and whether anew.

    told: what vaults keep, of the nodes that have told. Where one of the attempt's keeps something there are none: what
    is missing is made again from the others' memory, and nothing is read from the head. Anew: what they keep is to go
    first, since the ranks of the attempt before have said that they can't go on from that, or have left all of it.
    """
    if job.spec.migratable:
        return _of_ranks(job, attempt), False
    nodes = [part.node for part in attempt.parts]
    before = next((one for one in reversed(job.attempts) if one.number < attempt.number), None)
    anew = bool(before and (before.void or before.left_all))
    stayed = {part.node for part in before.parts} - set(before.left) if before else set()
    if not anew and any(node in stayed and job.id in told.get(node, ()) for node in nodes):
        return (), False
    found = sorted((copy.node, copy.bundle) for copy in bundles.complete(job.copies))
    return tuple((nodes[n % len(nodes)], bundle) for n, (_, bundle) in enumerate(found)), anew


def _of_ranks(job: Job, attempt: Attempt) -> tuple[tuple[str, str], ...]:
    """Return what each node of an attempt gets of those of the one before, so that it has its ranks; all, or none."""
    before = next((one for one in reversed(job.attempts) if one.number < attempt.number), None)
    if not before or not before.moved:  # what it has left isn't all, and then it is nothing
        return ()
    kept = {copy.node: copy.bundle for copy in job.copies if copy.attempt == before.number}
    if any(part.node not in kept for part in before.parts):
        return ()
    return tuple(
        (new.node, kept[old.node])
        for new in attempt.parts
        for old in before.parts
        if max(new.first_rank, old.first_rank) < min(new.first_rank + new.ranks, old.first_rank + old.ranks)
    )


def mtbf_s(state: State, nodes: int, now_s: float) -> float:
    """How long so many nodes run without losing one, from what the cluster has seen since it began.

    The assumption counts as one node's loss that was seen, so that the first real one doesn't decide all.
    """
    watched_s = NODE_MTBF_S + len(state.nodes) * max(0.0, now_s - state.born_s)
    return watched_s / (1 + state.lost) / max(1, nodes)
