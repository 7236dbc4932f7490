"""Steps to solve: when each seed got there, and how many did at all."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import WIDTH, Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts, metric_word
from hybridlm.ablate.report.plots import LONGEST_ROW, guessed, legend, rows_height, thin
from hybridlm.ablate.report.style import BAND, FAINT
from hybridlm.ablate.statistics import median_steps, wilson
from hybridlm.ablate.study import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Learning curves and steps to solve"
SEEN = 0.003  # a change of a score, share or nats, that nobody calls one


def section(facts: Facts) -> Section:
    """Curves of the held-out score; steps to solve where the study says what solved is."""
    charts = [chart for chart in (_curves(facts), _steps(facts)) if chart]
    if not charts:
        return Section("solve", TITLE, left_out="no trial was tested while it trained, and the study has no stop_at.")
    missing = [] if facts.study.train.stop_at else [Paragraph("Steps to solve are left out: the study has no stop_at.")]
    return Section("solve", TITLE, [*charts, *missing])


# --------------------------------------------------------------------------------------------------------------- steps
def _steps(facts: Facts) -> Chart | None:
    stop = facts.study.train.stop_at
    if stop is None:
        return None
    table = Table(
        "The numbers",
        ["arm", "solved", "95% interval (Wilson)", "median steps", "95% interval", "each seed"],
        [_row(facts, arm) for arm in facts.arms],
        frozenset({1, 2, 3, 4}),
        folded=True,
    )
    bar = f"held-out {metric_word(stop.metric)} of {stop.value:g}"
    caption = (
        f"Steps until {bar} for n = {facts.seeds} at each arm's best learning rate: strokes are seeds, marks medians, "
        f"bars 95% intervals of the median; › means not within {facts.study.train.steps:,} steps."
    )
    alt = f"Steps to solve by arm. {'; '.join(_said(facts, arm) for arm in facts.arms[:12])}"
    size = (WIDTH, rows_height(len(facts.arms)))
    return Chart("steps", _finding(facts), caption, alt, partial(_draw_steps, facts=facts), table, size)


def _row(facts: Facts, arm: Arm) -> list:
    found = facts.results.solved_at(arm.name)
    solved = sum(step is not None for step in found)
    median, low, high = median_steps(found, facts.study.train.steps)
    steps = ", ".join("–" if step is None else f"{step:,}" for step in found)
    ends = words.interval(*wilson(solved, len(found)), 2)
    return [
        facts.cell(arm.name),
        f"{solved} of {len(found)}",
        ends,
        _step(facts, median),
        f"≥ {low:,.0f}" if high is None and low >= facts.study.train.steps else f"{low:,.0f} to {_step(facts, high)}",
        steps,
    ]


def _step(facts: Facts, step: float | None) -> str:
    return f"> {facts.study.train.steps:,}" if step is None else f"{step:,.0f}"


def _said(facts: Facts, arm: Arm) -> str:
    found = facts.results.solved_at(arm.name)
    solved = sum(step is not None for step in found)
    median = _step(facts, median_steps(found, facts.study.train.steps)[0])
    return f"{words.named(arm.name, 40)}: {solved} of {len(found)} seeds, median {median}"


def _finding(facts: Facts) -> str:
    """Who solves it in every seed, and who in none."""
    found = {arm.name: facts.results.solved_at(arm.name) for arm in facts.arms}
    always = [name for name, steps in found.items() if None not in steps]
    never = [name for name, steps in found.items() if all(step is None for step in steps)]
    if not always and not never:
        return "Every arm solves it in some seeds and not in others"
    if len(never) == len(found):
        return f"No arm solves it within {facts.study.train.steps:,} steps"
    if len(always) == len(found):
        return "Every arm solves it in every seed"
    solved, not_solved = (words.listed([words.named(one) for one in group], 3) for group in (always, never))
    within = f"within {facts.study.train.steps:,} steps"
    if not always:
        return f"{not_solved} {'solves' if len(never) == 1 else 'solve'} it in no seed {within}"
    return f"Solved by {solved} in every seed{f'; by {not_solved} in none' if never else ''} {within}"


def _draw_steps(axes: Axes, *, facts: Facts) -> None:
    steps = facts.study.train.steps
    beyond = steps * 1.06
    for y, arm in enumerate(facts.arms):
        look, found = facts.looks[arm.name], facts.results.solved_at(arm.name)
        median, low, high = median_steps(found, steps)
        there = [step for step in found if step is not None]
        axes.plot(there, [y] * len(there), "|", color=FAINT, markersize=8, zorder=2)
        if there:
            axes.plot([low, beyond if high is None else high], [y, y], color=look.colour, linewidth=1.8, zorder=2.6)
        if len(there) < len(found):
            axes.text(beyond, y, f"› {len(found) - len(there)}", size=8.5, color=FAINT, va="center")
        if median is not None:
            axes.plot([median], [y], **look.point)
    axes.axvline(steps, color=BAND, linewidth=1, linestyle=(0, (2, 2)))
    axes.set_xlim(0, steps * 1.16)
    axes.set_yticks(range(len(facts.arms)), [words.readable(arm.name, LONGEST_ROW) for arm in facts.arms])
    axes.set_ylim(len(facts.arms) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("optimiser steps to solve")


# -------------------------------------------------------------------------------------------------------------- curves
def _curves(facts: Facts) -> Chart | None:
    found = {arm.name: curve(facts, arm.name) for arm in facts.arms}
    found = {arm: points for arm, points in found.items() if len(points[0]) > 1}
    if not found:
        return None
    what = metric_word(facts.score)
    measured = marks(found)
    rows = [[facts.cell(arm), *[at(points, step) for step in measured]] for arm, points in found.items()]
    head = ["arm", *[f"{what} at step {step:,}" for step in measured]]
    table = Table("The numbers", head, rows, frozenset(range(1, len(head))), folded=True)
    bands = "" if facts.crowded else "; bands reach from the lowest to the highest seed"
    caption = (
        f"Mean held-out {what} over n = {facts.seeds} at each arm's best learning rate{bands}. "
        f"A seed that ended early keeps its last value.{facts.guessing(facts.score)}"
    )
    alt = f"{what} against optimiser steps, a line for each arm; the ends are in the table."
    return Chart(
        "curves",
        _course(found, what, facts.study.train.steps),
        caption,
        alt,
        partial(_draw_curves, facts=facts, found=found),
        table,
    )


Points = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def marks(found: Mapping[str, Points]) -> list[int]:
    """Steps at which something was measured, nearest to each quarter of the longest training."""
    steps = sorted({int(step) for points in found.values() for step in points[0]})
    return sorted({min(steps, key=lambda step: abs(step - share * steps[-1])) for share in (0.25, 0.5, 0.75, 1)})


def at(points: Points, step: int) -> str:
    """The mean as it was last measured, at a step or before."""
    before = int(np.searchsorted(points[0], step, side="right"))
    return words.fixed(float(points[1][before - 1]) if before else None)


def curve(facts: Facts, arm: str) -> Points:
    """Steps, mean, lowest and highest of the score over the arm's seeds at its best learning rate."""
    rows = [row["curve"] for row in facts.results.rows(arm, facts.best[arm])]
    seeds = [{step: found[facts.score] for step, found in points if facts.score in found} for points in rows]
    steps = np.array(sorted({step for seed in seeds for step in seed}))
    lines = np.array([[_held(seed, step) for step in steps] for seed in seeds if seed])
    if not lines.size:
        nothing = np.array([])
        return nothing, nothing, nothing, nothing
    there = np.isfinite(lines).any(axis=0)
    lines = lines[:, there]
    return steps[there], np.nanmean(lines, axis=0), np.nanmin(lines, axis=0), np.nanmax(lines, axis=0)


