"""The share of seeds that solved a task, or of answers that were right."""

from __future__ import annotations

from hybridlm.ablate.statistics.levels import level_of
from hybridlm.errors import DataError
from hybridlm.tasks import proportion


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a share of which k of n were seen: the shares p with |k/n - p| <= z sqrt(p (1 - p) / n).

    Wilson (1927); (0, 1) where nothing was seen. DataError: k or n is negative, or k > n; SpecError: level.
    """
    if not 0 <= k <= n:
        raise DataError(f"k: {k}, n: {n}; k counts some of n, so 0 <= k <= n is needed")
    if n == 0:
        return 0.0, 1.0
    return proportion.wilson(k / n, n, level_of(level))
