"""Doubts about a weak arm: was it given its chance? Not converged is not incapable, and a learning rate may be wrong.

Whatever calls an arm worse than a bar, or than another arm, must stand these two questions. What calls an arm good need
not: more of a chance would only make it better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from hybridlm.ablate.results import Results
    from hybridlm.ablate.study import Claim

STEPS = "solved_at"
"""The metric that counts steps until `stop_at` held; a run in which it never did would need more than it had."""

EDGE = 0.1
"""Share of the way to the bar that the last step of the grid may gain, before its edge counts as too early."""

LAST = 0.25
"""Share of the training whose pace a curve is judged by."""


def at_the_edge(claim: Claim, results: Results, arm: str, line: float) -> str | None:
    """A doubt where the best learning rate of an arm is at an end of the grid, and the next one might reach `line`.

    So it might where the end is better than its neighbour by more than EDGE of what is left to the line.
    """
    end, best = grid_end(results, arm), results.best_lr(arm)
    if end is None:
        return None
    if len(results.study.lr) == 1:
        return f"{arm} was given one learning rate, {best:g}, and another may be better"
    means, sign = results.means(arm, claim.metric), 1 if claim.higher_is_better else -1
    gained = sign * (means[best] - means[neighbour(results, end)])
    if gained <= EDGE * abs(line - means[best]):
        return None
    return f"the best learning rate of {arm} is the {end} of the grid, {best:g}, and it still gains there"


def grid_end(results: Results, arm: str) -> str | None:
    """Whether the best learning rate of an arm is the smallest or the largest of the grid."""
    best = results.best_lr(arm)
    return {min(results.study.lr): "smallest", max(results.study.lr): "largest"}.get(best)


def neighbour(results: Results, end: str) -> float:
    """The learning rate beside the smallest or the largest of a grid of several."""
    grid = sorted(results.study.lr)
    return grid[1] if end == "smallest" else grid[-2]


def still_rising(claim: Claim, results: Results, holds: np.ndarray, needed: int) -> str | None:
    """A doubt where an arm is not converged, so that the verdict on a bar would be another after as many steps again.

    They are taken at the pace of the last quarter of the held-out curve, seed by seed. holds: (seeds,) bool, in which
    of them the claim does now; needed: in how many it must.
    """
    if claim.measure == STEPS:
        return None
    line = claim.at_most if claim.at_least is None else claim.at_least
    rows = {row["seed"]: row for row in results.rows(claim.arm, results.best_lr(claim.arm))}
    values = results.values(claim.arm, claim.metric)
    gains = np.array([_gain(rows[seed]["curve"], claim) for seed in range(len(values))])
    later = values + gains
    then = later >= line if claim.at_least is not None else later <= line
    if (then.sum() >= needed) == (holds.sum() >= needed):
        return None
    moved = ", ".join(str(seed) for seed in np.flatnonzero(then != holds))
    return (
        f"{claim.arm} is not converged: at the pace of the last quarter, seed {moved} would pass {line:g} in as many "
        "steps again"
    )


def _gain(curve: list[tuple[int, dict[str, float]]], claim: Claim) -> float:
    """What as many steps again would bring at the pace of the curve's end, by least squares; 0 where it gets worse.

    The curve is of the held-out data, which stands for other tests too: it says whether the model still learns.
    """
    points = [(step, found[claim.measure]) for step, found in curve if claim.measure in found]
    last = points[-1][0] if points else 0
    late = [(step, value) for step, value in points if step >= (1 - LAST) * last]
    if len(late) < 2 or not np.isfinite([value for _, value in late]).all():
        return 0.0
    pace = float(np.polyfit(*np.array(late, dtype=np.float64).T, 1)[0])
    return max(0.0, pace) * last if claim.higher_is_better else min(0.0, pace) * last
