"""When a running program takes a checkpoint, and how often its ranks agree whether to. Pure; times are seconds."""

from __future__ import annotations

import math

LEAST_S = 1.0  # between two checkpoints: failures that need more are none that a checkpoint helps against
MOST_S = 3600.0  # nobody wants to lose more, however seldom that is
COST_PART_MAX = 0.05  # of the time, where failures are so frequent that more would pay
MTBF_S = 86_400.0  # of one node that nobody has measured

AGREEMENT_PART_MAX = 0.001  # of the time, for ranks to ask each other
ANSWER_S_MAX = 1.0  # a drain or a signal isn't kept waiting longer (or than a step takes)


def interval_s(cost_s: float, mtbf_s: float) -> float:
    """Return how long to compute between checkpoints that take `cost_s` each, where a failure comes each `mtbf_s`.

    The optimum of J. T. Daly (A higher order estimate of the optimum checkpoint interval, FGCS 22, 2006), whose first
    term is Young's; within limits.
    """
    if cost_s >= 2 * mtbf_s:
        best_s = mtbf_s
    else:
        part = cost_s / (2 * mtbf_s)
        best_s = math.sqrt(2 * cost_s * mtbf_s) * (1 + math.sqrt(part) / 3 + part / 9) - cost_s
    return max(LEAST_S, min(best_s, MOST_S), cost_s / COST_PART_MAX)


def steps_between(before: int, cost_s: float, step_s: float) -> int:
    """Return at every how many steps to agree, if that costs `cost_s`, a step takes `step_s`, and it was `before`.

    It grows slowly and falls at once, so one odd measurement keeps nobody waiting.
    """
    step_s = max(step_s, 1e-9)
    cheap = math.ceil(cost_s / (AGREEMENT_PART_MAX * step_s))
    soon = math.floor(ANSWER_S_MAX / step_s)
    return max(1, min(cheap, soon, 2 * before))
