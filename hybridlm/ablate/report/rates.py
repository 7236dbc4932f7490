"""Quality against learning rate by arm: whether every arm had the rate that suits it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts, metric_word
from hybridlm.ablate.report.plots import frame, guessed, legend, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Learning rates"
FEWEST = 4


def section(facts: Facts) -> Section:
    """One figure, and a warning where the grid was too short."""
    if len(facts.study.lr) < 2:
        return Section(
            "rates", TITLE, left_out=f"one learning rate ({facts.study.lr[0]:g}) was tried, so none was chosen."
        )
    warnings = [Paragraph(text) for text in warnings_of(facts)]
    return Section("rates", TITLE, [*warnings, _chart(facts)])


def at_edge(facts: Facts) -> list[str]:
    """Arms whose best learning rate is the least or the largest tried: another may suit them better."""
    ends = (min(facts.study.lr), max(facts.study.lr))
    return [arm for arm, lr in facts.best.items() if lr in ends]


def warnings_of(facts: Facts) -> list[str]:
    """What a reader should doubt."""
    found = []
    if edge := at_edge(facts):
        names = words.listed([words.readable(arm, 40) for arm in edge], 8)
        found.append(f"At the edge of the grid: {names}. A rate beyond it was not tried and may be better.")
    if len(facts.study.lr) < FEWEST:
        found.append(f"{len(facts.study.lr)} learning rates are few: at least {FEWEST} show where the best one lies.")
    return found


def _chart(facts: Facts) -> Chart:
    grid, what = facts.study.lr, metric_word(facts.score)
    rows = [
        [facts.cell(arm.name), *[str(facts.mean(arm.name, lr=lr)) for lr in grid], f"{facts.best[arm.name]:g}"]
        for arm in facts.arms
    ]
    head = ["arm", *[f"lr {lr:g}" for lr in grid], "best"]
    table = Table("The numbers", head, rows, frozenset(range(1, len(head))), folded=True)
    n = words.plural(facts.study.seeds, "seed")
    bars = "" if facts.crowded else "; bars are 95% intervals over seeds, rings mark each arm's best rate"
    caption = f"Mean held-out {what} over n = {n}{bars}.{facts.guessing(facts.score)}"
    alt = f"{what} against learning rate, a line for each arm. " + "; ".join(
        f"{words.readable(arm, 40)}: best at {lr:g}" for arm, lr in list(facts.best.items())[:12]
    )
    return Chart("rates", _finding(facts), caption, alt, partial(_draw, facts=facts), table)


def _finding(facts: Facts) -> str:
    """Whether one rate suits all; how many stand at the edge."""
    rates = sorted(set(facts.best.values()))
    edge = len(at_edge(facts))
    if len(rates) == 1:
        says = f"All arms do best at a learning rate of {rates[0]:g}"
    else:
        says = f"The best learning rate differs between arms, from {rates[0]:g} to {rates[-1]:g}"
    if edge:
        return f"{says}; for {edge} of {words.plural(len(facts.best), 'arm')} it is at the grid's edge"
    return f"{says}, within the grid"


def _draw(axes: Axes, *, facts: Facts) -> None:
    shift = np.linspace(-1, 1, max(len(facts.arms), 2)) * 0.03 * np.log(max(facts.study.lr) / min(facts.study.lr))
    for arm, aside in zip(facts.arms, shift, strict=False):
        look = facts.looks[arm.name]
        means = [facts.mean(arm.name, lr=lr) for lr in facts.study.lr]
        places = np.array(facts.study.lr) * (1 if facts.crowded else np.exp(aside))
        axes.plot(places, [mean.mean for mean in means], **{**look.line, **thin(facts)})
        if facts.crowded:
            continue
        spread = np.array([mean.reach for mean in means]).T
        axes.errorbar(places, [mean.mean for mean in means], yerr=spread, fmt="none", ecolor=look.colour, elinewidth=1)
        best = facts.study.lr.index(facts.best[arm.name])
        ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.3, "linestyle": "none"}
        axes.plot(places[best], means[best].mean, marker="o", color=look.colour, zorder=4, **ring)
    frame(axes, facts, [arm.name for arm in facts.arms], facts.score, facts.study.lr)
    guessed(axes, facts, facts.score)
    axes.set_xscale("log")
    axes.set_xticks(facts.study.lr, [f"{lr:g}" for lr in facts.study.lr])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("peak learning rate (logarithmic)")
    axes.set_ylabel(facts.label(facts.score))
    legend(axes, facts, [arm.name for arm in facts.arms])
