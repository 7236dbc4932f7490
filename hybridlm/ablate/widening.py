"""Learning rates beyond the grid: where an arm does best at an end of it, nobody knows what the next rate would do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hybridlm.ablate.claims import arms_of
from hybridlm.ablate.doubts import grid_end

if TYPE_CHECKING:
    from hybridlm.ablate.results import Results
    from hybridlm.ablate.study import Study


def widened(results: Results) -> Study | None:
    """The study with one more rate, for every arm alike, at each end where an arm that is claimed of still gains.

    The rate is as far from the end as the end is from its neighbour. None: no arm does, or `widen` is used up.
    """
    study = results.study
    ends = {end for arm in _claimed(results) if (end := _gaining_end(results, arm))} if study.widen else set()
    if not ends or len(study.lr) < 2:
        return None
    low, *_, high = grid = sorted(study.lr)
    beyond = {"smallest": low * low / grid[1], "largest": high * high / grid[-2]}
    lr = tuple(sorted([*grid, *(float(f"{beyond[end]:.4g}") for end in ends)]))
    source = {**study.source, "lr": list(lr), "widen": study.widen - 1}
    return replace(study, lr=lr, widen=study.widen - 1, source=source)


def _claimed(results: Results) -> list[str]:
    return list(dict.fromkeys(arm for claim in results.study.claims for arm in arms_of(claim, results)))


def _gaining_end(results: Results, arm: str) -> str | None:
    """The end of the grid at which an arm is best, and better than at the rate beside it."""
    end, grid = grid_end(results, arm), sorted(results.study.lr)
    if end is None or len(grid) < 2:
        return None
    means, best = results.means(arm, results.score), results.best_lr(arm)
    return end if means[best] != means[grid[1] if end == "smallest" else grid[-2]] else None
