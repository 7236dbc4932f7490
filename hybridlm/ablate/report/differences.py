"""Paired differences to the reference arm: how large, how sure, and what so few seeds could have found."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import WIDTH, Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import LEVEL, Facts, metric_word
from hybridlm.ablate.report.plots import Row, draw_rows, rows_height
from hybridlm.ablate.results import lower_is_better
from hybridlm.ablate.statistics import Difference, holm, minimum_detectable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Differences to the reference"


def section(facts: Facts) -> Section:
    """A figure a metric: the score, and those of further tests."""
    reference = facts.study.reference
    charts = [chart for metric in facts.shown if (chart := _chart(facts, metric))]
    if not charts:
        return Section(
            "differences", TITLE, left_out=f"no arm has two seeds in common with {words.readable(reference)}."
        )
    about = (
        f"The reference is {words.readable(reference)}. Seeds are paired: each fixes the initial weights and the order "
        "of the data for every arm alike. p values are adjusted by Holm over the arms of a figure; an arm differs if "
        f"its adjusted p is at most {1 - LEVEL:.2g}. The smallest difference that could be found is that of a paired t "
        "test with 80% power at this number of seeds and this spread: a smaller true one would mostly be missed."
    )
    return Section("differences", TITLE, [Paragraph(about), *charts])


def compared(facts: Facts, metric: str) -> dict[str, tuple[Difference, float]]:
    """{arm: its paired difference to the reference, its p by Holm} of arms with at least two common seeds."""
    found = {
        arm.name: facts.difference(arm.name, facts.study.reference, metric)
        for arm in facts.arms
        if arm.name != facts.study.reference
    }
    told = {arm: difference for arm, difference in found.items() if difference and difference.n > 1}
    adjusted = holm([difference.p for difference in told.values()])
    return {arm: (difference, float(p)) for (arm, difference), p in zip(told.items(), adjusted, strict=True)}


def _chart(facts: Facts, metric: str) -> Chart | None:
    if facts.study.reference not in {arm.name for arm in facts.arms}:
        return None
    found = compared(facts, metric)
    if not found:
        return None
    what, n = metric_word(metric), {difference.n for difference, _ in found.values()}
    head = ["arm", "difference", "95% interval", "p", "p (Holm)", "differs", "could be found", "n"]
    rows = [_row(facts, arm, *entry) for arm, entry in found.items()]
    table = Table("The numbers", head, rows, frozenset({1, 2, 3, 4, 6, 7}), folded=True)
    seeds = words.plural(max(n), "seed") if len(n) == 1 else f"{min(n)} to {max(n)} seeds"
    better = "left" if lower_is_better(metric) else "right"
    caption = (
        f"Paired differences in {what}, arm minus {words.named(facts.study.reference, 40)}, over n = {seeds}: marks "
        f"are means, bars 95% intervals over seeds, strokes single seeds; better is {better}."
    )
    alt = "; ".join(
        f"{words.named(arm, 40)}: {words.signed(d.mean)} ({words.interval(d.low, d.high)})"
        for arm, (d, _) in list(found.items())[:12]
    )
    size = (WIDTH, rows_height(len(found)))
    name = f"differences-{words.slug(metric)}"
    return Chart(
        name, _finding(facts, metric, found), caption, alt, partial(_draw, facts=facts, metric=metric), table, size
    )


def _row(facts: Facts, arm: str, difference: Difference, p: float) -> list:
    least = minimum_detectable(difference.sd, difference.n)
    ends = words.interval(difference.low, difference.high, 4)
    figures = [words.signed(difference.mean, 4), ends, words.probability(difference.p), words.probability(p)]
    return [facts.cell(arm), *figures, "yes" if p <= 1 - LEVEL else "no", words.fixed(least, 4), str(difference.n)]


def _finding(facts: Facts, metric: str, found: dict[str, tuple[Difference, float]]) -> str:
    sign = -1 if lower_is_better(metric) else 1
    sure = {arm: sign * difference.mean for arm, (difference, p) in found.items() if p <= 1 - LEVEL}
    better, worse = [a for a, d in sure.items() if d > 0], [a for a, d in sure.items() if d < 0]
    what, reference = metric_word(metric), words.named(facts.study.reference)
    before = sum(not difference.low <= 0 <= difference.high for difference, _ in found.values()) - len(sure)
    if not sure:
        tell = f"after Holm's correction; {before} before it" if before else "as far as these seeds can tell"
        return f"No arm differs from {reference} in {what}, {tell}"
    parts = [f"{_names(better)} better"] * bool(better) + [f"{_names(worse)} worse"] * bool(worse)
    left = len(found) - len(sure) - before
    rest = f"; {before} more before Holm's correction" * (before > 0) + f"; {left} not told apart" * (left > 0)
    return f"Against {reference} by {what}: {', '.join(parts)}{rest}"


def _names(arms: list[str]) -> str:
    return words.named(arms[0]) if len(arms) == 1 else f"{len(arms)} arms"


def _draw(axes: Axes, *, facts: Facts, metric: str) -> None:
    rows = []
    for arm, (difference, _) in compared(facts, metric).items():
        seeds = facts.values(arm, metric) - facts.values(facts.study.reference, metric)
        rows.append(Row(arm, difference.mean, difference.low, difference.high, facts.looks[arm], seeds.tolist()))
    unit = "nats" if metric.endswith("loss") else "bits" if metric.endswith("bits_per_byte") else "share"
    unit = "steps" if metric.endswith("solved_at") else unit
    draw_rows(axes, rows, f"difference in {metric_word(metric)} ({unit})", zero=True)
