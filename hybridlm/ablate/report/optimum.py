"""Where along a numeric axis the score is best; where the basin is flat, no place is named."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import Cell, Paragraph, Section, Table
from hybridlm.ablate.report.facts import LEVEL, Facts, metric_word
from hybridlm.ablate.report.ratio import losses, numeric_axes
from hybridlm.ablate.statistics import Argmin, argmin_interval
from hybridlm.ablate.study import Arm

TITLE = "The best value of an axis"
FEWEST_POINTS, FEWEST_SEEDS = 4, 2
MOST = 24  # rows


def section(facts: Facts) -> Section:
    """A row for each numeric axis and each combination of the others."""
    lines = [(axis, arms) for axis in numeric_axes(facts) for arms in _lines(facts, axis)]
    rows = [row for axis, arms in lines if (row := _row(facts, axis, arms))]
    if not rows:
        why = f"no numeric axis has results at {FEWEST_POINTS} points in {FEWEST_SEEDS} seeds or more."
        return Section("optimum", TITLE, left_out=why)
    about = (
        f"A quadratic in the logarithm of the axis is fitted to each seed's {metric_word(facts.score)}; the interval "
        "holds every place where the mean slope may be zero. Where it spans over half of the axis the basin is flat, "
        "and no optimum is named."
    )
    head = ["axis", "where", "best", f"{LEVEL:.0%} interval", "fit", "points", "n"]
    table = Table("The best value of each numeric axis", head, rows[:MOST], frozenset({5, 6}))
    more = [Paragraph(f"{len(rows) - MOST} more lines are left out.")] if len(rows) > MOST else []
    return Section("optimum", TITLE, [Paragraph(about), table, *more])


def _lines(facts: Facts, axis: str) -> list[list[Arm]]:
    """Arms that differ in this axis alone."""
    groups: dict[tuple, list[Arm]] = {}
    for arm in facts.arms:
        if axis in arm.coordinates:
            rest = tuple((name, str(value)) for name, value in arm.coordinates.items() if name != axis)
            groups.setdefault(rest, []).append(arm)
    return list(groups.values())


def argmin_of(facts: Facts, axis: str, arms: Sequence[Arm]) -> tuple[Argmin, int] | None:
    """The best place along the axis and the seeds that it rests on: those that finished at every point."""
    table = losses(facts, arms, facts.score)
    whole = np.isfinite(table).all(axis=1)
    if len(arms) < FEWEST_POINTS or whole.sum() < FEWEST_SEEDS:
        return None
    x = [float(arm.coordinates[axis]) for arm in arms]
    return (argmin_interval(x, table[whole]), int(whole.sum())) if min(x) >= 0 else None


def _row(facts: Facts, axis: str, arms: Sequence[Arm]) -> list[Cell] | None:
    found = argmin_of(facts, axis, arms)
    if found is None:
        return None
    best, n = found
    rest = ", ".join(f"{name} = {value}" for name, value in arms[0].coordinates.items() if name != axis)
    place = "flat: no optimum is named" if best.flat else words.number(best.best, 3)
    ends = f"{words.number(best.low, 3)} to {words.number(best.high, 3)}"
    return [words.readable(axis, 40), words.readable(rest, 80) or "–", place, ends, _fit(best), str(len(arms)), str(n)]


def _fit(best: Argmin) -> str:
    """Whether the quadratic describes the points."""
    if not np.isfinite(best.misfit):
        return "cannot be tested"
    return (
        f"poor (p {words.probability(best.misfit)})"
        if best.misfit < 0.01
        else f"good (p {words.probability(best.misfit)})"
    )
