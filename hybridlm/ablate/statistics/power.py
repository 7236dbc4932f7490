"""What so many seeds could have found."""

from __future__ import annotations

import functools
import math

from hybridlm.ablate.statistics.levels import level_of
from hybridlm.ablate.statistics.student import quantile, shifted_tail
from hybridlm.checks import real, whole


def minimum_detectable(sd: float, n: int, power: float = 0.8, level: float = 0.95) -> float:
    """The mean difference that a two-sided paired t test of n seeds would find with this power, in the unit of sd.

    sd: standard deviation of the paired differences. The power of the test against a true mean d is that of the
    non-central t with shift sqrt(n) d / sd (Cohen 1988, chapter 2). Infinite for one seed, 0 without spread.
    SpecError: sd, n, power or level out of range.
    """
    sd, n = real("sd", sd, 0), whole("n", n)
    power, level = level_of(power, "power"), level_of(level)
    return sd * _effect(n, power, level) if n > 1 else math.inf


@functools.lru_cache(maxsize=1024)
def _effect(n: int, power: float, level: float) -> float:
    """The same for a spread of 1, by bisection."""
    low, high = 0.0, 1.0
    while _power(high, n, level) < power:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _power(middle, n, level) < power else (low, middle)
    return high


def _power(effect: float, n: int, level: float) -> float:
    """P(|t| is beyond its quantile) where the mean is `effect` standard deviations."""
    bar, shift = quantile((1 - level) / 2, n - 1), effect * math.sqrt(n)
    return shifted_tail(bar, n - 1, shift) + 1 - shifted_tail(-bar, n - 1, shift)
