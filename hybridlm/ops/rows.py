"""Rows of unequal length, with pads on the right."""

import torch
from torch import Tensor


def last_valid(v: Tensor, before: Tensor, lengths: Tensor | None) -> Tensor:
    """v (b, t, ...) -> (b, ...): what stands at each row's last valid token, and `before` (b, ...) where it has none.

    lengths (b): valid tokens, None for all.
    """
    if lengths is None:
        return v[:, -1].to(before.dtype)
    place = (lengths - 1).clamp(min=0).reshape(-1, *[1] * (v.ndim - 1)).expand(-1, 1, *v.shape[2:])
    last = v.gather(1, place).squeeze(1).to(before.dtype)
    return torch.where((lengths > 0).reshape(-1, *[1] * (last.ndim - 1)), last, before)
