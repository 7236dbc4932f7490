"""Modular arithmetic, parity and regression: guesses worked out by listing everything, regression's optimum."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from hybridlm.errors import SpecError
from hybridlm.tasks.modular_arithmetic import flat_values, nested_values
from hybridlm.tasks.task import make


# ---------------------------------------------------------------------------------------------------------- arithmetic
def listed_flat(modulus, operators, tokens):
    """How many of all the expressions have each value."""
    numbers = [str(i) for i in range(modulus)]
    symbols = [numbers if i % 2 == 0 else operators for i in range(tokens)]
    counts = Counter(eval("".join(text)) % modulus for text in product(*symbols))
    return [Fraction(counts[value], sum(counts.values())) for value in range(modulus)]


def listed_nested(modulus, operators, tokens):
    """Exactly how likely each value is, by the grammar itself."""
    if tokens <= 4:
        return [Fraction(1, modulus)] * modulus
    found = [Fraction(0)] * modulus
    for left in range(1, tokens - 3):
        ours, theirs = (listed_nested(modulus, operators, size) for size in (left, tokens - 3 - left))
        for (a, p), (b, q), sign in product(enumerate(ours), enumerate(theirs), operators):
            found[eval(f"{a}{sign}{b}") % modulus] += p * q / (tokens - 4) / len(operators)
    return found


@pytest.mark.parametrize("operators", ["+-*", "+-"])
@pytest.mark.parametrize("modulus", [2, 3, 4])
def test_how_likely_each_value_is(modulus, operators):
    flat = flat_values(modulus, "*" in operators, 7)
    nested = nested_values(modulus, "*" in operators, 14)
    for tokens in (1, 3, 5, 7) if modulus < 4 else (1, 3, 5):
        assert flat[tokens] == pytest.approx([float(p) for p in listed_flat(modulus, operators, tokens)], abs=1e-12)
    for tokens in (*range(1, 10), 14):
        assert nested[tokens] == pytest.approx([float(p) for p in listed_nested(modulus, operators, tokens)], abs=1e-12)


def test_guessing_is_the_commonest_value_over_all_lengths():
    task = make("modular_arithmetic", {"modulus": 3, "length": 8, "shortest": 4})
    lists = np.mean([[float(p) for p in listed_flat(3, "+-*", tokens)] for tokens in (3, 5, 7)], axis=0)
    assert task.guess() == pytest.approx(lists.max(), abs=1e-12)
    assert lists.argmax() == 0
    assert make("modular_arithmetic", {"operators": "+-"}).guess() == pytest.approx(0.2)
    long = make("modular_arithmetic", {"length": 1024, "shortest": 1024, "brackets": True})
    assert 0.2 < long.guess() < 1


def test_lengths_are_all_as_likely():
    task, random = make("modular_arithmetic", {"brackets": True, "length": 13, "shortest": 4}), np.random.default_rng(0)
    counts = Counter(len(task.draw(random)["ids"]) for _ in range(2000))
    assert sorted(counts) == list(range(4, 14))
    assert min(counts.values()) > 140
    flat = make("modular_arithmetic", {"length": 10, "shortest": None})
    assert {len(flat.draw(random)["ids"]) for _ in range(20)} == {10}


def test_the_deepest_brackets_are_no_trouble():
    task = make("modular_arithmetic", {"length": 1024, "shortest": None, "brackets": True})
    for seed in range(20):
        assert len(task.draw(np.random.default_rng(seed))["ids"]) == 1024


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"length": 41}, "length: 41 is odd; .*: use 40 or 42"),
        ({"shortest": 5}, "shortest: 5 is odd"),
        ({"length": 8, "shortest": 10}, "shortest: 10 is more than length = 8"),
        ({"operators": "*"}, r"operators: '\*'; it must be one of \+-\*, \+-"),
    ],
)
def test_what_does_not_go_together_is_named_with_the_fix(params, message):
    with pytest.raises(SpecError, match=rf"modular_arithmetic\.{message}"):
        make("modular_arithmetic", params)


def test_with_brackets_a_length_may_be_odd():
    assert make("modular_arithmetic", {"length": 41, "shortest": 5, "brackets": True}).sizes == range(4, 41)


# ---------------------------------------------------------------------------------------------------------- regression
def test_regression_is_published_size_and_guessing_is_its_variance():
    task = make("linear_regression")
    assert (task.length, task.channels, task.outputs) == (81, 20, 1)
    random = np.random.default_rng(0)
    answers = np.concatenate([task.draw(random)["targets"][::2] for _ in range(4000)]).astype(float)
    assert np.mean(answers**2) == pytest.approx(task.guess(), rel=0.03)
    assert make("linear_regression", {"noise": 2.0}).guess() == 24


def test_least_squares_is_right_from_one_point_more_than_dimensions():
    """And wrong before, where nobody can know: the error falls from dims by one with every point (Garg et al., 3)."""
    task, random = make("linear_regression", {"dims": 6, "points": 10}), np.random.default_rng(0)
    errors = np.zeros((500, 10))
    for row in errors:
        sample = task.draw(random)
        x, y = sample["inputs"][::2].astype(float), sample["targets"][::2, 0].astype(float)
        for i in range(10):
            row[i] = x[i] @ np.linalg.lstsq(x[:i], y[:i], rcond=None)[0] - y[i] if i else -y[i]
    squares = np.mean(errors**2, axis=0)
    assert squares[:6] == pytest.approx(range(6, 0, -1), rel=0.35)
    assert squares[6:].max() < 1e-6


def test_noise_is_added_to_what_is_shown_and_asked():
    task, random = make("linear_regression", {"dims": 1, "points": 400, "noise": 0.5}), np.random.default_rng(0)
    sample = task.draw(random)
    x, y = sample["inputs"][::2, 0], sample["targets"][::2, 0]
    slope = x @ y / (x @ x)
    assert np.std(y - slope * x) == pytest.approx(0.5, rel=0.1)
