"""What the figures say of a claim, by its kind: a bar, a difference, a trend, or where along an axis the best lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from hybridlm.ablate.doubts import STEPS, at_the_edge, grid_end, still_rising
from hybridlm.ablate.results import is_share
from hybridlm.ablate.statistics import Difference, argmin_interval, mean_interval, minimum_detectable, wilson

if TYPE_CHECKING:
    from hybridlm.ablate.results import Results
    from hybridlm.ablate.study import Arm, Claim

Word = Literal["supported", "refuted", "undetermined"]
LEVEL = 0.95


@dataclass(frozen=True)
class Finding:
    """What the figures say.

    verdict: of the figures alone.
    figures: a sentence.
    doubts:  why the verdict does not stand though the figures give it.
    """

    verdict: Word
    figures: str
    doubts: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------- bar
def bar(claim: Claim, results: Results) -> Finding:
    """`at_least` or `at_most`, in so many seeds. Both words are about these seeds; Wilson's interval is of all."""
    values, least = _values(claim, results, claim.arm), claim.at_least is not None
    line = claim.at_least if least else claim.at_most
    needed = len(values) if claim.seeds is None else claim.seeds
    holds = values >= line if least else values <= line
    passed = int(holds.sum())
    verdict = "supported" if passed >= needed else "refuted"
    low, high = wilson(passed, len(values), LEVEL)
    figures = (
        f"{claim.metric} of {claim.arm} is {'at least' if least else 'at most'} {line:g} in {passed} of {len(values)} "
        f"seeds ({_figure(values.min())} to {_figure(values.max())}), {needed} are asked for; of all seeds it would be "
        f"in {low:.0%} to {high:.0%}"
    )
    weak = (least != claim.higher_is_better) == (verdict == "supported")
    doubts = (at_the_edge(claim, results, claim.arm, line), still_rising(claim, results, holds, needed)) if weak else ()
    return Finding(verdict, figures, tuple(doubt for doubt in doubts if doubt))


# --------------------------------------------------------------------------------------------------------- difference
def difference(claim: Claim, results: Results) -> Finding:
    """`arm` better than `over` by more than `by`: the interval of the paired difference lies above it, or below it."""
    asked = claim.by or 0.0
    found = _better(claim, results, claim.arm, claim.over)
    figures = f"{_compared(claim, claim.arm, claim.over, found)}, better by more than {asked:g} is asked for"
    if found.low > asked:
        return Finding("supported", figures, _doubts_of_lesser(claim, results, claim.arm, claim.over, -asked))
    if found.high < asked:
        return Finding("refuted", figures, _doubts_of_lesser(claim, results, claim.over, claim.arm, asked))
    return Finding("undetermined", figures + _power(found))


def trend(claim: Claim, results: Results) -> Finding:
    """Each of `arms` better than the one before by more than `increasing`.

    Supported where every interval lies above it: all must hold, so that none needs a correction (Berger 1982). Refuted
    where one lies below it, at a level that the intervals share (Bonferroni).
    """
    asked, steps = claim.increasing or 0.0, list(zip(claim.arms[1:], claim.arms, strict=False))
    found = [_better(claim, results, arm, before) for arm, before in steps]
    shared = 1 - (1 - LEVEL) / len(steps)
    figures = "; ".join(_compared(claim, *step, one) for step, one in zip(steps, found, strict=True))
    figures += f"; better by more than {asked:g} each is asked for"
    if all(one.low > asked for one in found):
        doubts = [doubt for arm, before in steps for doubt in _doubts_of_lesser(claim, results, arm, before, -asked)]
        return Finding("supported", figures, tuple(doubts))
    below = [step for step in steps if _better(claim, results, *step, level=shared).high < asked]
    if below:
        doubts = [_doubts_of_lesser(claim, results, before, arm, asked) for arm, before in below]
        return Finding("refuted", figures, () if not all(doubts) else doubts[0])  # one step without a doubt is enough
    return Finding("undetermined", figures + _power(max(found, key=lambda one: one.sd)))


def _better(claim: Claim, results: Results, arm: str, other: str, level: float = LEVEL) -> Difference:
    """How much better arm is than other, in the unit of the metric, whichever way is better."""
    sign = 1 if claim.higher_is_better else -1
    return mean_interval(sign * (_capped(claim, results, arm) - _capped(claim, results, other)), level=level)


