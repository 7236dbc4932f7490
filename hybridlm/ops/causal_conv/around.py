"""What stands around a kernel of the convolution: pads, the last inputs, whose the state is, shapes, the derivative."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.causal_conv.reference import last_inputs
from hybridlm.ops.flops import count


def around(
    conv: Callable,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    document: Tensor | None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    """conv: (x (b, t, c), weight (c, k), bias, before (b, k - 1, c), document in 32 bits, silu) -> y (b, t, c)."""
    if lengths is not None:
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = torch.where(valid[..., None], x, 0)
    before = None if state is None else state.transpose(1, 2)
    last = _last(x, before, weight.shape[-1] - 1, lengths, document)
    if document is not None:
        before = before if before is None else torch.where((document[:, 0] == 0)[:, None, None], before, 0)
        document = document.to(torch.int32)
    bias = bias if bias is None else bias.to(weight.dtype)
    return conv(x, weight.squeeze(1), bias, before, document, activation == "silu"), last


def _last(x: Tensor, before: Tensor | None, count: int, lengths: Tensor | None, document: Tensor | None) -> Tensor:
    """The last inputs of every row, before (b, count, c) among them where the row is short."""
    before = x.new_zeros(x.shape[0], count, x.shape[2]) if before is None else before
    if count == 0:
        return torch.cat([before, x[:, :0]], dim=1).to(before.dtype).transpose(1, 2)
    if lengths is not None:
        return _last_of_each(x, before, lengths, document).to(before.dtype)
    owner = None if document is None else F.pad(document[:, -count:], (count, 0))
    return last_inputs(torch.cat([before, x[:, -count:]], dim=1), count, None, owner).to(before.dtype)


def _last_of_each(x: Tensor, before: Tensor, lengths: Tensor, document: Tensor | None) -> Tensor:
    """What last_inputs gives for rows of these lengths, without a copy of x behind `before`."""
    count = before.shape[1]
    place = lengths[:, None] + torch.arange(count, device=x.device)  # in `before` and x, one behind the other
    held, read = _at(before, place.clamp(max=count - 1)), _at(x, (place - count).clamp(min=0))
    last = torch.where((place < count)[..., None], held, read)
    if document is not None:
        owner = F.pad(document, (count, 0))
        last = torch.where((owner.gather(1, place) == owner[:, -1:])[..., None], last, 0)
    return last.transpose(1, 2)


def _at(x: Tensor, place: Tensor) -> Tensor:
    """x (b, t, c), place (b, n) -> (b, n, c)."""
    return x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))


def register(conv: Callable, backward: Callable) -> None:
    """Tell torch the shapes of two custom ops, and that the second gives the gradients of the first.

    conv: as `around` calls it. backward: (dy, what conv takes) -> gradients of x, weight, bias, before; empty for what
    is None.
    """
    conv.register_fake(lambda x, *rest: x.new_empty(x.shape))
    backward.register_fake(_gradients_like)
    count(conv, _flops)
    count(backward, lambda dy, *inputs: 2 * _flops(*inputs))

    def pull_back(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, before, document = ctx.saved_tensors  # read once: a checkpoint's cannot be read again
        dx, dw, db, dbefore = backward(dy, x, weight, bias, before, document, ctx.silu)
        return dx, dw, None if bias is None else db, None if before is None else dbefore, None, None

    conv.register_autograd(pull_back, setup_context=_keep)


def _flops(x: tuple, weight: tuple, *others) -> int:
    """A product and an addition a tap."""
    return 2 * math.prod(x) * weight[1]


def _gradients_like(dy, x, weight, bias, before, document, silu) -> tuple[Tensor, ...]:
    inputs = (x, weight, weight[:0, 0] if bias is None else bias, x[0, 0, :0] if before is None else before)
    return tuple(v.new_empty(v.shape) for v in inputs)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.silu = inputs[5]
