"""Intervals of a mean over seeds, and of the mean difference of two arms whose seeds are paired.

With d_1 .. d_n, their mean m and standard deviation s, both intervals say where m - mu, in units of s / sqrt(n), is
likely to fall:

    t             as for normal d: m -+ q s / sqrt(n), q a quantile of Student's t with n - 1 degrees of freedom
    bootstrap-t   as among resamples of d: m - q_high s / sqrt(n) .. m - q_low s / sqrt(n), q quantiles of
                  (m* - m) sqrt(n) / s* (Efron and Tibshirani 1993, chapter 12)

From FEWEST seeds on the second is taken: it bears skewed and two-humped differences, and costs a third in width with
five seeds. docs/statistics.md has the measured coverage of both.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hybridlm.ablate.statistics.levels import level_of
from hybridlm.ablate.statistics.student import quantile, tail
from hybridlm.checks import whole
from hybridlm.errors import DataError

FEWEST = 5  # seeds that the bootstrap-t interval needs: of 3, every ninth resample has no spread
ROUNDING = 1e-12  # of sums of probabilities


@dataclass(frozen=True)
class Difference:
    """A mean over seeds with its interval.

    mean:   of the differences, or values.
    low:    lower end of the interval, -inf for one seed.
    high:   upper end of the interval, inf for one seed.
    p:      two-sided p value of a true mean of 0: at most 1 - level exactly where the interval leaves 0 out.
    n:      seeds.
    sd:     standard deviation over seeds, with n - 1; NaN for one seed.
    method: "t" or "bootstrap-t"; "none" for one seed.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int
    sd: float
    method: str

    def within(self, least: float, most: float) -> Difference:
        """Its interval cut off at what a mean can be: a difference of shares lies between -1 and 1. An interval that
        few and uneven seeds make endless holds no more than that."""
        return replace(self, low=min(max(self.low, least), most), high=max(min(self.high, most), least))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The mean of a - b, both (seeds,) with the same seeds in the same order; see `mean_interval`.

    DataError: the lengths differ, a number is not finite, or there is none.
    """
    a, b = _row("a", a), _row("b", b)
    if len(a) != len(b):
        raise DataError(f"a has {len(a)} seeds and b {len(b)}; a pair needs both")
    return mean_interval(a - b, level=level, draws=draws, seed=seed)


def mean_interval(
    values: Sequence[float] | np.ndarray, *, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Difference:
    """The mean of values (seeds,), with its interval at this level.

    draws: resamples; where there are no more different ones, all are taken, each as often as it would come.
    seed:  of the resamples; the same call gives the same interval.

    The t interval is taken below FEWEST seeds, and where so many values are alike that the ends of the bootstrap-t
    interval would be infinite. DataError: a number is not finite, or there is none; SpecError: level or draws.
    """
    d, share = _row("values", values), (1 - level_of(level)) / 2
    whole("draws", draws, low=math.ceil(2 / share))
    n, mean = len(d), float(d.mean())
    if n == 1:
        return Difference(mean, -math.inf, math.inf, 1.0, 1, math.nan, "none")
    sd = float(d.std(ddof=1))
    if np.ptp(d) == 0:
        return Difference(mean, mean, mean, float(mean == 0), n, 0.0, "t")
    error = sd / math.sqrt(n)
    if n >= FEWEST:
        low, high, p = _bootstrap_t(d - mean, mean / error, share, draws, seed)
        if math.isfinite(low) and math.isfinite(high):
            return Difference(mean, mean - high * error, mean - low * error, p, n, sd, "bootstrap-t")
    half = quantile(share, n - 1) * error
    p = min(1.0, 2 * tail(abs(mean) / error, n - 1))
    return Difference(mean, mean - half, mean + half, p, n, sd, "t")


def _row(field: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    row = np.asarray(values, dtype=np.float64)
    if row.ndim != 1 or not row.size or not np.isfinite(row).all():
        raise DataError(f"{field}: {row.tolist()}; finite numbers are needed, one a seed")
    return row


# --------------------------------------------------------------------------------------------------------- resampling
def _bootstrap_t(d: np.ndarray, t: float, share: float, draws: int, seed: int) -> tuple[float, float, float]:
    """Quantiles (low, high) of t* that leave `share` outside at each end, and the two-sided p value of t.

    d: (n,) differences with their mean taken off. A resample without spread counts as infinite, to its side.
    """
    counts, weights = _resamples(len(d), draws, seed)
    mean = counts @ d / len(d)
    variance = counts @ d**2 / len(d) - mean**2
    degenerate = variance <= 1e-9 * d.var()
    spread = np.sqrt(np.where(degenerate, 1, variance) / (len(d) - 1))
    found = np.where(degenerate, np.copysign(np.inf, mean), mean / spread)
    order = np.argsort(found)
    found, weights = found[order], weights[order]
    below = np.cumsum(weights)  # P(t* <= found)
    above = np.cumsum(weights[::-1])[::-1]  # P(t* >= found)
    more = share + ROUNDING
    low = found[np.searchsorted(below, more)]  # the first with more than `share` up to it
    high = found[len(found) - 1 - np.searchsorted(above[::-1], more)]
    tails = weights[found >= t].sum(), weights[found <= t].sum()
    return float(low), float(high), float(min(1.0, 2 * max(min(tails) - ROUNDING, 1 / draws)))


@functools.lru_cache(maxsize=16)
def _resamples(n: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(r, n) how often a resample holds each value, and (r,) its probability: all of them, or so many drawn."""
    if math.comb(2 * n - 1, n) > draws:
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
        return counts.astype(np.float64), np.full(draws, 1 / draws)
    # Stars and bars: n stars and n - 1 bars in a row, the stars between two bars are how often a value comes.
    bars = np.array(list(itertools.combinations(range(2 * n - 1), n - 1)))
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, 2 * n - 1)))
    counts = np.diff(edges, axis=1) - 1
    ways = [math.factorial(n) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return counts.astype(np.float64), np.array(ways) / float(n) ** n
