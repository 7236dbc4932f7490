"""The shape checks are on in this very run, see a wrong shape, and leave wrong values to the code under test."""

from __future__ import annotations

import os
from dataclasses import dataclass

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from shape_checks import door
from torch import Tensor

CHECKED = os.environ.get("HYBRIDLM_CHECK_SHAPES", "1") != "0"
WRONG = jaxtyping.TypeCheckError


@pytest.fixture
def scaled():
    """An op with shapes at its door. (The annotations are set by hand: this file's own are strings.)"""

    def op(x, weight, eps=1e-5, *, state=None):
        return x * weight + eps

    shapes = {"x": Float[Tensor, "b d"], "weight": Float[Tensor, "d"], "state": Float[Tensor, "b"] | None}
    op.__annotations__ = {**shapes, "eps": float}
    return door(op)


def test_fitting_shapes_pass(scaled):
    scaled(torch.ones(2, 3), torch.ones(3), state=torch.ones(2))


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize(("x", "weight", "state"), [((2, 3), (4,), (2,)), ((3,), (3,), (2,)), ((2, 3), (3,), (3,))])
def test_wrong_shape_is_seen(scaled, x, weight, state, before):
    """After shapes that fit too, and each time anew."""
    for _ in range(before):
        scaled(torch.ones(2, 3), torch.ones(3), state=torch.ones(2))
    for _ in range(2):
        with pytest.raises(WRONG):
            scaled(torch.ones(x), torch.ones(weight), state=torch.ones(state))


def test_other_dtypes_are_checked_anew(scaled):
    scaled(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(WRONG):
        scaled(torch.ones(2, 3, dtype=torch.int64), torch.ones(3))


def test_plain_types_are_left_alone(scaled):
    assert scaled(torch.ones(2, 3), torch.ones(3), eps=1).shape == (2, 3)


def test_results_are_checked_each_time():
    """Arguments that were seen before say nothing of what comes out of them."""
    lengths = iter([3, 3, 4])

    def op(x):
        return torch.ones(2, next(lengths))

    op.__annotations__ = {"x": Float[Tensor, "b d"], "return": Float[Tensor, "b d"]}
    op = door(op)
    assert op(torch.ones(2, 3)).shape == op(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(WRONG):
        op(torch.ones(2, 3))


def test_numbers_that_a_shape_names_are_looked_at():
    def op(n, parts):
        return parts[0]

    op.__annotations__ = {"n": int, "parts": tuple[Float[Tensor, "{n}"], ...]}
    op = door(op)
    assert op(3, (torch.ones(3), torch.ones(3))).shape == (3,)
    for n, sizes in ((4, (3, 3)), (3, (4, 4))):  # of a tuple of any length beartype looks at one, drawn at random
        with pytest.raises(WRONG):
            op(n, tuple(map(torch.ones, sizes)))


def test_a_dataclass_checks_its_fields():
    @dataclass
    class Taps:
        weight: Float[Tensor, "c k"]

    Taps.__init__.__annotations__["weight"] = Float[Tensor, "c k"]
    door(Taps)(torch.ones(2, 4))
    with pytest.raises(WRONG):
        Taps(torch.ones(4))


def test_a_function_that_says_no_shape_is_itself():
    def op(x: Tensor, n: int) -> Tensor:
        return x

    assert door(op) is op


def test_an_error_of_the_function_is_its_own_and_is_raised_again():
    def op(x):
        raise ValueError("no")

    op.__annotations__ = {"x": Float[Tensor, "b d"]}
    op = door(op)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            op(torch.ones(2, 3))


def test_ops_are_checked_in_this_run():
    """Unless HYBRIDLM_CHECK_SHAPES=0: then the op itself trips over the shapes."""
    from hybridlm.ops.norm import rms_norm

    with pytest.raises(WRONG if CHECKED else RuntimeError):
        rms_norm(torch.ones(2, 3), torch.ones(4), 1e-5)
