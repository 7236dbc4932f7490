"""Tensors of theirs from ours and back: joined, scaled, row by row, entry by entry."""

import pytest
import torch

from hybridlm.errors import CheckpointError
from hybridlm.export.weights import Weight, entries, scaled

OURS = {"a": torch.randn(3, 4), "b": torch.randn(5, 4), "e": torch.randn(3, 2, 4)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in OURS.items()}


def joined(weight: Weight) -> torch.Tensor:
    found = weight.join(OURS.__getitem__, torch.float32)
    assert tuple(found.shape) == weight.joined_shape(SHAPES)
    return found


def test_joined_and_cut():
    weight = Weight("t", ("a", "b"))
    assert torch.equal(joined(weight), torch.cat([OURS["a"], OURS["b"]]))
    back = weight.cut(joined(weight), SHAPES)
    assert all(torch.equal(back[name], OURS[name]) for name in ("a", "b"))


def test_entries_are_one_each():
    found = entries("t.{}.w", "e", 3)
    assert [weight.theirs for weight in found] == ["t.0.w", "t.1.w", "t.2.w"]
    for i, weight in enumerate(found):
        assert torch.equal(joined(weight), OURS["e"][i])
        assert torch.equal(weight.cut(OURS["e"][i], SHAPES)["e"], OURS["e"][i])
    with pytest.raises(CheckpointError, match=r"t\.1\.w: shape \(4, 2\), and the config asks for \(2, 4\)"):
        found[1].cut(OURS["e"][1].T, SHAPES)


def test_rows_have_scales_of_their_own():
    weight = Weight("t", ("a",), rows=((1, 2.0), (2, 0.1)))
    assert torch.allclose(joined(weight), OURS["a"] * torch.tensor([[2.0], [0.1], [0.1]]))
    assert torch.allclose(weight.cut(joined(weight), SHAPES)["a"], OURS["a"])
    assert weight.scales == (2.0, 0.1)
    assert not weight.unscaled


def test_what_is_scaled_is_not_rounded_to_fewer_digits():
    theirs = OURS["a"].bfloat16()
    back = scaled(Weight("t", ("a",)), 3.0).cut(theirs, SHAPES)["a"]
    assert back.dtype == torch.float32
    assert torch.equal(back, theirs.float() / 3)
    assert Weight("t", ("a",)).cut(theirs, SHAPES)["a"].dtype == torch.bfloat16
