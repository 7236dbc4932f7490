"""Quality against the share of attention, over three x-axes; and where it is best, or that no place is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts, metric_word
from hybridlm.ablate.report.plots import apart, frame, guessed, legend, point, thinned
from hybridlm.ablate.report.style import BAND, FAINT
from hybridlm.ablate.study import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Quality against the share of attention"


@dataclass(frozen=True)
class Abscissa:
    """An x-axis. of: an arm's place on it; tick: how a place is written; logarithmic: for sizes, not for shares."""

    name: str
    label: str
    of: Callable[[Arm], float]
    tick: Callable[[float], str]
    logarithmic: bool = False


def abscissae(facts: Facts) -> list[Abscissa]:
    """Attention by layers, by mixers, and by what it costs in cache."""
    length = facts.arms[0].cost.length
    return [
        Abscissa("layers", "layers with attention / layers", lambda arm: arm.cost.attention_of_layers, words.share),
        Abscissa("mixers", "attention mixers / mixers", lambda arm: arm.cost.attention_of_mixers, words.share),
        Abscissa(
            "cache",
            f"cache of one row of {length:,} tokens (float32)",
            lambda arm: arm.cost.cache_bytes,
            words.size,
            True,
        ),
    ]


def section(facts: Facts) -> Section:
    """Up to three figures a metric."""
    shares = {arm.cost.attention_of_mixers for arm in facts.arms}
    if len(shares) < 2:
        return Section("ratio", TITLE, left_out="the arms do not differ in their share of attention.")
    charts = [_chart(facts, facts.score, x) for x in abscissae(facts)]
    charts += [_chart(facts, metric, abscissae(facts)[0]) for metric in facts.shown if metric != facts.score]
    about = (
        "Attention is counted three ways, as they differ where a stack has MLP layers or mixers side by side. "
        "Lines join arms that differ along one axis of the study alone."
    )
    return Section("ratio", TITLE, [Paragraph(about), *charts])


def series(facts: Facts) -> list[list[Arm]]:
    """Arms that differ in one numeric axis alone, along which the share of attention changes; else each by itself."""
    axis = ratio_axis(facts)
    if axis is None:
        return [[arm] for arm in facts.arms]
    groups: dict[tuple, list[Arm]] = {}
    for arm in facts.arms:
        rest = tuple((name, str(value)) for name, value in arm.coordinates.items() if name != axis)
        groups.setdefault(rest, []).append(arm)
    return list(groups.values())


def ratio_axis(facts: Facts) -> str | None:
    """The first numeric axis of the study along which the share of attention changes."""
    for axis in numeric_axes(facts):
        shares: dict[object, set[float]] = {}
        for arm in facts.arms:
            shares.setdefault(arm.coordinates.get(axis), set()).add(arm.cost.attention_of_mixers)
        if len(set().union(*shares.values())) > 1 and all(len(found) == 1 for found in shares.values()):
            return axis
    return None


def numeric_axes(facts: Facts) -> list[str]:
    """Axes of the study whose values are numbers, of which at least two have results."""
    found: dict[str, list] = {}
    for arm in facts.arms:
        for axis, value in arm.coordinates.items():
            found.setdefault(axis, []).append(value)
    numbers = {
        axis: [v for v in values if not isinstance(v, bool) and isinstance(v, int | float)]
        for axis, values in found.items()
    }
    return [axis for axis, values in found.items() if len(numbers[axis]) == len(values) and len(set(values)) > 1]


def _chart(facts: Facts, metric: str, x: Abscissa) -> Chart:
    arms = facts.by_mean(metric)
    what = metric_word(metric)
    name = f"quality-{x.name}" if metric == facts.score else f"quality-{x.name}-{words.slug(metric)}"
    alt = f"{what} against {x.label}. " + "; ".join(
        f"{words.named(arm.name, 40)}: {facts.mean(arm.name, metric)} at {x.tick(x.of(arm))}" for arm in arms[:12]
    )
    caption = (
        f"{facts.averaged}. x: {x.label}"
        + ("." if x.logarithmic else ", spaced by its logarithm.")
        + facts.guessing(metric)
    )
    rows = [[facts.cell(a.name), x.tick(x.of(a)), *_figures(facts, a, metric)] for a in sorted(arms, key=x.of)]
    table = Table(
        "The numbers", ["arm", x.label, what, "95% interval", "n"], rows, frozenset({1, 2, 3, 4}), folded=True
    )
    return Chart(name, _finding(facts, metric, x), caption, alt, partial(_draw, facts=facts, metric=metric, x=x), table)


