"""Intervals of paired differences: equal to scipy's t, dual to their p values, and covering what the page says."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from hybridlm.ablate.statistics import mean_interval, paired_difference
from hybridlm.ablate.statistics.paired import FEWEST, _resamples
from hybridlm.errors import DataError, SpecError

numbers = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


def rows(low=2, high=12):
    return st.integers(low, high).flatmap(lambda n: arrays(np.float64, n, elements=numbers))


# ------------------------------------------------------------------------------------------------------------- oracles
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_few_seeds_have_the_t_interval_of_scipy(n, level):
    a, b = np.random.default_rng(n).normal(size=(2, n))
    found, oracle = paired_difference(a, b, level=level), stats.ttest_rel(a, b)
    theirs = oracle.confidence_interval(level)
    assert found.method == "t"
    np.testing.assert_allclose([found.low, found.high, found.p], [theirs.low, theirs.high, oracle.pvalue], rtol=1e-10)
    np.testing.assert_allclose([found.mean, found.sd], [(a - b).mean(), (a - b).std(ddof=1)], rtol=1e-14)


def test_the_bootstrap_is_that_of_every_resample_written_out():
    """Five seeds: all 3,125 resamples, one by one, as Efron and Tibshirani's chapter 12 has them."""
    d = np.array([0.3, -0.1, 0.9, 0.25, 0.4])
    found, error = mean_interval(d), d.std(ddof=1) / math.sqrt(5)
    resampled = np.array(list(itertools.product(d, repeat=5)))
    spread = resampled.std(axis=1, ddof=1)
    shift = resampled.mean(axis=1) - d.mean()
    with np.errstate(divide="ignore"):
        t = np.sort(np.where(spread > 1e-12, shift / (spread / math.sqrt(5)), np.copysign(np.inf, shift)))
    low, high = t[math.floor(0.025 * 3125)], t[-1 - math.floor(0.025 * 3125)]
    np.testing.assert_allclose([found.low, found.high], [d.mean() - high * error, d.mean() - low * error], rtol=1e-12)
    assert found.p == pytest.approx(2 * np.mean(t >= d.mean() / error), rel=1e-9)
    assert found.method == "bootstrap-t"


@pytest.mark.parametrize("n", [2, 5, 8])
def test_the_resamples_are_all_and_weigh_one(n):
    counts, weights = _resamples(n, 10_000, 0)
    assert counts.shape == (math.comb(2 * n - 1, n), n)
    assert (counts.sum(axis=1) == n).all()
    assert len(np.unique(counts, axis=0)) == len(counts)
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(weights @ counts, 1, rtol=1e-12)


# --------------------------------------------------------------------------------------------------------------- laws
@given(rows(), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_p_value_is_small_exactly_where_the_interval_leaves_0_out(values, level):
    found = mean_interval(values, level=level)
    assert found.low <= found.mean <= found.high
    assert (found.p <= 1 - level) == (not found.low <= 0 <= found.high)


@given(rows())
def test_the_sign_turns_the_interval_and_nothing_else(values):
    found, turned = mean_interval(values), mean_interval(-values)
    scale = np.abs(values).max() + 1
    np.testing.assert_allclose([turned.low, turned.high], [-found.high, -found.low], atol=1e-6 * scale)


@given(rows(high=8), st.floats(-100, 100), st.sampled_from([1e-6, 0.5, 1e6]))
def test_shift_and_unit_go_through(values, shift, unit):
    found, moved = mean_interval(values), mean_interval(unit * (values + shift))
    if np.ptp(values) > 0.01:  # below, rounding is all that is left
        scale = unit * (np.abs(values).max() + abs(shift) + 1)
        wanted = [unit * (found.low + shift), unit * (found.high + shift)]
        np.testing.assert_allclose([moved.low, moved.high], wanted, atol=1e-6 * scale)


@given(rows(high=8), st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_does_not_matter_but_their_pairing_does(values, random):
    order = random.sample(range(len(values)), len(values))
    found, moved = mean_interval(values), mean_interval(values[order])
    assert (moved.mean, moved.low, moved.high) == pytest.approx((found.mean, found.low, found.high), rel=1e-6, abs=1e-6)


def test_pairing_takes_the_seeds_own_part_away():
    noise = np.random.default_rng(0).normal(size=6) * 10
    a, b = noise + 1 + np.linspace(0, 0.01, 6), noise
    assert paired_difference(a, b).low > 0.9
    assert paired_difference(a, b[::-1]).low < 0


def test_a_higher_level_is_wider():
    values = np.random.default_rng(0).exponential(size=7)
    widths = [np.ptp([i.low, i.high]) for i in (mean_interval(values, level=level) for level in (0.8, 0.95, 0.99))]
    assert widths == sorted(widths)


def test_the_same_call_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).normal(size=12)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)
    assert mean_interval(values).low == pytest.approx(mean_interval(values, seed=1).low, abs=0.05)


