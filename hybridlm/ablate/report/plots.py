"""What several figures share: points with intervals, legends, rows of arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridlm.ablate.report.facts import Facts, Mean
from hybridlm.ablate.report.style import FAINT, INK, OTHER, Look
from hybridlm.ablate.report.words import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW, AROUND = 0.23, 0.85  # inches of a row, and of what stands around all of them
LINE = 0.17  # inches of a line of a legend
LONGEST, LONGEST_ROW = 24, 28  # letters of an arm's name in a legend, and before a row


@dataclass(frozen=True)
class Row:
    """A row of a chart: its label, the point, its interval, how it looks. seeds: single values, drawn small."""

    label: str
    value: float
    low: float
    high: float
    look: Look
    seeds: Sequence[float] = ()


def point(axes: Axes, x: float, mean: Mean, look: Look, **style: Any) -> None:
    """A mean with its interval."""
    below, above = mean.reach
    spread = [[below], [above]]
    axes.errorbar([x], [mean.mean], yerr=spread, elinewidth=1.1, capsize=2, **{**look.point, **style})


def legend(axes: Axes, facts: Facts, arms: Sequence[str]) -> None:
    """Below the axes: what the colours stand for, and how many arms have none."""
    from matplotlib.lines import Line2D

    found = [facts.looks[arm] for arm in arms]
    named = [look for look in dict.fromkeys(found) if look.mark is not None]
    handles = [Line2D([], [], label=readable(look.label, LONGEST), **look.line) for look in named]
    if others := sum(look.mark is None for look in found):
        handles.append(Line2D([], [], color=OTHER, label=f"{others} other arms"))
    longest = max(len(handle.get_label()) for handle in handles)
    lines = -(-len(handles) // max(1, min(3, 64 // (longest + 7))))
    columns = -(-len(handles) // lines)
    axes.figure.set_figheight(axes.figure.get_figheight() + LINE * lines)
    axes.figure.legend(handles=handles, loc="outside lower left", ncols=columns, columnspacing=1.2)


def thin(facts: Facts) -> dict[str, Any]:
    """Keywords of lines where there are very many."""
    return {"linewidth": 0.7, "markersize": 2.5, "alpha": 0.8} if facts.crowded else {}


def apart(places: Sequence[float], share: float = 0.02) -> list[float]:
    """Places on an x-axis, those that are the same moved a little apart so that no point hides another."""
    reach = (max(places) - min(places)) or 1.0
    found = []
    for i, place in enumerate(places):
        alike = [j for j, other in enumerate(places) if abs(other - place) < 1e-9 * reach]
        found.append(place + (alike.index(i) - (len(alike) - 1) / 2) * reach * min(share, 0.12 / len(alike)))
    return found


def frame(axes: Axes, facts: Facts, arms: Sequence[str], metric: str, rates: Sequence[float | None] = (None,)) -> None:
    """A y-axis that shows all means, and no more of their intervals than one range of the means to each side.

    With few seeds an interval may be many times as wide as all that was measured.
    """
    means = [facts.mean(arm, metric, lr) for arm in arms for lr in rates]
    means = [mean for mean in means if np.isfinite(mean.mean)]
    low, high = min(mean.mean for mean in means), max(mean.mean for mean in means)
    reach = (high - low) or max((max(mean.reach) for mean in means), default=0) or abs(high) or 1.0
    bottom = min(max(mean.mean - mean.reach[0], low - reach) for mean in means)
    top = max(min(mean.mean + mean.reach[1], high + reach) for mean in means)
    axes.set_ylim(bottom - 0.05 * (top - bottom or 1), top + 0.05 * (top - bottom or 1))


def guessed(axes: Axes, facts: Facts, metric: str) -> None:
    """A dotted line at what guessing gets."""
    if (guess := facts.guess(metric)) is not None:
        axes.axhline(guess, color=FAINT, linewidth=1, linestyle=(0, (1, 2)), zorder=1.2)


def thinned(ticks: Sequence[float], place: Callable[[float], float], room: int) -> list[float]:
    """Ticks far enough apart to be read, both ends among them."""
    reach = place(ticks[-1]) - place(ticks[0])
    kept = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if place(kept[-1]) - place(tick) >= reach / room and (
            tick == ticks[0] or place(tick) - place(ticks[0]) >= reach / room
        ):
            kept.append(tick)
    return kept[::-1]


def rows_height(count: int) -> float:
    """Inches of a chart with so many rows."""
    return AROUND + ROW * max(count, 3)


def draw_rows(axes: Axes, rows: Sequence[Row], label: str, zero: bool = False) -> None:
    """Rows from the top down: intervals and points, single seeds behind them; zero: a line at 0."""
    if zero:
        axes.axvline(0, color=INK, linewidth=1)
    for y, row in enumerate(rows):
        axes.plot(row.seeds, [y] * len(row.seeds), "|", color=FAINT, markersize=7, alpha=0.8, zorder=2)
        axes.plot([row.low, row.high], [y, y], color=row.look.colour, linewidth=1.8, solid_capstyle="butt", zorder=2.6)
        axes.plot([row.value], [y], **row.look.point)
    axes.set_yticks(range(len(rows)), [readable(row.label, LONGEST_ROW) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(label)
