"""A weight beside every row that it multiplies or is added to, whose gradient torch.compile is to sum in two steps."""

import torch
from torch import Tensor

TOGETHER = 16


def spread(weight: Tensor, x: Tensor) -> Tensor:
    """weight (d,), to stand beside x (b, ..., t, d): itself, or compiled on a CPU as large as x.

    The gradient is a sum over rows. Compiled it would go down a few columns at a time, over all of the memory each
    time: so it is taken over rows that lie together, which a cache holds, and then over what these have given.
    """
    if not torch.compiler.is_compiling() or x.device.type != "cpu" or x.ndim < 3:
        return weight
    return _Spread.apply(weight, x.shape)


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, shape: torch.Size) -> Tensor:
        return weight.expand(shape)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return summed_rows(gradient), None


def summed_rows(x: Tensor) -> Tensor:
    """(b, ..., t, d) -> (d), over rows that lie together first."""
    whole = x.shape[-2] // TOGETHER * TOGETHER
    parts = x[..., :whole, :].unflatten(-2, (-1, TOGETHER)).sum(-2)
    return parts.flatten(0, -2).sum(0) + x[..., whole:, :].flatten(0, -2).sum(0)