# ---------------------------------------------------------------------------------------------------------- edge cases
def test_one_seed_has_no_interval():
    found = mean_interval([0.7])
    assert (found.mean, found.low, found.high, found.p, found.n) == (0.7, -math.inf, math.inf, 1.0, 1)
    assert math.isnan(found.sd)


def test_seeds_that_agree_leave_a_point():
    found = mean_interval([0.5] * 5)
    assert (found.low, found.high, found.p, found.sd) == (0.5, 0.5, 0.0, 0.0)
    assert mean_interval([0.0, 0.0]).p == 1.0


@pytest.mark.parametrize("values", [[0, 0, 0, 0, 0.5], [0, 0, 0, 0.3, 0.5], [1, 1, 1, 1, 0, 0]])
def test_where_resamples_lose_their_spread_the_t_interval_is_taken(values):
    found = mean_interval(values)
    assert found.method == "t"
    theirs = stats.ttest_1samp(values, 0).confidence_interval()
    np.testing.assert_allclose([found.low, found.high], [theirs.low, theirs.high], rtol=1e-10)


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [math.inf], [[1.0, 2.0]], 3.0])
def test_what_is_no_row_of_numbers_is_refused(bad):
    with pytest.raises(DataError, match="one a seed"):
        mean_interval(bad)


def test_a_seed_too_few_is_refused():
    with pytest.raises(DataError, match="a has 3 seeds and b 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_too_few_draws_for_the_level_are_refused():
    with pytest.raises(SpecError, match="draws: 79"):
        mean_interval([1.0, 2.0], draws=79)


# ------------------------------------------------------------------------------------------------------------ coverage
NOISE = {  # each of mean 0
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
    "two exponentials": lambda rng, shape: rng.exponential(size=shape) - rng.exponential(size=shape),
    "two humps": lambda rng, shape: rng.choice([-1, 1], shape) + 0.5 * rng.normal(size=shape),
    "two spikes": lambda rng, shape: rng.choice([-1, 1], shape) + 0.2 * rng.normal(size=shape),
    "one in five": lambda rng, shape: (rng.random(shape) < 0.2) - 0.2 + 0.1 * rng.normal(size=shape),
}
MEASURED = {  # percent of 10,000 intervals of 95% that hold the true mean, as docs/statistics.md has them
    "normal": (94.9, 95.1, 94.5),
    "exponential": (88.1, 92.9, 94.3),
    "two exponentials": (96.9, 95.1, 92.7),
    "two humps": (88.3, 94.9, 98.2),
    "two spikes": (75.7, 94.3, 99.8),
    "one in five": (75.0, 76.2, 88.1),
}
SEEDS = (3, 5, 10)


def coverage(noise: str, n: int, studies: int) -> float:
    samples = NOISE[noise](np.random.default_rng([n, len(noise)]), (studies, n))
    found = [mean_interval(sample) for sample in samples]
    assert {i.method for i in found} == {"t" if n < FEWEST else "bootstrap-t"}
    return 100 * float(np.mean([i.low <= 0 <= i.high for i in found]))


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", range(3), ids=SEEDS)
def test_coverage_of_few_studies(noise, place):
    """400 studies: within 4 standard deviations of what was measured with 10,000."""
    share = MEASURED[noise][place] / 100
    spread = 100 * math.sqrt(share * (1 - share) / 400)
    assert coverage(noise, SEEDS[place], 400) == pytest.approx(100 * share, abs=4 * spread)


@pytest.mark.deep
@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("place", range(3), ids=SEEDS)
def test_coverage(noise, place):
    """10,000 studies: what the page says, to 0.3%, which is their standard deviation."""
    assert coverage(noise, SEEDS[place], 10_000) == pytest.approx(MEASURED[noise][place], abs=0.3)


def test_an_interval_ends_where_a_mean_cannot_be():
    """Four differences alike and one not: bootstrap-t goes far beyond what shares can differ by; p does not change."""
    whole = mean_interval([-0.87, -0.42, -0.026, -0.87, -0.872])
    found = whole.within(-1.0, 1.0)
    assert whole.high > 1
    assert (found.low, found.high) == (whole.low, 1.0)
    assert (found.mean, found.p, found.n, found.sd) == (whole.mean, whole.p, whole.n, whole.sd)
    assert whole.within(-1e9, 1e9) == whole
    one = mean_interval([0.3]).within(-1.0, 1.0)
    assert (one.low, one.high) == (-1.0, 1.0)
