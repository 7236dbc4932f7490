"""Steps to solve, where some runs never did."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hybridlm.ablate.statistics.levels import level_of
from hybridlm.checks import real
from hybridlm.errors import DataError

SLACK = 0.02  # coverage comes in jumps of 2^-n: so far below the level it may fall, as 93.75% with five seeds


def median_steps(
    solved_at: Sequence[float | None], steps: float, level: float = 0.95
) -> tuple[float | None, float, float | None]:
    """Median steps to solve and its interval: (median, low, high); None is beyond the budget, low is 0 if unbounded.

    solved_at: for each run the step at which it solved the task, or None: all that is known of it is that it would
    need more than `steps`. The median is where half of the runs are done (Kaplan and Meier 1958, with one time of
    censoring). The interval is that of order statistics: of n runs the j-th and the j-th last hold the true median
    between them with probability 1 - 2 P(Bin(n, 1/2) < j), whatever the distribution (Conover 1999, 3.2). Below
    five runs no pair reaches 93%, and the interval is everything. DataError: no runs, or a step outside [0, steps].
    """
    steps = real("steps", steps, 0)
    if not solved_at:
        raise DataError("solved_at: no runs; one is needed at least")
    for step in solved_at:
        if step is not None and not 0 <= step <= steps:
            raise DataError(f"solved_at: {step}; a step from 0 to {steps:g} is needed, or None")
    ordered = sorted(math.inf if step is None else step for step in solved_at)
    n, rank = len(ordered), _rank(len(ordered), level_of(level))
    median = ordered[(n - 1) // 2]
    low, high = (ordered[rank - 1], ordered[n - rank]) if rank else (0.0, math.inf)
    return _known(median), min(low, steps), _known(high)


def _rank(n: int, level: float) -> int:
    """The largest j with enough coverage, 0 if there is none."""
    missed, rank = 0.0, 0
    for j in range(1, n // 2 + 1):
        missed += 2 * math.comb(n, j - 1) / 2**n
        rank = j if 1 - missed >= level - SLACK else rank
    return rank


def _known(step: float) -> float | None:
    return step if math.isfinite(step) else None
