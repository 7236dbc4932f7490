"""Placements: as many layers as asked, none twice, in order, and where their names say."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.ablate.placement import PLACEMENTS, indices, placement
from hybridlm.errors import SpecError

NAMES = [*PLACEMENTS, "random(0)", "random(7)"]


@given(st.sampled_from(NAMES), st.integers(1, 200), st.data())
def test_a_placement_gives_so_many_layers_none_twice_in_order(name, depth, data):
    count = data.draw(st.integers(0, depth))
    found = placement(name)(depth, count)
    assert len(found) == count
    assert found == sorted(set(found))
    assert all(0 <= i < depth for i in found)


def test_they_stand_where_their_names_say():
    twelve = {name: placement(name)(12, 3) for name in PLACEMENTS}
    assert twelve == {
        "even": [2, 6, 10],
        "middle": [5, 6, 7],
        "first-mid-last": [0, 6, 11],
        "front": [0, 1, 2],
        "end": [9, 10, 11],
        "late-dense": [4, 8, 10],
    }
    assert placement("even")(12, 1) == placement("middle")(12, 1) == [6]
    assert placement("even")(2, 1) == [1]


@given(st.integers(1, 60), st.data())
def test_gaps_of_even_differ_by_one_at_most_and_those_of_late_dense_never_grow_by_more(depth, data):
    count = data.draw(st.integers(1, depth))
    even = placement("even")(depth, count)
    gaps = [b - a for a, b in pairwise(even)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    late = placement("late-dense")(depth, count)
    assert sum(late) >= sum(even)


@given(st.integers(0, 10**9 - 1), st.integers(1, 60), st.data())
def test_a_random_placement_grows_by_layers_and_is_its_seed_s(seed, depth, data):
    few = data.draw(st.integers(0, depth))
    many = data.draw(st.integers(few, depth))
    drawn = placement(f"random({seed})")
    assert set(drawn(depth, few)) <= set(drawn(depth, many))
    assert drawn(depth, many) == placement(f"random({seed})")(depth, many)


def test_seeds_differ():
    assert len({tuple(placement(f"random({seed})")(24, 6)) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    "name", ["evn", "random", "random(-1)", "random(²)", "random(7", 3, None, ["even"], "random(1e3)"]
)
def test_what_is_no_placement_is_refused(name):
    with pytest.raises(SpecError, match="no placement; known: even"):
        placement(name)


def test_a_near_name_is_offered():
    with pytest.raises(SpecError, match="Did you mean 'late-dense'"):
        placement("late_dense")


@pytest.mark.parametrize("count", [-1, 13, 2.0, True, None])
def test_a_count_that_does_not_fit_is_refused(count):
    with pytest.raises(SpecError, match="count"):
        indices("even", 12, count)
