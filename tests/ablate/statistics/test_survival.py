"""Median steps to solve, with runs that never did: equal to Kaplan and Meier's, and an interval that covers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight

from hybridlm.ablate.statistics import median_steps
from hybridlm.errors import DataError, SpecError

BUDGET = 1000
runs = st.lists(st.one_of(st.none(), st.integers(1, BUDGET)), min_size=1, max_size=30)


@given(runs)
def test_the_median_is_that_of_the_survival_function(solved_at):
    """Where the function falls to half or below; never, where over half of the runs are censored."""
    times = np.array([BUDGET if step is None else step for step in solved_at], dtype=float)
    fell = SurvfuncRight(times, np.array([step is not None for step in solved_at], dtype=int))
    reached = fell.surv_times[fell.surv_prob <= 0.5 + 1e-9]
    assert median_steps(solved_at, BUDGET)[0] == (reached[0] if len(reached) else None)


@given(runs)
def test_the_interval_is_around_the_median(solved_at):
    median, low, high = median_steps(solved_at, BUDGET)
    assert low <= (BUDGET if median is None else median)
    assert high is None or (median is not None and median <= high)


def test_of_five_runs_the_interval_is_from_the_first_to_the_last():
    assert median_steps([500, 300, 400, 900, 600], BUDGET) == (500, 300, 900)
    assert median_steps([500, 300, None, None, 600], BUDGET) == (600, 300, None)
    assert median_steps([None, 300, None, None, None], BUDGET) == (None, 300, None)
    assert median_steps([None] * 5, BUDGET) == (None, BUDGET, None)


def test_of_four_runs_it_is_everything():
    assert median_steps([500, 300, 400, 900], BUDGET) == (400, 0.0, None)


def test_a_step_of_a_run_that_never_solved_is_not_needed_and_one_after_the_end_is_refused():
    with pytest.raises(DataError, match="1001"):
        median_steps([1001], BUDGET)
    with pytest.raises(DataError, match="-1"):
        median_steps([-1], BUDGET)
    with pytest.raises(DataError, match="no runs"):
        median_steps([], BUDGET)
    with pytest.raises(SpecError, match="steps"):
        median_steps([1], float("nan"))


def coverage(studies: int, n: int) -> float:
    """How often the interval holds the true median of skewed times, of which a third are cut off."""
    rng, median = np.random.default_rng(n), 700 * np.log(2)
    held = 0
    for _ in range(studies):
        times = rng.exponential(700, size=n)
        _, low, high = median_steps([None if t > BUDGET else t for t in times], BUDGET)
        held += low <= median and (high is None or median <= high)
    return held / studies


@pytest.mark.parametrize(("n", "least", "most"), [(4, 1, 1), (5, 0.9, 0.97), (10, 0.95, 1), (20, 0.92, 0.99)])
def test_coverage_of_few_studies(n, least, most):
    """By the binomial distribution it is 1, 93.75%, 97.9% and 95.9%."""
    assert least <= coverage(400, n) <= most


@pytest.mark.deep
@pytest.mark.parametrize(("n", "exact"), [(5, 0.9375), (8, 0.9922), (10, 0.9785), (20, 0.9586)])
def test_coverage(n, exact):
    assert coverage(10_000, n) == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 10_000))
