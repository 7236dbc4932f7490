"""Mistakes are collected with their places, each once, and told together."""

from __future__ import annotations

import pytest

from hybridlm.errors import DataError, SpecError
from hybridlm.problems import MOST, Problems


def test_one_is_told_as_it_is():
    problems = Problems()
    problems.refuse("a.yaml")
    with problems.at("seeds"):
        raise DataError("none")
    with pytest.raises(SpecError, match=r"^a\.yaml: seeds: none$"):
        problems.refuse("a.yaml")
    with pytest.raises(SpecError, match=r"^seeds: none$"):
        problems.refuse()


def test_all_are_told_in_their_order_each_once():
    problems = Problems()
    for path, reason in [("b", "one\nmore of it"), ("a", "two"), ("b", "one\nmore of it"), ("", "three")]:
        problems.add(path, reason)
    with pytest.raises(SpecError) as error:
        problems.refuse("a.yaml")
    assert str(error.value) == "a.yaml: 3 problems:\n  b: one\n    more of it\n  a: two\n  three"
    with pytest.raises(SpecError, match=r"^3 problems:\n  b"):
        problems.refuse()


def test_of_very_many_the_first_are_told():
    problems = Problems()
    for n in range(MOST + 7):
        problems.add(str(n), "wrong")
    with pytest.raises(SpecError, match=f"{MOST + 7} problems:(.|\n)*\n  ... and 7 more$"):
        problems.refuse()


def test_a_bug_is_no_mistake_of_the_user():
    problems = Problems()
    with pytest.raises(ZeroDivisionError), problems.at("a"):
        raise ZeroDivisionError
    assert problems.found == []
