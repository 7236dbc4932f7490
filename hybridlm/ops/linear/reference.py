"""A linear layer in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool) -> Tensor:
    if wide:
        dtype = torch.promote_types(x.dtype, torch.float32)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)
    return F.linear(x, weight, bias)
