"""MQAR: where its questions stand, and that a batch costs no study its time."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hybridlm.errors import SpecError
from hybridlm.tasks.mqar import slots, some
from hybridlm.tasks.task import TRAINING, Samples, make


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Standard deviations of the statistic above its mean."""
    statistic = (np.square(counts - expected) / expected).sum()
    freedom = len(counts) - 1
    return (statistic - freedom) / (2 * freedom) ** 0.5


def first_slots(power: float, count: int, pairs: int, draws: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.bincount([slots(random, count, pairs, power)[0] for _ in range(draws)], minlength=count)


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0, 2.0])
def test_the_first_slot_drawn_has_the_law_of_the_definition(power):
    share = np.arange(1, 25.0) ** (power - 1)
    counts = first_slots(power, 24, 8, 4000)
    assert abs(chi_square(counts, 4000 * share / share.sum())) < 5
    other = np.arange(1, 25.0) ** (power - 0.7)  # the test can fail
    assert chi_square(counts, 4000 * other / other.sum()) > 5


def test_the_second_slot_drawn_has_the_law_of_what_is_left():
    share = np.arange(1, 6.0) ** -0.99
    share /= share.sum()
    left = np.array([[0 if i == j else share[i] * share[j] / (1 - share[i]) for j in range(5)] for i in range(5)])
    random = np.random.default_rng(1)
    counts = np.zeros((5, 5))
    for _ in range(4000):
        counts[tuple(slots(random, 5, 3, 0.01)[:2])] += 1
    seen = left > 0
    assert abs(chi_square(counts[seen], 4000 * left[seen])) < 5


def test_questions_of_samples_stand_where_the_law_says():
    samples, counts = Samples(make("mqar", {"pairs": 1, "length": 34}), 0), np.zeros(16)
    for number in range(1500):
        counts[np.flatnonzero(samples.sample(TRAINING, number)["targets"] + 100)[0] // 2 - 1] += 1
    share = np.arange(1, 17.0) ** -0.99
    assert abs(chi_square(counts, 1500 * share / share.sum())) < 5


@pytest.mark.parametrize("count", [7, 600])
def test_some_numbers_are_different_and_each_as_likely(count):
    random, counts = np.random.default_rng(0), np.zeros(count)
    for _ in range(3000):
        drawn = some(random, count, 5)
        assert len(set(drawn.tolist())) == 5
        counts[drawn] += 1
    assert chi_square(counts, np.full(count, 15000 / count)) < 5
    assert drawn.max() < count


def test_random_fillers_leave_no_zero_that_could_be_told_from_them():
    ids = np.concatenate(
        [Samples(make("mqar", {"fillers": "random"}), 0).sample(TRAINING, i)["ids"] for i in range(50)]
    )
    assert 0 < (ids == 0).mean() < 0.03


def test_every_stage_of_the_curriculum_is_drawn():
    task = make("mqar_packed", {"stages": 4, "length": 256, "vocab_size": 200})
    drawn = [(Samples(task, 0).sample(TRAINING, i)["targets"] != -100).sum() for i in range(60)]
    assert task.counts == [64, 32, 16, 8]
    assert set(drawn) == {64, 32, 16, 8}


def test_all_that_does_not_fit_is_said_at_once():
    with pytest.raises(SpecError) as caught:
        make("mqar", {"pairs": 40, "vocab_size": 16, "length": 33, "lenght": 2})
    said = str(caught.value).splitlines()
    assert said[0] == "mqar.lenght: unknown field; did you mean length?"
    assert said[1].startswith("mqar.length: 33 is less than four positions for each of 40 pairs; use at least 160")
    assert said[2] == "mqar.length: 33 is odd; keys and values stand in twos: use 32 or 34"
    assert said[3] == "mqar.vocab_size: 16 has 7 keys, and 40 pairs need as many; use at least 82"


def test_what_fits_exactly_is_drawn():
    Samples(make("mqar", {"pairs": 8, "length": 32, "vocab_size": 18}), 0).sample(TRAINING, 0)
    for params in ({"pairs": 8, "length": 30}, {"pairs": 8, "vocab_size": 16}):
        with pytest.raises(SpecError):
            make("mqar", params)


@pytest.mark.deep
def test_a_batch_takes_less_than_five_milliseconds():
    samples, took = Samples(make("mqar"), 0), []
    for i in range(30):
        begun = time.perf_counter()
        samples.batch(TRAINING, range(64 * i, 64 * i + 64))
        took.append(time.perf_counter() - begun)
    assert min(took) < 5e-3
