"""What stands around a kernel of the convolution: pads, the last inputs, and whose the state is."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.causal_conv.reference import last_inputs


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
    if lengths is None:  # then they are at the end, and the rest of x need not be touched
        x, document = x[:, -count:], document if document is None else document[:, -count:]
    before = x.new_zeros(x.shape[0], count, x.shape[2]) if before is None else before
    owner = None if document is None else F.pad(document, (count, 0))
    return last_inputs(torch.cat([before, x], dim=1), count, lengths, owner).to(before.dtype)
