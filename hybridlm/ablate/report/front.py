"""The Pareto front of quality, FLOPs and cache: which arms nobody else beats in all three."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts, metric_word
from hybridlm.ablate.report.plots import apart, frame, guessed, legend, point, thinned
from hybridlm.ablate.report.style import FAINT, PAPER
from hybridlm.ablate.results import lower_is_better
from hybridlm.ablate.study import Arm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Quality against what it costs"


@dataclass(frozen=True)
class Price:
    """A cost of an arm. spread: the factor between the most and the least of it."""

    name: str
    label: str
    of: Callable[[Arm], float]
    text: Callable[[float], str]


def prices(facts: Facts) -> list[Price]:
    """FLOPs of training, and cache bytes."""
    length = facts.arms[0].cost.length
    return [
        Price("flops", "FLOPs a token of training", lambda arm: arm.cost.flops_train, words.count),
        Price("cache", f"cache of a row of {length:,} tokens", lambda arm: arm.cost.cache_bytes, words.size),
    ]


def section(facts: Facts) -> Section:
    """A figure for each price that differs among the arms."""
    arms = facts.by_mean()
    charts = [_chart(facts, price) for price in prices(facts) if len({price.of(arm) for arm in arms}) > 1]
    if not charts:
        return Section("front", TITLE, left_out="all arms cost the same FLOPs and the same cache.")
    return Section("front", TITLE, [Paragraph(_said(facts)), *charts])


def front(facts: Facts) -> list[Arm]:
    """Arms to which no other is at least as good in mean score, FLOPs and cache, and better in one of them."""
    points = {arm.name: _point(facts, arm) for arm in facts.by_mean()}
    return [arm for arm in facts.by_mean() if not any(_beats(other, points[arm.name]) for other in points.values())]


def _point(facts: Facts, arm: Arm) -> tuple[float, float, float]:
    """All of it the smaller the better."""
    mean = facts.mean(arm.name).mean
    return mean if lower_is_better(facts.score) else -mean, arm.cost.flops_train, arm.cost.cache_bytes


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _said(facts: Facts) -> str:
    names = [words.named(arm.name, 40) for arm in front(facts)]
    return (
        f"On the front of {metric_word(facts.score)}, training FLOPs and cache together: {words.listed(names, 10)} "
        f"({len(names)} of {words.plural(len(facts.by_mean()), 'arm')}). Filled marks are on it, hollow ones are not. "
        "The front is that of means: where intervals overlap, another sample of seeds may draw it differently."
    )


def _chart(facts: Facts, price: Price) -> Chart:
    arms = sorted(facts.by_mean(), key=price.of)
    on = {arm.name for arm in front(facts)}
    what = metric_word(facts.score)
    rows = [
        [facts.cell(arm.name), price.text(price.of(arm)), str(facts.mean(arm.name)), "yes" if arm.name in on else "no"]
        for arm in arms
    ]
    table = Table("The numbers", ["arm", price.label, what, "on the front"], rows, frozenset({1, 2}), folded=True)
    about = f"x: {price.label}, logarithmic. The steps are the front of this pair alone."
    caption = f"{facts.averaged}. {about}{facts.guessing(facts.score)}"
    alt = f"{what} against {price.label}. " + "; ".join(
        f"{words.named(arm.name, 40)}: {facts.mean(arm.name)} for {price.text(price.of(arm))}" for arm in arms[:12]
    )
    draw = partial(_draw, facts=facts, price=price, on=on)
    return Chart(f"front-{price.name}", _finding(facts, price), caption, alt, draw, table)


def _finding(facts: Facts, price: Price) -> str:
    """The price of the cheapest of the leaders against that of the cheapest of all, in words."""
    what, unit = metric_word(facts.score), "FLOPs" if price.name == "flops" else "cache"
    if not facts.told_apart():
        return f"What more {unit} buys is not seen: no arm is told apart from the best mean {what}"
    best, cheap = (min(arms, key=price.of) for arms in (facts.leaders(), facts.by_mean()))
    low, high = (words.fixed(facts.mean(arm.name).mean) for arm in (cheap, best))
    name = words.named(cheap.name)
    if cheap is facts.by_mean()[0]:
        return f"{name} has the best mean {what} ({low}) and the least {unit}"
    if cheap.name == best.name:
        return f"The least {unit}, of {name}, is enough: its {what} ({low}) is not told apart from the best"
    times = price.of(best) / price.of(cheap) if price.of(cheap) else float("inf")
    return f"From {what} {low} ({name}) to {high} ({words.named(best.name)}) takes {times:.3g}× the {unit}"


def _draw(axes: Axes, *, facts: Facts, price: Price, on: set[str]) -> None:
    arms = sorted(facts.by_mean(), key=price.of)
    axes.set_xscale("log")
    _stairs(axes, facts, price, arms)
    places = apart([math.log(price.of(arm)) for arm in arms])
    for arm, place in zip(arms, places, strict=True):
        fill = {} if arm.name in on else {"markerfacecolor": PAPER}
        point(axes, math.exp(place), facts.mean(arm.name), facts.looks[arm.name], **fill)
    frame(axes, facts, [arm.name for arm in arms], facts.score)
    guessed(axes, facts, facts.score)
    few_ticks(axes, [price.of(arm) for arm in arms], price.text)
    axes.set_xlabel(f"{price.label} (logarithmic)")
    axes.set_ylabel(facts.label(facts.score))
    legend(axes, facts, [arm.name for arm in facts.arms if arm in arms])


def few_ticks(axes: Axes, values: list[float], text: Callable[[float], str]) -> None:
    """Ticks where there are values, as far apart on a logarithmic axis as their text needs."""
    low, high = min(values), max(values)
    ticks = thinned(sorted(set(values)), math.log, 5)
    axes.set_xticks(ticks, [text(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low * (low / high) ** 0.07, high * (high / low) ** 0.07)


def _stairs(axes: Axes, facts: Facts, price: Price, arms: list[Arm]) -> None:
    """The best mean that is to be had for each price."""
    sign = -1 if lower_is_better(facts.score) else 1
    steps: list[tuple[float, float]] = []
    for arm in arms:
        mean = facts.mean(arm.name).mean
        if not steps or sign * mean > sign * steps[-1][1]:
            steps.append((price.of(arm), mean))
    ends = [*steps, (max(price.of(arm) for arm in arms), steps[-1][1])]
    axes.step(*zip(*ends, strict=True), where="post", color=FAINT, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1.8)
