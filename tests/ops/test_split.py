"""A projection's parts, and their gradients side by side again."""

from __future__ import annotations

import pytest
import torch

from hybridlm.ops.split import _Split, split


@pytest.mark.parametrize("widths", [[2, 5, 3], 5, [10]])
def test_gradients_stand_where_the_parts_stood(widths):
    x = torch.randn(2, 3, 10, requires_grad=True)

    def loss(cut):
        return sum((i + 1) * part.square().sum() for i, part in enumerate(cut(x, widths)))

    def compiled(x, widths):
        return torch.compile(_Split.apply, fullgraph=True, backend="aot_eager")(x, widths)

    (expected,) = torch.autograd.grad(loss(lambda x, widths: x.split(widths, dim=-1)), x)
    for cut in (split, _Split.apply, compiled):
        assert torch.equal(torch.autograd.grad(loss(cut), x)[0], expected)


def test_a_part_that_nothing_reads_has_no_gradient():
    x = torch.randn(2, 4, requires_grad=True)
    first, _ = _Split.apply(x, [1, 3])
    assert torch.equal(torch.autograd.grad(first.sum(), x)[0], torch.tensor([[1.0, 0, 0, 0]] * 2))
