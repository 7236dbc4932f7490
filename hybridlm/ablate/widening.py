"""Learning rates beyond the grid: where an arm does best at an end of it, nobody knows what the next rate would do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hybridlm.ablate.claims import arms_of
from hybridlm.ablate.doubts import grid_end, neighbour

if TYPE_CHECKING:
    from hybridlm.ablate.results import Results
    from hybridlm.ablate.study import Study


def widened(results: Results) -> Study | None:
    """The study with one more rate, for every arm alike, at each end where an arm that is claimed of still gains.

    The rate is as far from the end as the end is from its neighbour. None: no arm does, or `widen` is used up.
    """
    study = results.study
    ends = {end for arm in _claimed(results) if (end := _gaining_end(results, arm))} if study.widen else set()
    if not ends:
        return None
    rates = {"smallest": min(study.lr), "largest": max(study.lr)}
    beyond = (rates[end] ** 2 / neighbour(results, end) for end in ends)
    lr = tuple(sorted([*study.lr, *(float(f"{rate:.4g}") for rate in beyond)]))
    source = {**study.source, "lr": list(lr), "widen": study.widen - 1}
    return replace(study, lr=lr, widen=study.widen - 1, source=source)


def _claimed(results: Results) -> list[str]:
    return list(dict.fromkeys(arm for claim in results.study.claims for arm in arms_of(claim, results)))


def _gaining_end(results: Results, arm: str) -> str | None:
    """The end of the grid at which an arm is best, and better than at the rate beside it."""
    end = grid_end(results, arm)
    if end is None or len(results.study.lr) < 2:
        return None
    means, best = results.means(arm, results.score), results.best_lr(arm)
    return end if means[best] != means[neighbour(results, end)] else None
