"""Heat maps of two axes of a study: where attention stands by how much of it there is, or any other pair."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import WIDTH, Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts, metric_word
from hybridlm.ablate.report.ratio import numeric_axes
from hybridlm.ablate.report.style import FAINT
from hybridlm.ablate.results import lower_is_better
from hybridlm.ablate.study import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Placement and other pairs of axes"
MOST = 4  # maps
LABEL = 18


def section(facts: Facts) -> Section:
    """A map for each combination of the axes that are not on it, up to four."""
    pair = axes_of(facts)
    if pair is None:
        return Section("grid", TITLE, left_out="the study has no two axes with several values each.")
    maps = list(_groups(facts, pair).items())
    charts = [_chart(facts, pair, rest, arms, i) for i, (rest, arms) in enumerate(maps[:MOST])]
    more = f"{len(maps) - MOST} more combinations of the other axes are in results.csv" if len(maps) > MOST else ""
    return Section("grid", TITLE, [*charts, *([Paragraph(f"{more}.")] if more else [])])


def axes_of(facts: Facts) -> tuple[str, str] | None:
    """Two axes with several values: rows, which are names if one axis has such (a placement), and columns."""
    values: dict[str, set] = {}
    for arm in facts.arms:
        for axis, value in arm.coordinates.items():
            values.setdefault(axis, set()).add(str(value))
    found = [axis for axis in values if len(values[axis]) > 1]
    numeric = [axis for axis in found if axis in numeric_axes(facts)]
    named = [axis for axis in found if axis not in numeric]
    if len(found) < 2:
        return None
    rows = (named or numeric)[0]
    return rows, next(axis for axis in [*numeric, *found] if axis != rows)


def _groups(facts: Facts, pair: tuple[str, str]) -> dict[tuple, list[Arm]]:
    groups: dict[tuple, list[Arm]] = {}
    for arm in facts.arms:
        if set(pair) <= set(arm.coordinates):
            rest = tuple((name, str(value)) for name, value in arm.coordinates.items() if name not in pair)
            groups.setdefault(rest, []).append(arm)
    return groups


def _chart(facts: Facts, pair: tuple[str, str], rest: tuple, arms: Sequence[Arm], index: int) -> Chart:
    values = [sorted({arm.coordinates[axis] for arm in arms}, key=_order(facts, axis)) for axis in pair]
    means = _means(facts, pair, values, arms)
    rows, columns = ([words.readable(value, LABEL) for value in entries] for entries in values)
    names = [words.readable(axis, LABEL) for axis in pair]
    what, where = (
        metric_word(facts.score),
        ", ".join(f"{words.readable(a, LABEL)} = {words.readable(v, LABEL)}" for a, v in rest),
    )
    table = Table(
        "The numbers",
        [f"{names[0]} \\ {names[1]}", *columns],
        [[row, *[words.fixed(mean) for mean in line]] for row, line in zip(rows, means, strict=True)],
        frozenset(range(1, len(columns) + 1)),
        folded=True,
    )
    caption = (
        f"Mean {what} over n = {facts.seeds}, at each arm's best learning rate{'; ' + where if where else ''}. "
        "Brighter is better; intervals over seeds stand beside the differences."
    )
    alt = f"Heat map of {what}: rows {names[0]}, columns {names[1]}. " + "; ".join(
        f"{row}: {', '.join(words.fixed(mean) for mean in line)}" for row, line in zip(rows, means, strict=True)
    )
    size = (max(WIDTH, 1.9 + 0.72 * len(columns)), 1.1 + 0.42 * len(rows))
    draw = partial(_draw, means=means, rows=rows, columns=columns, names=names, metric=facts.score)
    return Chart(f"grid-{index}", _finding(facts, pair, arms, where), caption, alt, draw, table, size)


def _order(facts: Facts, axis: str) -> Any:
    """Numbers by size, names as the study has them."""
    given = list(dict.fromkeys(arm.coordinates.get(axis) for arm in facts.study.arms))
    return (lambda value: value) if axis in numeric_axes(facts) else given.index


def _means(facts: Facts, pair: tuple[str, str], values: list[list], arms: Sequence[Arm]) -> np.ndarray:
    """(rows, columns), NaN where the study has no such arm."""
    means = np.full((len(values[0]), len(values[1])), np.nan)
    for arm in arms:
        row, column = (entries.index(arm.coordinates[axis]) for axis, entries in zip(pair, values, strict=True))
        means[row, column] = facts.mean(arm.name).mean
    return means


def _finding(facts: Facts, pair: tuple[str, str], arms: Sequence[Arm], where: str) -> str:
    """The best and the worst value of the row axis, if seeds tell them apart."""
    order = [arm for arm in facts.by_mean() if arm in arms]
    prefix = f"{where}: " if where else ""
    if len(order) < 2:
        return f"{prefix}Too few arms finished to compare"
    best, worst = order[0], order[-1]
    apart = facts.difference(best.name, worst.name)
    if apart is None or apart.low <= 0 <= apart.high:
        return f"{prefix}Even the highest and the lowest mean are not told apart"
    first, last = (_named(arm, pair) for arm in (best, worst))
    rivals = [arm for arm in facts.rivals() if arm in arms]
    if len(rivals) > 1 and best in rivals:
        return f"{prefix}The worst is {last}; {len(rivals)} of {len(order)} are not told apart from the best"
    return f"{prefix}The best is {first}, the worst {last}"


def _named(arm: Arm, pair: tuple[str, str]) -> str:
    return ", ".join(f"{words.readable(axis, LABEL)} {words.readable(arm.coordinates[axis], LABEL)}" for axis in pair)


def _draw(axes: Axes, *, means: np.ndarray, rows: list[str], columns: list[str], names: list[str], metric: str) -> None:
    """Cells from dark (bad) to light (good), each with its number; empty ones are hatched."""
    import matplotlib as mpl

    shown = np.isfinite(means)
    low, high = (means[shown].min(), means[shown].max()) if shown.any() else (0.0, 1.0)
    scale = mpl.colors.Normalize(low, high if high > low else low + 1)
    for (row, column), mean in np.ndenumerate(means):
        light = 1 - scale(mean) if lower_is_better(metric) else scale(mean)
        colour = mpl.colormaps["cividis"](light) if np.isfinite(mean) else "none"
        hatch = {} if np.isfinite(mean) else {"hatch": "///", "edgecolor": FAINT}
        axes.add_patch(mpl.patches.Rectangle((column, row), 0.97, 0.95, facecolor=colour, linewidth=0, **hatch))
        ink = "#ffffff" if light < 0.55 else "#111111"
        if np.isfinite(mean):
            axes.text(column + 0.485, row + 0.475, words.fixed(mean), color=ink, ha="center", va="center", size=8.5)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks(np.arange(len(columns)) + 0.485, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.475, rows)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"{names[1]}   (cells: {metric_word(metric)})")
    axes.set_ylabel(names[0])
