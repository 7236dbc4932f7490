"""Holm's correction: equal to statsmodels, and wrong about a true null in at most 5% of studies."""

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from hybridlm.ablate.statistics import holm, paired_difference
from hybridlm.errors import DataError


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("power", [1, 4])
def test_adjusted_values_are_those_of_statsmodels(count, power):
    p = np.random.default_rng(count).random(count) ** power
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=0, atol=1e-15)


def test_ties_zeros_and_ones():
    np.testing.assert_allclose(holm([0.02, 0.02, 1.0, 0.0]), [0.06, 0.06, 1.0, 0.0], rtol=1e-15)
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("p", [[-0.1], [1.1], [float("nan")], [[0.1]], 0.5])
def test_what_is_no_list_of_p_values_is_refused(p):
    with pytest.raises(DataError, match="0 to 1"):
        holm(p)


def family_wise(studies: int, seeds: int, arms: int, false: int) -> float:
    """The share of studies in which Holm rejects a true null: arms against one reference, `false` really differ."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(studies):
        values = rng.normal(size=(arms + 1, seeds)) + rng.normal(size=seeds)  # the seeds' own part is shared
        values[1 : false + 1] += 5
        p = [paired_difference(arm, values[0]).p for arm in values[1:]]
        wrong += (holm(p)[false:] <= 0.05).any()
    return wrong / studies


def test_family_wise_error_of_few_studies():
    """At most 5%; 400 studies show it as at most 8.3%, three standard deviations on. Without Holm it is 17%."""
    assert family_wise(400, seeds=5, arms=6, false=0) <= 0.083


@pytest.mark.deep
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("false", [0, 2])
def test_family_wise_error(seeds, false):
    assert family_wise(10_000, seeds, arms=6, false=false) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 10_000)
