"""Wilson's interval: equal to statsmodels, exact at its ends, and covering what it should."""

import math

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint

from hybridlm.ablate.statistics import wilson
from hybridlm.errors import DataError, SpecError


@pytest.mark.parametrize("n", [1, 3, 5, 10, 1000])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_ends_are_those_of_statsmodels(n, level):
    for k in {0, 1, n // 2, n}:
        np.testing.assert_allclose(wilson(k, n, level), proportion_confint(k, n, 1 - level, "wilson"), atol=1e-12)


def test_none_and_all_reach_the_ends_exactly():
    assert {wilson(0, n)[0] for n in range(1, 100)} == {0.0}
    assert {wilson(n, n)[1] for n in range(1, 100)} == {1.0}
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_more_than_all_is_refused(k, n):
    with pytest.raises(DataError, match="0 <= k <= n"):
        wilson(k, n)


@pytest.mark.parametrize("level", [0, 1, 1.5, float("nan"), True, "0.95"])
def test_a_level_lies_between_0_and_1(level):
    with pytest.raises(SpecError, match="level"):
        wilson(3, 5, level)


def coverage(n: int, share: float) -> float:
    """The exact probability that the interval of n runs holds the true share."""
    held = [k for k in range(n + 1) if wilson(k, n)[0] <= share <= wilson(k, n)[1]]
    return sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in held)


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_mean_coverage_over_all_shares(n):
    """95% on average, and nowhere below 82%: with n runs there are n + 1 intervals only (Brown, Cai, DasGupta 2001)."""
    covered = [coverage(n, share) for share in np.linspace(0.001, 0.999, 999)]
    assert 0.945 <= np.mean(covered) <= 0.97
    assert min(covered) > 0.82
