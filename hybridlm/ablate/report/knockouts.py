"""What each branch does: the score without it, after training."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hybridlm.ablate.report import words
from hybridlm.ablate.report.blocks import WIDTH, Chart, Paragraph, Section, Table
from hybridlm.ablate.report.facts import Facts, Mean, mean_of, metric_word
from hybridlm.ablate.report.plots import Row, draw_rows, rows_height
from hybridlm.ablate.results import is_share, lower_is_better

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Knock-outs"
NAME = re.compile(r"(\d+)\.([\w#]+)\.(zero|mean)")
HOW = {"zero": "zeroed", "mean": "its mean"}
MOST_ARMS, MOST_BRANCHES = 8, 40
ALIKE = 0.9  # branches of which the least missed is missed so much, beside the most missed, are missed alike


def section(facts: Facts) -> Section:
    """A figure for each arm that has them: those with a colour first."""
    arms = [arm.name for arm in facts.arms if costs(facts, arm.name)]
    if not arms:
        return Section("knockouts", TITLE, left_out="no trial has knock-outs.")
    arms.sort(key=lambda arm: facts.looks[arm].mark is None)
    about = (
        "After training, each attention layer and each SSM branch is taken out in turn, the rest as it is: zeroed, or "
        "replaced by its mean over all held-out tokens. A large change says that the trained model leans on the "
        "branch, not that a model trained without it would fail."
    )
    left = len(arms) - MOST_ARMS
    more = f" results.jsonl has those of {words.plural(left, 'further arm')}." if left > 0 else ""
    return Section("knockouts", TITLE, [Paragraph(about + more), *[_chart(facts, arm) for arm in arms[:MOST_ARMS]]])


def branch_words(branch: str) -> str:
    """A branch in words: 1.attention.zero is the attention of layer 1, zeroed."""
    found = NAME.fullmatch(branch)
    return f"layer {found[1]} {found[2]}, {HOW[found[3]]}" if found else words.readable(branch, 60)


def costs(facts: Facts, arm: str) -> dict[str, np.ndarray]:
    """{branch: (seeds,) of the score without it minus the score with it}, at the arm's best learning rate."""
    found: dict[str, list[float]] = {}
    for row in facts.results.rows(arm, facts.best[arm]):
        for branch, metrics in row["knockouts"].items():
            if facts.score in metrics and facts.score in row:
                found.setdefault(branch, []).append(metrics[facts.score] - row[facts.score])
    return {branch: np.array(values) for branch, values in found.items() if np.isfinite(values).any()}


def change(facts: Facts, values: np.ndarray) -> Mean:
    """The mean of changes (seeds,); of a share it lies between -1 and 1, and so does its interval."""
    found = mean_of(values)
    return replace(found, low=max(found.low, -1.0), high=min(found.high, 1.0)) if is_share(facts.score) else found


def _chart(facts: Facts, arm: str) -> Chart:
    found = costs(facts, arm)
    means = {branch: change(facts, values) for branch, values in found.items()}
    what, shown = metric_word(facts.score), list(found)[:MOST_BRANCHES]
    rows = [
        [branch_words(b), words.signed(m.mean, 4), words.interval(m.low, m.high, 4), str(m.n)] for b, m in means.items()
    ]
    table = Table(
        "The numbers", ["without", f"change in {what}", "95% interval", "n"], rows, frozenset({1, 2, 3}), folded=True
    )
    cut = f" The first {MOST_BRANCHES} of {len(found)} branches; the table has all." if len(found) > len(shown) else ""
    n = words.plural(max(mean.n for mean in means.values()), "seed")
    caption = (
        f"Change in held-out {what} of {words.named(arm, 40)} without each branch, over n = {n}: marks are "
        f"means, bars 95% intervals over seeds, strokes single seeds.{cut}"
    )
    alt = "; ".join(f"{branch_words(b)}: {words.signed(m.mean)}" for b, m in list(means.items())[:16])
    draw = partial(_draw, facts=facts, arm=arm, found={branch: found[branch] for branch in shown})
    size = (WIDTH, rows_height(len(shown)))
    return Chart(f"knockouts-{words.slug(arm)}", _finding(facts, arm, means), caption, alt, draw, table, size)


def _finding(facts: Facts, arm: str, means: dict[str, Mean]) -> str:
    """The branch that is missed most, if it is missed at all and more than the others are."""
    sign = 1 if lower_is_better(facts.score) else -1
    lost = {branch: sign * mean.mean for branch, mean in means.items()}
    worst = max(lost, key=lambda branch: lost[branch])
    mean, name = means[worst], words.named(arm)
    if lost[worst] <= 0:
        return f"{name}: no single branch is missed"
    said = f"{words.signed(mean.mean)} {metric_word(facts.score)}"
    if np.isfinite(mean.low) and mean.low <= 0 <= mean.high:
        return f"{name}: {said} without {branch_words(worst)}, too uneven over seeds to be sure"
    count, least = len(set(map(_place, lost))), min(lost.values())
    if count == 1:
        return f"{name}: {said} without its only branch"
    if least >= ALIKE * lost[worst]:
        found = f"{words.signed(sign * least)} {metric_word(facts.score)}"
        return f"{name} needs each of its {count} branches: {found} or worse without one"
    return f"{name} leans most on {branch_words(worst)}: {said} without it"


def _place(branch: str) -> str:
    """Which branch it is, however it was taken out: 1.attention of 1.attention.zero."""
    return branch.rpartition(".")[0]


def _draw(axes: Axes, *, facts: Facts, arm: str, found: dict[str, np.ndarray]) -> None:
    rows = []
    for branch, values in found.items():
        mean = change(facts, values)
        below, above = mean.reach
        rows.append(
            Row(
                branch_words(branch), mean.mean, mean.mean - below, mean.mean + above, facts.looks[arm], values.tolist()
            )
        )
    draw_rows(axes, rows, f"change in {metric_word(facts.score)} without the branch", zero=True)