def _doubts_of_lesser(claim: Claim, results: Results, better: str, lesser: str, asked: float) -> tuple[str, ...]:
    """Why `lesser` may be weak only as it was run. It would have to come within `asked` of the better one."""
    sign = 1 if claim.higher_is_better else -1
    line = float(_capped(claim, results, better).mean()) + sign * asked
    unsolved = int(np.isinf(_values(claim, results, better)).sum())
    doubts = [at_the_edge(claim, results, lesser, line)]
    if unsolved:  # they would need more steps than they count for: the better arm is less good than it looks
        doubts.append(f"{unsolved} runs of {better} never got there, and count as {results.study.train.steps} steps")
    return tuple(doubt for doubt in doubts if doubt)


def _compared(claim: Claim, arm: str, other: str, found: Difference) -> str:
    seeds = f"{found.n} seeds, {found.method}" if found.n > 1 else "one seed, no interval"
    found = found.within(-1.0, 1.0) if is_share(claim.metric) else found
    word, ends = ("better", (found.low, found.high)) if found.mean >= 0 else ("worse", (-found.high, -found.low))
    return (
        f"{arm} is {word} than {other} by {_figure(abs(found.mean))} in {claim.metric} "
        f"({_figure(ends[0])} to {_figure(ends[1])}; {seeds})"
    )


def _power(found: Difference) -> str:
    """How far from the bar a difference would have to be for so many seeds to find it."""
    if found.n == 1:
        return "; one seed has no interval"
    least = minimum_detectable(found.sd, found.n, level=LEVEL)
    return f"; with this spread {found.n} seeds find what is {_figure(least)} from the bar in 80% of studies (t test)"


# ------------------------------------------------------------------------------------------------------------- argmin
def argmin(claim: Claim, results: Results) -> Finding:
    """The best point of an axis lies in `argmin_between`: all of its interval does, or none of it."""
    arms, (first, last) = arms_along(claim.axis, results), claim.argmin_between
    sign = -1 if claim.higher_is_better else 1
    x = sorted({float(arm.coordinates[claim.axis]) for arm in arms})
    points = [[arm.name for arm in arms if arm.coordinates[claim.axis] == place] for place in x]
    losses = np.stack([_mean_of(claim, results, names) for names in points], axis=1)
    found = argmin_interval(x, sign * losses, level=LEVEL)
    figures = (
        f"{claim.metric} is best at {claim.axis} {_figure(found.best)} ({_figure(found.low)} to {_figure(found.high)}; "
        f"{len(losses)} seeds), between {first:g} and {last:g} is asked for"
    )
    edges = [arm.name for arm in arms if grid_end(results, arm.name)]
    if edges:
        figures += f"; the best learning rate of {', '.join(edges)} is at the edge of the grid"
    if found.flat:
        where = f"from {_figure(found.low)} to {_figure(found.high)}"
        flat = f"{claim.metric} is flat along {claim.axis}: the best may lie anywhere {where}, over half of the axis"
        return Finding("undetermined", flat)
    if first <= found.low and found.high <= last:
        return Finding("supported", figures)
    return Finding("refuted" if found.high < first or last < found.low else "undetermined", figures)


def arms_along(axis: str, results: Results) -> list[Arm]:
    """The arms that stand at a place of the axis, in the study's order."""
    return [arm for arm in results.study.arms if axis in arm.coordinates]


def _mean_of(claim: Claim, results: Results, arms: Sequence[str]) -> np.ndarray:
    """(seeds,) the mean over the arms at one place of an axis, which differ in the other axes."""
    return np.mean([_capped(claim, results, arm) for arm in arms], axis=0)


# ------------------------------------------------------------------------------------------------------------ figures
def _values(claim: Claim, results: Results, arm: str) -> np.ndarray:
    """(seeds,) the metric at the arm's best learning rate; steps of a run that never got there are infinite."""
    values = results.values(arm, claim.metric)
    return np.where(np.isnan(values), np.inf, values) if claim.measure == STEPS else values


def _capped(claim: Claim, results: Results, arm: str) -> np.ndarray:
    """The same, where a run that never got there counts as the steps that it had: the least that it would need."""
    values = _values(claim, results, arm)
    return np.minimum(values, results.study.train.steps) if claim.measure == STEPS else values


def _figure(value: float) -> str:
    return "never" if value == np.inf else f"{value:.3g}"
