"""t and F against scipy, far into their tails, and the non-central t that a test's power comes from."""

import math

import pytest
from scipy import stats

from hybridlm.ablate.statistics.student import f_tail, quantile, shifted_tail, tail

DEGREES = [1, 2, 3, 4, 9, 30, 999]


@pytest.mark.parametrize("df", DEGREES)
@pytest.mark.parametrize("t", [0.0, 1e-6, 0.1, 1.0, 2.5, 12.7, 300.0])
def test_tails_are_those_of_scipy_relatively(df, t):
    assert tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-10, abs=1e-300)
    assert tail(-t, df) == pytest.approx(stats.t.sf(-t, df), rel=1e-10)


@pytest.mark.parametrize("df", DEGREES)
@pytest.mark.parametrize("share", [0.5, 0.25, 0.025, 0.005, 1e-6, 1e-12])
def test_quantiles_are_those_of_scipy(df, share):
    assert quantile(share, df) == pytest.approx(stats.t.isf(share, df), rel=1e-10, abs=1e-10)


def test_an_infinite_t_has_no_tail():
    assert (tail(math.inf, 4), tail(-math.inf, 4), f_tail(math.inf, 2, 4)) == pytest.approx((0.0, 1.0, 0.0), abs=1e-100)


@pytest.mark.parametrize("above", [1, 2, 7, 40])
@pytest.mark.parametrize("below", [1, 4, 60])
@pytest.mark.parametrize("f", [0.0, 0.3, 1.0, 4.0, 1000.0])
def test_the_tail_of_f_is_that_of_scipy(above, below, f):
    assert f_tail(f, above, below) == pytest.approx(stats.f.sf(f, above, below), rel=1e-10)


@pytest.mark.parametrize("df", [1, 2, 4, 9, 99, 5000])
@pytest.mark.parametrize("t", [-2.0, 0.0, 0.5, 3.0, 12.7])
@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, 10.0])
def test_the_shifted_tail_is_that_of_scipy(df, t, shift):
    assert shifted_tail(t, df, shift) == pytest.approx(stats.nct.sf(t, df, shift), abs=1e-10)
