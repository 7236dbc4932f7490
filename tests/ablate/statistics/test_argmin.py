"""The best of an axis: found where it is, covered as often as said, and not named where the axis is flat."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.ablate.statistics import argmin_interval
from hybridlm.errors import DataError, SpecError

RATIOS = np.array([0, 1, 2, 3, 6, 12.0])
MAMBA2 = {  # Dao and Gu 2024, table 2: perplexity against the attention blocks of 48, at 350M
    0: 8.60, 1: 8.38, 2: 8.32, 3: 8.29, 4: 8.29, 5: 8.28, 6: 8.26, 7: 8.27, 9: 8.28, 11: 8.30, 15: 8.34, 24: 8.50,
}  # fmt: skip


def curve(x, best, depth=0.02, eps=1.0):
    return 1.5 + depth * (np.log(x + eps) - math.log(best + eps)) ** 2


def drawn(rng, best, seeds, sd=0.003, depth=0.02):
    """Losses (seeds, k) of a quadratic: what a seed is luckier or unluckier in is shared by its points, ten to one."""
    return curve(RATIOS, best, depth) + 10 * sd * rng.normal(size=(seeds, 1)) + sd * rng.normal(size=(seeds, 6))


@pytest.mark.parametrize("luck", [[0.0, 0.1, 0.2], [0.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("best", [0.5, 1.0, 3.0, 8.0])
def test_without_noise_it_is_the_minimum(best, luck):
    """Rounding is no misfit."""
    losses = curve(RATIOS, best) + np.array(luck)[:, None]
    found = argmin_interval(RATIOS, losses, 1.0)
    assert found.misfit == 1
    assert found.best == pytest.approx(best, rel=1e-9)
    assert found.low == pytest.approx(best, rel=1e-5)
    assert found.high == pytest.approx(best, rel=1e-5)
    assert not found.flat


@pytest.mark.parametrize(("slope", "best"), [(0.1, 0.0), (-0.1, 12.0)])
def test_a_loss_that_only_rises_or_falls_is_best_at_an_end(slope, best):
    losses = slope * np.log(RATIOS + 1) + 1e-6 * np.random.default_rng(0).normal(size=(3, 6))
    found = argmin_interval(RATIOS, losses, 1.0)
    assert (found.best, found.low, found.high, found.flat) == (best, best, best, False)


def test_a_loss_that_is_worst_in_the_middle_names_no_best():
    losses = -curve(RATIOS, 3.0) + 1e-6 * np.random.default_rng(0).normal(size=(3, 6))
    found = argmin_interval(RATIOS, losses, 1.0)
    assert (found.low, found.high, found.flat) == (0.0, pytest.approx(12.0), True)


def test_noise_alone_is_flat():
    """In most studies: a curve that is none must be called one in about 5%."""
    rng = np.random.default_rng(0)
    found = [argmin_interval(RATIOS, rng.normal(size=(5, 6)), 1.0).flat for _ in range(200)]
    assert np.mean(found) > 0.8


def test_one_seed_is_flat():
    found = argmin_interval(RATIOS, curve(RATIOS, 3.0)[None], 1.0)
    assert (found.best, found.flat) == (pytest.approx(3.0), True)
    assert (found.low, found.high) == (0.0, pytest.approx(12.0))
    assert math.isnan(found.misfit)


@given(st.permutations(range(6)), st.integers(0, 99))
def test_the_order_of_the_points_does_not_matter(order, seed):
    losses = drawn(np.random.default_rng(seed), 3.0, 4)
    assert argmin_interval(RATIOS[order], losses[:, order]) == argmin_interval(RATIOS, losses)


@given(st.integers(0, 99), st.floats(0.1, 10), st.floats(-5, 5))
def test_unit_and_shift_of_the_loss_do_not_matter(seed, unit, shift):
    losses = drawn(np.random.default_rng(seed), 3.0, 4)
    found, moved = argmin_interval(RATIOS, losses), argmin_interval(RATIOS, unit * losses + shift)
    np.testing.assert_allclose([moved.best, moved.low, moved.high], [found.best, found.low, found.high], atol=1e-4)
    assert found.low <= found.best <= found.high


def test_the_interval_is_fiellers():
    """By brute force: the places where a t test does not tell the slopes of the seeds from 0."""
    from scipy import stats

    losses, z = drawn(np.random.default_rng(1), 3.0, 5), np.log(RATIOS + 1)
    fits = np.array([np.polyfit(z, loss, 2) for loss in losses])
    places = np.linspace(z[0], z[-1], 20_001)
    slopes = 2 * fits[:, :1] * places + fits[:, 1:2]
    kept = places[np.abs(slopes.mean(axis=0)) <= stats.t.isf(0.025, 4) * slopes.std(axis=0, ddof=1) / math.sqrt(5)]
    found = argmin_interval(RATIOS, losses, 1.0)
    np.testing.assert_allclose(np.log([found.low + 1, found.high + 1]), [kept.min(), kept.max()], atol=2e-4)


def test_the_misfit_is_the_f_test_of_lack_of_fit():
    from scipy import stats

    losses = drawn(np.random.default_rng(1), 3.0, 5)
    design = np.vander(np.log(RATIOS + 1), 3)
    left = losses - losses @ np.linalg.pinv(design).T @ design.T
    f = 5 * (left.mean(axis=0) ** 2).sum() / 3 / (((left - left.mean(axis=0)) ** 2).sum() / 12)
    assert argmin_interval(RATIOS, losses, 1.0).misfit == pytest.approx(stats.f.sf(f, 3, 12), rel=1e-9)


def test_what_is_no_quadratic_takes_in_every_point_that_may_be_the_lowest():
    """Mamba-2's published curve falls off a cliff: the parabola's own interval would be narrow, and beside it."""
    x, means = np.array(list(MAMBA2)), np.array(list(MAMBA2.values()))
    noise = np.random.default_rng(0).normal(size=(3, 1)) + np.random.default_rng(1).normal(size=(3, len(x)))
    found = argmin_interval(x, means + 0.003 * noise)
    assert found.misfit < 1e-6
    assert found.low <= 6 <= found.high
    assert not found.flat


def test_the_points_that_may_be_the_lowest_share_one_level():
    """By scipy's paired tests at 5% over their number: twelve alone at 5% each would be fewer points."""
    from scipy import stats

    x, means = np.array(list(MAMBA2)), np.array(list(MAMBA2.values()))
    losses = means + 0.01 * np.random.default_rng(0).normal(size=(4, len(x)))
    lowest = losses.mean(axis=0).argmin()
    p = [1.0 if i == lowest else stats.ttest_rel(losses[:, i], losses[:, lowest]).pvalue for i in range(len(x))]
    shared, alone = x[np.array(p) > 0.05 / (len(x) - 1)], x[np.array(p) > 0.05]
    found = argmin_interval(x, losses)
    assert (found.low, found.high) == pytest.approx((shared.min(), shared.max()))
    assert np.ptp(shared) > np.ptp(alone)