def _held(seed: dict[int, float], step: int) -> float:
    """A seed's value at a step: its last one by then."""
    before = [at for at in seed if at <= step]
    return seed[max(before)] if before else float("nan")


def _course(found: dict[str, Points], what: str, most: int) -> str:
    """How many arms still move in the last quarter of `most` steps: one that was solved before does not."""
    moving = 0
    for steps, mean, _, _ in found.values():
        late = float(np.interp(0.75 * most, steps, mean))
        reach = max(float(mean.max() - mean.min()), 1e-12)
        moving += abs(float(mean[-1]) - late) > max(0.05 * reach, SEEN)
    if moving:
        whose = "its" if moving == 1 else "their"
        return (
            f"{moving} of {words.plural(len(found), 'arm')} moved in the last quarter: {whose} {what} had not settled"
        )
    return f"By the last quarter the {what} of all {words.plural(len(found), 'arm')} had settled"


def _draw_curves(axes: Axes, *, facts: Facts, found: dict[str, Points]) -> None:
    for arm, (steps, mean, low, high) in found.items():
        look = facts.looks[arm]
        every = max(1, len(steps) // 6)
        axes.plot(steps, mean, **{"markevery": every, **look.line, **thin(facts)})
        if not facts.crowded:
            axes.fill_between(steps, low, high, color=look.colour, alpha=0.12, linewidth=0)
    guessed(axes, facts, facts.score)
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(facts.label(facts.score))
    legend(axes, facts, list(found))
