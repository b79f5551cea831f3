"""What the head knows of checkpoints in the workers' memory: until when they are kept, and what failures to expect.

Pure.
"""

from __future__ import annotations

from beo.headnode.model import ENDED
from beo.headnode.state import State

KEEP_FAILED_S = 3_600.0  # 'beo requeue' goes on with the checkpoint of a job that failed, was lost or ran out of time
NODE_MTBF_S = 30 * 86_400.0  # what is assumed of a node until the cluster has lost some: a PC in an office


def is_over(state: State, number: int, now_s: float) -> bool:
    """Whether what a vault keeps of a job is of no more use."""
    job = state.jobs.get(number)
    if not job:
        return True
    if job.state in ("failed", "lost"):
        return now_s - job.ended_s > KEEP_FAILED_S
    return job.state in ENDED


def mtbf_s(state: State, nodes: int, now_s: float) -> float:
    """How long so many nodes run without losing one, from what the cluster has seen since it began.

    The assumption counts as one node's loss that was seen, so that the first real one doesn't decide all.
    """
    watched_s = NODE_MTBF_S + len(state.nodes) * max(0.0, now_s - state.born_s)
    return watched_s / (1 + state.lost) / max(1, nodes)
