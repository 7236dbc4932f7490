"""Copying and induction heads: what an oracle passes by, how often things are drawn and where."""

from __future__ import annotations

import numpy as np
import pytest

from hybridlm.errors import SpecError
from hybridlm.tasks.task import TRAINING, Samples, make


def drawn(name: str, params: dict, count: int) -> list[dict]:
    samples = Samples(make(name, params), 0)
    return [samples.sample(TRAINING, number) for number in range(count)]


def assert_as_likely(counts: np.ndarray) -> None:
    """Each as likely: chi-square within 5 standard deviations of its mean."""
    expected, freedom = counts.mean(), len(counts) - 1
    assert abs((np.square(counts - expected) / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5


def test_symbols_to_select_stand_anywhere():
    rows = [sample["ids"][:-3] for sample in drawn("selective_copying", {"tokens": 3, "length": 20}, 1200)]
    assert_as_likely(np.bincount(np.concatenate([np.flatnonzero(row) for row in rows]), minlength=17))


@pytest.mark.parametrize(
    ("name", "params", "symbols"),
    [
        ("selective_copying", {"vocab_size": 9}, range(1, 8)),
        ("copying", {"vocab_size": 9}, range(2, 9)),
        ("induction_heads", {"vocab_size": 8, "length": 16}, range(7)),
    ],
)
def test_every_symbol_is_asked_as_often(name, params, symbols):
    answers = np.concatenate([sample["targets"][sample["targets"] >= 0] for sample in drawn(name, params, 700)])
    assert set(answers.tolist()) == set(symbols)
    step = {"induction_heads": 1, "copying": 16, "selective_copying": 8}[name]
    assert len(answers) == 700 * step
    assert_as_likely(np.bincount(answers)[symbols.start :])


def test_the_special_token_stands_anywhere_but_right_before_the_question():
    places = [np.flatnonzero(sample["ids"] == 15)[0] for sample in drawn("induction_heads", {"length": 12}, 1000)]
    assert max(places) == 9
    assert_as_likely(np.bincount(places, minlength=10))


def test_every_number_of_symbols_is_as_likely():
    lengths = [len(sample["ids"]) // 2 for sample in drawn("copying", {"tokens": 9, "shortest": 5}, 800)]
    assert set(lengths) == {5, 6, 7, 8, 9}
    assert_as_likely(np.bincount(lengths)[5:])


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("copying", {"tokens": 4, "shortest": 5}, "copying.shortest: 5 is more than tokens = 4; use at most 4"),
        ("selective_copying", {"tokens": 9, "length": 17}, "length: 17 has no room for 9 tokens .* use at least 18"),
    ],
)
def test_what_does_not_fit_is_refused(name, params, said):
    with pytest.raises(SpecError, match=said):
        make(name, params)
