"""Where along an axis a loss is lowest: a quadratic in z = log(x + eps), fitted to each seed.

    loss_s(z) = a_s + b_s z + c_s z^2

The interval holds every z at which the slopes b_s + 2 c_s z, one a seed, may have mean 0 by a t test: Fieller's
(1954), whose coverage is exact for normal noise however the points of a seed depend on each other. Resampling the
few seeds there are would be too narrow. The ends of the axis belong to it where the slope may point outwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybridlm.ablate.statistics.levels import level_of
from hybridlm.ablate.statistics.student import f_tail, quantile
from hybridlm.checks import real
from hybridlm.errors import DataError, SpecError

MISFIT = 0.01  # a p value of the quadratic below which it is not believed alone
ROUNDED = 64 * np.finfo(np.float64).eps  # of a loss: what fitting a quadratic may leave of one


@dataclass(frozen=True)
class Argmin:
    """The lowest point of an axis, in units of x.

    best:   the fitted minimum, within the measured points.
    low:    lower end of its interval.
    high:   upper end of its interval.
    flat:   the interval spans over half of the axis, in z: no optimum is named.
    misfit: p value of the quadratic against the measured means, NaN where it cannot be had (three points, one seed).
    """

    best: float
    low: float
    high: float
    flat: bool
    misfit: float


def argmin_interval(
    x: Sequence[float] | np.ndarray,
    losses: Sequence[Sequence[float]] | np.ndarray,
    eps: float | None = None,
    *,
    level: float = 0.95,
) -> Argmin:
    """Where losses (seeds, k) at x (k,) are lowest; what is best at its largest is given with its sign turned.

    x:   at least three different numbers from 0 up, in any order.
    eps: what is added before the logarithm, by default the smallest positive x.

    One seed has no interval: it is flat. Where the measured means are no quadratic, at p < MISFIT, the interval is
    widened to every measured point that cannot be told from the lowest one. DataError: shapes, or a number that is
    not finite; SpecError: eps or level.
    """
    x, losses = _points(x, losses)
    added = _epsilon(x, eps)
    z = np.log(x + added)
    share = (1 - level_of(level)) / 2
    unit = (z - z[0]) / (z[-1] - z[0])  # 0 to 1: the fit is well conditioned whatever the axis
    design = np.stack([np.ones_like(unit), unit, unit**2], axis=1)
    curves, *_ = np.linalg.lstsq(design, losses.T, rcond=None)  # NumPy 1 has another default, and warns
    best, low, high = _minimum(curves), 0.0, 1.0
    misfit = _misfit(losses, curves.T @ design.T)
    if len(losses) > 1:
        low, high = _fieller(curves[1], curves[2], quantile(share, len(losses) - 1))
        low, high = min(low, best), max(high, best)
        if misfit < MISFIT:
            tied = unit[_tied(losses, share)]
            low, high = min(low, tied.min()), max(high, tied.max())
    ends = (
        float(np.exp(np.interp(place, [0, 1], z[[0, -1]]) - z[0]) * (x[0] + added) - added)
        for place in (best, low, high)
    )
    return Argmin(*ends, flat=bool(high - low > 0.5), misfit=misfit)


def _points(x: Sequence[float] | np.ndarray, losses: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(k,) rising and (seeds, k), checked."""
    x, losses = np.asarray(x, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if x.ndim != 1 or not (np.isfinite(x) & (x >= 0)).all() or len(np.unique(x)) < 3:
        raise DataError(f"x: {x.tolist()}; at least three different numbers from 0 up are needed")
    if losses.ndim != 2 or losses.shape[1] != len(x) or not len(losses) or not np.isfinite(losses).all():
        raise DataError(f"losses: shape {losses.shape}; finite numbers (seeds, {len(x)}) are needed, one a point")
    order = np.argsort(x, kind="stable")
    return x[order], losses[:, order]


def _epsilon(x: np.ndarray, eps: float | None) -> float:
    if eps is None:
        return float(x[x > 0].min())
    if real("eps", eps, 0) + x[0] <= 0:
        raise SpecError(f"eps: {eps}; the axis begins at 0, whose logarithm needs eps above 0")
    return float(eps)


def _minimum(curves: np.ndarray) -> float:
    """Where in [0, 1] the mean curve is lowest: at its vertex or at an end. curves (3, seeds)."""
    a, b, c = curves.mean(axis=1)
    places = [0.0, 1.0] + ([-b / (2 * c)] if c > 0 and 0 < -b < 2 * c else [])
    return float(min(places, key=lambda u: a + b * u + c * u * u))


def _fieller(b: np.ndarray, c: np.ndarray, q: float) -> tuple[float, float]:
    """The hull of the u in [0, 1] where the slopes b + 2 c u, one a seed, may mean a minimum: (inf, -inf) if none.

    |mean slope| <= q times its standard error is a quadratic inequality in u; between its roots it cannot change.
    """
    n = len(b)
    cov = np.cov(np.stack([b, 2 * c])) * q * q / n
    mean_b, mean_c = b.mean(), 2 * c.mean()
    square, linear, constant = mean_c**2 - cov[1, 1], 2 * (mean_b * mean_c - cov[0, 1]), mean_b**2 - cov[0, 0]
    roots = np.roots([square, linear, constant])
    cuts = np.unique([0.0, 1.0, *(root.real for root in roots if abs(root.imag) < 1e-12 and 0 < root.real < 1)])
    kept = [
        cuts[i : i + 2] for i, u in enumerate((cuts[1:] + cuts[:-1]) / 2) if (square * u + linear) * u + constant <= 0
    ]
    outwards = [[end] for end, slope in ((0.0, mean_b), (1.0, -mean_b - mean_c)) if slope >= 0]
    places = [float(place) for part in [*kept, *outwards] for place in part]
    return min(places, default=math.inf), max(places, default=-math.inf)


def _misfit(losses: np.ndarray, fitted: np.ndarray) -> float:
    """p value of the F test of lack of fit: what the means leave over, against what each seed leaves around them.

    1 where the means leave over what float64 rounds away: against more of it the test would be a draw.
    """
    seeds, points = losses.shape
    left = losses - fitted
    mean, free = left.mean(axis=0), points - 3
    within = float(((left - mean) ** 2).sum())
    if free == 0 or seeds == 1:
        return math.nan
    if np.abs(mean).max() <= ROUNDED * np.abs(losses).max():
        return 1.0
    between = seeds * float((mean**2).sum())
    f = between * (seeds - 1) / within if within else math.inf
    return f_tail(f, free, free * (seeds - 1))


def _tied(losses: np.ndarray, share: float) -> np.ndarray:
    """(k,) bool: points whose paired difference to the lowest is not above 0, by t tests that share one level."""
    seeds, points = losses.shape
    above = losses - losses[:, [int(losses.mean(axis=0).argmin())]]
    error = above.std(axis=0, ddof=1) / math.sqrt(seeds)
    return above.mean(axis=0) <= quantile(share / (points - 1), seeds - 1) * error
