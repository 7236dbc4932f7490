"""Several tests at once: Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hybridlm.errors import DataError


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """(m,) p values -> (m,) adjusted ones, float64, in the same order (Holm 1979, section 2).

    Rejecting those of at most 5% is wrong about any true null in at most 5% of studies, however the tests depend on
    each other. DataError: a value outside [0, 1].
    """
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"p: {p.tolist()}; a list of numbers from 0 to 1 is needed")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    left = np.arange(len(p), 0, -1)  # hypotheses that are not rejected yet
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * left))
    return adjusted
