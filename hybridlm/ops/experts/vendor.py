"""Grouped matrix products by PyTorch's own kernel, which reads on the device where each group ends."""

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.ops.backend import from_hopper

ALIGNED = 16  # bytes, of every row


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    dtype = product_dtype(x)
    with torch.autocast(x.device.type, enabled=False):
        return torch._grouped_mm(x.to(dtype), weight.to(dtype).mT, offs=counts.cumsum(0).to(torch.int32))


def lacks(x: Tensor, weight: Tensor) -> str | None:
    """Why it cannot take the call."""
    if product_dtype(x) != torch.bfloat16:
        return "PyTorch's grouped product is for bf16"
    if not torch.compiler.is_compiling() and (is_wrapped(x) or is_wrapped(weight)):
        return "PyTorch's grouped product has no rule for vmap"
    if x.shape[0] == 0:
        return "there are no rows"
    if weight.shape[1] * 2 % ALIGNED or weight.shape[2] * 2 % ALIGNED:
        return "PyTorch's grouped product needs widths that 8 divides"
    return None


def asked(x: Tensor) -> str | None:
    """Why `auto` passes over it."""
    if not x.is_cuda:
        return "on a CPU PyTorch's grouped product is a loop in its turn"
    return None if from_hopper() else "before Hopper PyTorch's grouped product is a loop in its turn"


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast, if it is on, makes of the dtype of x."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
