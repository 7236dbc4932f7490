"""The results of a study as the sections ask for them: means with intervals, the looks of arms, what to say of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hybridlm.ablate.report import blocks, words
from hybridlm.ablate.report.style import NAMED, Look, looks
from hybridlm.ablate.results import Results, is_share, lower_is_better
from hybridlm.ablate.statistics import Difference, mean_interval, paired_difference
from hybridlm.ablate.study import Arm, Study
from hybridlm.ablate.subject import guess_of

LEVEL = 0.95
MOST_METRICS = 4
CLOSE = 0.1
"""Share of the way from the best to the worst mean within which an arm is as good as the best."""
LABELS = {
    "accuracy": "accuracy (share right)",
    "solved": "samples solved (share)",
    "loss": "loss (nats)",
    "bits_per_byte": "bits per byte",
}


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds and its 95% interval, which is infinite for one seed; NaN for none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval goes below and above the mean; 0 without one."""
        below, above = self.mean - self.low, self.high - self.mean
        return (below if np.isfinite(below) else 0.0, above if np.isfinite(above) else 0.0)

    def __str__(self) -> str:
        interval = f" ({words.interval(self.low, self.high)})" if np.isfinite(self.low) else ""
        return words.fixed(self.mean) + interval


@dataclass(frozen=True)
class Facts:
    """What the report is about."""

    results: Results

    @property
    def study(self) -> Study:
        """Its study."""
        return self.results.study

    @property
    def score(self) -> str:
        """The metric by which learning rates are chosen, and which most figures show."""
        return self.results.score

    @cached_property
    def arms(self) -> list[Arm]:
        """Arms with at least one finished trial, in the study's order."""
        present = {row["arm"] for row in self.results.table}
        return [arm for arm in self.study.arms if arm.name in present]

    @cached_property
    def looks(self) -> Mapping[str, Look]:
        """{arm: how it is drawn}, the same in every figure."""
        claimed = [name for claim in self.study.claims for name in (claim.arm, claim.over, *claim.arms) if name]
        return looks({arm.name: arm.coordinates for arm in self.study.arms}, [self.study.reference, *claimed])

    @property
    def crowded(self) -> bool:
        """Whether there are more arms than can have a colour each."""
        return len(self.arms) > len(NAMED)

    @cached_property
    def best(self) -> dict[str, float | None]:
        """{arm: its best learning rate}."""
        return {arm.name: self.results.best_lr(arm.name) for arm in self.arms}

    def cell(self, arm: str) -> blocks.Arm:
        """An arm's name for a table."""
        return blocks.Arm(arm, self.looks[arm].mark)

    def values(self, arm: str, metric: str, lr: float | None = None) -> np.ndarray:
        """(seeds,) of a metric at a learning rate (default: the arm's best); NaN where there is none."""
        return self.results.values(arm, metric, lr)

    def mean(self, arm: str, metric: str | None = None, lr: float | None = None) -> Mean:
        """Over the seeds that have the metric (default: the score), at a learning rate (default: the arm's best).

        The interval of a share ends at 0 and 1.
        """
        metric = metric or self.score
        found = mean_of(self.values(arm, metric, lr))
        return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0)) if is_share(metric) else found

    @cached_property
    def shown(self) -> list[str]:
        """The metrics that have figures: the score, and of each further test its accuracy, or else its loss."""
        tests: dict[str, list[str]] = {}
        for metric in self.results.metrics():
            test, _, measure = metric.rpartition(".")
            tests.setdefault(test, []).append(measure)
        tests.pop("", None)
        main = [f"{test}.{'accuracy' if 'accuracy' in measures else measures[0]}" for test, measures in tests.items()]
        return [metric for metric in [self.score, *main][:MOST_METRICS] if self.by_mean(metric)]

    def by_mean(self, metric: str | None = None) -> list[Arm]:
        """Arms with a mean of the metric, the best first."""
        metric = metric or self.score
        sign = 1 if lower_is_better(metric) else -1
        means = {arm.name: self.mean(arm.name, metric).mean for arm in self.arms}
        return sorted((a for a in self.arms if np.isfinite(means[a.name])), key=lambda arm: sign * means[arm.name])

    def difference(self, arm: str, other: str, metric: str | None = None) -> Difference | None:
        """The paired difference of two arms, over the seeds that both have; None: there are none."""
        metric = metric or self.score
        a, b = (self.values(name, metric) for name in (arm, other))
        both = np.isfinite(a) & np.isfinite(b)
        if not both.any():
            return None
        found = paired_difference(a[both], b[both], level=LEVEL)
        return found.within(-1.0, 1.0) if is_share(metric) else found

    def rivals(self, metric: str | None = None) -> list[Arm]:
        """The arm with the best mean, and those whose paired difference to it may be 0, as far as seeds tell."""
        order = self.by_mean(metric)
        told = {arm.name: self.difference(arm.name, order[0].name, metric) for arm in order}
        return [arm for arm in order if (found := told[arm.name]) and (found.low <= 0 <= found.high)]

    def leaders(self, metric: str | None = None) -> list[Arm]:
        """Of the rivals those whose mean is close to the best: not to be told apart is not to be as good."""
        means = {arm.name: self.mean(arm.name, metric).mean for arm in self.by_mean(metric)}
        near = CLOSE * (max(means.values()) - min(means.values()))
        rivals = self.rivals(metric)
        return [arm for arm in rivals if abs(means[arm.name] - means[rivals[0].name]) <= near]

    def told_apart(self, metric: str | None = None) -> bool:
        """Whether any arm is told apart from the best mean; one arm alone is."""
        order = self.by_mean(metric)
        return len(order) == 1 or len(self.rivals(metric)) < len(order)

    def finding(self, metric: str | None = None) -> str:
        """Which arms are best, for a title: one is named only if the others are told apart from it."""
        metric = metric or self.score
        first, trailing = self.leaders(metric), len(self.rivals(metric)) - len(self.leaders(metric))
        names = words.listed([words.named(arm.name) for arm in first], 3)
        what, best = metric_word(metric), words.fixed(self.mean(first[0].name, metric).mean)
        if not self.told_apart(metric):
            return f"No arm is best by {what}: none is told apart from the best mean"
        unsure = f"; {trailing} more trail{'s' * (trailing == 1)}, too uneven to be sure" if trailing else ""
        if len(first) > 1:
            return f"{names} lead by {what}, not told apart (best mean {best}){unsure}"
        return f"{names} {'leads' if trailing else 'is best'} by {what} ({best}){unsure}"

    def guess(self, metric: str) -> float | None:
        """The accuracy of the best guess that ignores the sequence; None: text, or another metric than accuracy."""
        test, _, measure = metric.rpartition(".")
        data = next((one for one in self.study.eval if one.name == test), None) if test else self.study.data
        return guess_of(data) if measure == "accuracy" and data and data.task else None

    def guessing(self, metric: str) -> str:
        """What captions say of it."""
        guess = self.guess(metric)
        return "" if guess is None else f" Guessing gets {words.fixed(guess)}, the dotted line."

    @property
    def seeds(self) -> str:
        """What captions say of n."""
        found = {self.mean(arm.name).n for arm in self.arms}
        return words.plural(max(found), "seed") if len(found) == 1 else f"{min(found)} to {max(found)} seeds"

    @property
    def averaged(self) -> str:
        """How most figures came about, for their captions."""
        return f"Means over n = {self.seeds}, at each arm's best learning rate; bars are 95% intervals over seeds"

    def label(self, metric: str) -> str:
        """A metric with its unit, for an axis; of a test with its name."""
        test, _, measure = metric.rpartition(".")
        text = LABELS.get(measure, measure.replace("_", " "))
        return words.readable(f"{text} on {words.readable(test, 16)}" if test else text)


def mean_of(values: np.ndarray) -> Mean:
    """Of the values that are numbers."""
    there = values[np.isfinite(values)]
    if not len(there):
        return Mean(math.nan, math.nan, math.nan, 0)
    found = mean_interval(there, level=LEVEL)
    return Mean(found.mean, found.low, found.high, found.n)


def metric_word(metric: str) -> str:
    """A metric within a sentence."""
    test, _, measure = metric.rpartition(".")
    word = measure.replace("_", " ")
    return words.readable(f"{word} on {words.readable(test, 28)}" if test else word)