@pytest.mark.parametrize(
    ("x", "losses", "said"),
    [
        ([0, 1], [[1, 2]], "three different"),
        ([0, 1, 1], [[1, 2, 3]], "three different"),
        ([-1, 1, 2], [[1, 2, 3]], "from 0 up"),
        ([0, 1, math.inf], [[1, 2, 3]], "three different"),
        ([0, 1, 2], [1, 2, 3], "shape"),
        ([0, 1, 2], [[1, 2]], "shape"),
        ([0, 1, 2], [[1, 2, math.nan]], "finite"),
        ([0, 1, 2], np.zeros((0, 3)), "shape"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x, losses, said):
    with pytest.raises(DataError, match=said):
        argmin_interval(x, losses)


@pytest.mark.parametrize("eps", [0, -1.0, math.nan])
def test_the_logarithm_of_0_needs_eps(eps):
    with pytest.raises(SpecError, match="eps"):
        argmin_interval([0, 1, 2], [[1, 2, 3], [1, 2, 3]], eps)
    if eps == 0:
        assert argmin_interval([1, 2, 4], [[1, 0, 1], [2, 1, 2.0]], 0).best == pytest.approx(2)


# ------------------------------------------------------------------------------------------------------------ coverage
def coverage(studies: int, seeds: int, best: float, sd: float) -> float:
    """sd 0.003 is that of the losses of equal runs on text, over a basin of 0.02 a unit of z squared."""
    rng = np.random.default_rng([seeds, round(10 * best), round(1e4 * sd)])
    found = [argmin_interval(RATIOS, drawn(rng, best, seeds, sd), 1.0) for _ in range(studies)]
    return float(np.mean([one.low <= best <= one.high for one in found]))


CASES = [(seeds, best, sd) for seeds in (3, 5, 10) for best in (1.0, 3.0, 6.0) for sd in (0.003, 0.01)]


@pytest.mark.parametrize(("seeds", "best", "sd"), CASES[::4])
def test_coverage_of_few_studies(seeds, best, sd):
    """95%: 400 studies show it within 4.4%, four standard deviations."""
    assert coverage(400, seeds, best, sd) == pytest.approx(0.95, abs=0.044)


@pytest.mark.deep
@pytest.mark.parametrize(("seeds", "best", "sd"), CASES)
def test_coverage(seeds, best, sd):
    assert 0.93 <= coverage(10_000, seeds, best, sd) <= 0.97
