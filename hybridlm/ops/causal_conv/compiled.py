"""The short causal convolution of one document with its backward pass by hand, for torch.compile on a CPU.

What PyTorch derives computes the gradient before the activation anew wherever a tap reads it. Here it is written down
once, between rows of zeros, and read k times; and the input is not copied behind what came before it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.spread import summed_rows


class Convolution(torch.autograd.Function):
    """x (b, t, c), t >= k, before (b, k - 1, c), weight (k, c), bias (c) or None -> y (b, t, c). silu: after it."""

    @staticmethod
    def forward(ctx, x: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
        y = _convolved(x, before, weight, bias)
        y = F.silu(y) if silu else y
        ctx.silu = silu
        ctx.save_for_backward(x, before, weight, bias, y)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, before, weight, bias, y = ctx.saved_tensors
        if ctx.silu:  # of y = u s, s = sigmoid(u), the derivative is y + s (1 - y)
            dy = dy * (y + torch.sigmoid(_convolved(x, before, weight, bias)) * (1 - y))
        lead, t = before.shape[1], x.shape[1]
        zeros = dy.new_zeros(before.shape)
        dy = torch.cat([zeros, dy, zeros], dim=1)
        dx = _weighted(weight, lambda j: dy[:, 2 * lead - j :][:, :t])
        dbefore = _weighted(weight, lambda j: dy[:, lead - j :][:, :lead])
        dweight, dbias = _by_weights(dy[:, lead : lead + t], x, before)
        return dx, dbefore, dweight, None if bias is None else dbias, None


def _convolved(x: Tensor, before: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Before the activation."""
    lead, t = before.shape[1], x.shape[1]
    early = torch.cat([before, x[:, :lead]], dim=1)
    first = _weighted(weight, lambda j: early[:, j : j + lead])
    rest = _weighted(weight, lambda j: x[:, j : j + t - lead])
    y = torch.cat([first, rest], dim=1)
    return y if bias is None else y + bias


def _weighted(weight: Tensor, tap: Callable[[int], Tensor]) -> Tensor:
    """sum_j weight_j tap(j)."""
    y = tap(len(weight) - 1) * weight[-1]
    for j, each in enumerate(weight[:-1].unbind(0)):
        y = torch.addcmul(y, tap(j), each)
    return y


def _by_weights(dy: Tensor, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (k, c) and the bias (c); dy (b, t, c): of y before the activation.

    All sums over the same rows, so that they become one loop; the first rows, which see `before`, stand apart.
    """
    lead = before.shape[1]
    early, first, rest = torch.cat([before, x[:, :lead]], dim=1), dy[:, :lead], dy[:, lead:]
    sums = [
        summed_rows(rest * x[:, j : j + rest.shape[1]]) + (first * early[:, j : j + lead]).sum((0, 1))
        for j in range(lead + 1)
    ]
    return torch.stack(sums), summed_rows(rest) + first.sum((0, 1))
