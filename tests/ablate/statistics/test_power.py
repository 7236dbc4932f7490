"""The minimum detectable effect has, by statsmodels, the power that it is said to have."""

import math

import numpy as np
import pytest
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower

from hybridlm.ablate.statistics import minimum_detectable
from hybridlm.errors import SpecError


@pytest.mark.parametrize("n", [3, 5, 10, 100])
@pytest.mark.parametrize("power", [0.5, 0.8])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_its_power_is_what_was_asked(n, power, level):
    effect = minimum_detectable(1.0, n, power, level)
    assert TTestPower().power(effect, n, 1 - level) == pytest.approx(power, abs=1e-10)


@pytest.mark.parametrize(("n", "power", "level"), [(2, 0.8, 0.95), (3, 0.99, 0.99), (7, 0.99, 0.999)])
def test_its_power_by_integration(n, power, level):
    """Where the non-central t of scipy is no number: averaged over the spread of the sample, by an adaptive rule."""
    shift, bar = minimum_detectable(1.0, n, power, level) * math.sqrt(n), stats.t.isf((1 - level) / 2, n - 1)

    def found(s):
        density = 2 * s * (n - 1) * stats.chi2.pdf(s * s * (n - 1), n - 1)
        return density * (stats.norm.sf(bar * s - shift) + stats.norm.cdf(-bar * s - shift))

    assert integrate.quad(found, 0, 20, epsabs=1e-13, limit=500)[0] == pytest.approx(power, abs=1e-10)


def test_it_is_in_the_unit_of_the_spread():
    assert minimum_detectable(0.03, 5) == pytest.approx(0.03 * minimum_detectable(1.0, 5), rel=1e-14)


def test_without_spread_anything_is_found_and_with_one_seed_nothing():
    assert minimum_detectable(0.0, 5) == 0.0
    assert minimum_detectable(1.0, 1) == math.inf


@pytest.mark.parametrize("given", [{"sd": -1.0}, {"sd": math.nan}, {"n": 0}, {"n": 2.0}, {"power": 1.0}, {"level": 0}])
def test_what_is_out_of_range_is_refused_by_name(given):
    with pytest.raises(SpecError, match=next(iter(given))):
        minimum_detectable(**{"sd": 1.0, "n": 5, **given})


def test_so_often_it_is_found():
    """2,000 studies whose true difference is the least detectable: 80% of t intervals leave 0 out, within 3%."""
    seeds = 4  # the t interval, whose power this is
    d = np.random.default_rng(0).normal(minimum_detectable(1.0, seeds), 1.0, (2000, seeds))
    t = d.mean(axis=1) / d.std(axis=1, ddof=1) * math.sqrt(seeds)
    assert np.mean(np.abs(t) > 3.182446305284263) == pytest.approx(0.8, abs=0.03)
