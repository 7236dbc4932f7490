"""Student's t and Fisher's F, by the incomplete beta function (Abramowitz and Stegun 1964, chapters 6 and 26).

Tails keep their relative accuracy: a p value of 1e-40 is one, not 0.
"""

from __future__ import annotations

import functools
import math
import sys

import numpy as np

NODES = 400  # of Gauss and Legendre's quadrature: far more than the smooth densities here need
SPREADS = 12  # standard deviations to each side, beyond which nothing counts in float64


def tail(t: float, df: int) -> float:
    """P(T > t) of Student's t with df degrees of freedom (A&S 26.7.1)."""
    square = min(t * t, sys.float_info.max / 2)
    half = _beta(df / (df + square), square / (df + square), df / 2, 0.5) / 2
    return half if t >= 0 else 1 - half


@functools.lru_cache(maxsize=1024)
def quantile(share: float, df: int) -> float:
    """The t with P(T > t) = share, for a share in (0, 1/2]; by bisection to the last digit."""
    low, high = 0.0, 1.0
    while tail(high, df) > share:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if tail(middle, df) > share else (low, middle)
    return high


def f_tail(f: float, above: int, below: int) -> float:
    """P(F > f) of Fisher's F with so many degrees of freedom above and below the line (A&S 26.6.2)."""
    f = min(f, sys.float_info.max / (2 * above))
    whole = below + above * f
    return _beta(below / whole, above * f / whole, below / 2, above / 2)


def shifted_tail(t: float, df: int, shift: float) -> float:
    """P((Z + shift) / S > t), the non-central t: Z is normal, df S^2 is chi-squared with df degrees of freedom.

    Given S = s it is P(Z > t s - shift), which is averaged over the density of s.
    """
    width = SPREADS / math.sqrt(2 * df)  # about the standard deviation of S, times SPREADS
    low, high = max(0.0, 1 - width), 1 + width
    nodes, weights = _legendre()
    s = low + (nodes + 1) * (high - low) / 2
    log_density = df / 2 * math.log(df / 2) - math.lgamma(df / 2) + (df - 1) * np.log(s) - df * s**2 / 2 + math.log(2)
    above = np.array([math.erfc((t * value - shift) / math.sqrt(2)) / 2 for value in s.tolist()])
    return float((weights * np.exp(log_density) * above).sum() * (high - low) / 2)


@functools.cache
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(NODES)


def _beta(x: float, y: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function: the continued fraction A&S 26.5.8.

    y: 1 - x, given apart: near 1 the difference would lose its digits.
    """
    if x <= 0 or y <= 0:
        return float(y <= 0)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the complement converges fast
        return 1 - _beta(y, x, b, a)
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(y)
    return math.exp(front) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)) with d_k of A&S 26.5.8, from the front (the method of Lentz 1976)."""
    value = upper = 1.0
    lower = 0.0
    for k in range(1, 100_000):
        m = k // 2
        if k % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        upper, lower = 1 + d / upper, 1 / (1 + d * lower)
        value *= upper * lower
        if abs(upper * lower - 1) < 1e-16:
            break
    return value