def _figures(facts: Facts, arm: Arm, metric: str) -> list[str]:
    mean = facts.mean(arm.name, metric)
    return [words.fixed(mean.mean, 4), words.interval(mean.low, mean.high), str(mean.n)]


def _finding(facts: Facts, metric: str, x: Abscissa) -> str:
    """By cache: what the leaders need; else who leads."""
    if x.name == "mixers" and all(a.cost.attention_of_layers == a.cost.attention_of_mixers for a in facts.arms):
        return "Counted by mixers the picture is the same: each layer of these arms has one"
    if x.name != "cache":
        return ("Counted by mixers: " if x.name == "mixers" else "") + facts.finding(metric)
    if not facts.told_apart(metric):
        return f"What more cache buys is not seen: no arm is told apart from the best mean {metric_word(metric)}"
    leaders = facts.leaders(metric)
    frugal, small = min(leaders, key=x.of), min(facts.by_mean(metric), key=x.of)
    says = f"Cheapest leader by {metric_word(metric)}: {words.named(frugal.name)}, {x.tick(x.of(frugal))} of cache"
    if frugal.name == small.name:
        return f"{says}, the least of all"
    least = words.fixed(facts.mean(small.name, metric).mean)
    return f"{says}; the least of all, {x.tick(x.of(small))}, reaches {least}"


def _draw(axes: Axes, *, facts: Facts, metric: str, x: Abscissa) -> None:
    arms = facts.by_mean(metric)
    place = _places([x.of(arm) for arm in arms], x.logarithmic)
    shown = {arm.name for arm in arms}
    lines = [[arm for arm in line if arm.name in shown] for line in series(facts)]
    for line in [line for line in lines if len(line) > 1]:
        _line(axes, facts, metric, [(place(x.of(arm)), arm) for arm in line])
    for arm, at in zip(arms, apart([place(x.of(arm)) for arm in arms]), strict=True):
        point(axes, at, facts.mean(arm.name, metric), facts.looks[arm.name])
    frame(axes, facts, [arm.name for arm in arms], metric)
    guessed(axes, facts, metric)
    ticks = thinned(sorted({x.of(arm) for arm in arms}), place, 6 if x.logarithmic else 12)
    axes.set_xticks([place(tick) for tick in ticks], [x.tick(tick) for tick in ticks])
    axes.set_xlabel(x.label)
    axes.set_ylabel(facts.label(metric))
    legend(axes, facts, [arm.name for arm in facts.arms if arm.name in shown])


def _line(axes: Axes, facts: Facts, metric: str, line: Sequence[tuple[float, Arm]]) -> None:
    """A line through means, and the band of their intervals; in colour if all of its arms have the same."""
    told = {facts.looks[arm.name] for _, arm in line}
    look = told.pop() if len(told) == 1 else None
    colour, dash = (look.colour, look.line["linestyle"]) if look else (FAINT, "solid")
    line = sorted(line, key=lambda entry: entry[0])
    places, means = [place for place, _ in line], [facts.mean(arm.name, metric) for _, arm in line]
    low, high = [m.mean - m.reach[0] for m in means], [m.mean + m.reach[1] for m in means]
    axes.fill_between(places, low, high, color=colour if look else BAND, alpha=0.15, linewidth=0, zorder=1)
    axes.plot(places, [mean.mean for mean in means], color=colour, linestyle=dash, linewidth=1.3, zorder=1.8)


def _places(values: Sequence[float], logarithmic: bool) -> Callable[[float], float]:
    """log(x + eps): shares with eps of half the least that is not 0, so that 0 has a place."""
    positive = [value for value in values if value > 0]
    least = min(positive, default=1.0)
    eps = 0.0 if logarithmic and len(positive) == len(values) else least / 2
    return lambda value: math.log2(value + eps)


def losses(facts: Facts, arms: Sequence[Arm], metric: str) -> np.ndarray:
    """(seeds, arms) to be as small as possible: the metric, or minus it where larger is better."""
    from hybridlm.ablate.results import lower_is_better

    sign = 1 if lower_is_better(metric) else -1
    return sign * np.stack([facts.values(arm.name, metric) for arm in arms], axis=1)
