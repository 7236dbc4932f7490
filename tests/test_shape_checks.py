"""The shape checks are on in this very run, see a wrong shape, and leave wrong values to the code under test."""

from __future__ import annotations

import os

import jaxtyping
import pytest
import torch
from jaxtyping import Float, jaxtyped
from shape_checks import typechecked
from torch import Tensor

CHECKED = os.environ.get("HYBRIDLM_CHECK_SHAPES", "1") != "0"


@pytest.fixture
def scaled():
    """An op with shapes at its door. (The annotations are set by hand: this file's own are strings.)"""

    def op(x, weight, eps=1e-5, *, state=None):
        return x * weight + eps

    shapes = {"x": Float[Tensor, "b d"], "weight": Float[Tensor, "d"], "state": Float[Tensor, "b"] | None}
    op.__annotations__ = {**shapes, "eps": float}
    return jaxtyped(typechecker=typechecked)(op)


def test_fitting_shapes_pass(scaled):
    scaled(torch.ones(2, 3), torch.ones(3), state=torch.ones(2))


@pytest.mark.parametrize(("x", "weight", "state"), [((2, 3), (4,), (2,)), ((3,), (3,), (2,)), ((2, 3), (3,), (3,))])
def test_wrong_shape_is_seen(scaled, x, weight, state):
    with pytest.raises(jaxtyping.TypeCheckError):
        scaled(torch.ones(x), torch.ones(weight), state=torch.ones(state))


def test_plain_types_are_left_alone(scaled):
    assert scaled(torch.ones(2, 3), torch.ones(3), eps=1).shape == (2, 3)


def test_ops_are_checked_in_this_run():
    """Unless HYBRIDLM_CHECK_SHAPES=0: then the op itself trips over the shapes."""
    from hybridlm.ops.norm import rms_norm

    with pytest.raises(jaxtyping.TypeCheckError if CHECKED else RuntimeError):
        rms_norm(torch.ones(2, 3), torch.ones(4), 1e-5)
