"""The interval of a share of right answers."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """The shares p with |share - p| <= z sqrt(p (1 - p) / count): inside [0, 1], and of use at 0 and 1 too.

    share: of `count` > 0 independent trials. level: strictly between 0 and 1. Wilson (1927).
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    square = z * z / count
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    low, high = (middle - half) / (1 + square), (middle + half) / (1 + square)
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)  # exactly, not up to rounding
