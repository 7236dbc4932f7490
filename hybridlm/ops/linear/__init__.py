"""A linear layer's product, which in decoding is a matter of reading the weight once, as fast as memory gives it."""

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked
from hybridlm.ops.decoding import kernel_lacks
from hybridlm.ops.linear import reference

ROWS = 16  # the most rows for which our kernel is ahead of the library's


def linear(
    x: Float[Tensor, "*b i"],
    weight: Float[Tensor, "o i"],
    bias: Float[Tensor, "o"] | None = None,
    *,
    wide: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*b o"]:
    """y = W x + bias, row by row: torch.nn.functional.linear.

    Few rows without gradients are what decoding gives it: then W is read once by a kernel that multiplies as it reads,
    sums in float32, and is deterministic. wide: from what is given, in at least float32, which y has then.
    """
    k = kernels("hybridlm.ops.linear.triton")
    offers = {
        "triton": Offer(k and k.linear, _lacks(x, weight, bias, wide), triton_asked(x)),
        "reference": reference.linear,
    }
    return resolve("linear", backend, offers)(x, weight, bias, wide)


def _lacks(x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool) -> str | None:
    """Why our kernel cannot take the call."""
    if (why := kernel_lacks(x, weight, bias)) is not None:
        return why
    if torch.is_autocast_enabled(x.device.type):
        return "the kernel for few rows knows no autocast"
    if x.shape[-1] != weight.shape[1]:
        return "x and the weight's rows are not of one length"
    if not 0 < x.shape[:-1].numel() <= ROWS:
        return f"the kernel is for 1 to {ROWS} rows"
    if weight.stride(1) != 1 or (weight.dtype != x.dtype and not wide):
        return "the kernel needs x and weight in one dtype, and the weight's rows in one piece"
    return None
