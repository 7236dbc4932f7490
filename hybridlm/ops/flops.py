"""What custom ops cost, told to PyTorch, which takes a kernel that is not its own for nothing.

Its FLOP counter then counts them, and torch.compile, where not all may be kept for the backward pass, computes again
what is cheap: `KEPT_OPS` holds the rest.
"""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import register_flop_formula

KEPT_OPS: set[torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator] = {
    torch.ops.higher_order.flex_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
}


def count(op: torch.library.CustomOpDef, flops: Callable[..., int], *, kept: bool) -> None:
    """flops: (shape of each tensor argument, all else as it is) -> floating-point operations of the call."""
    packet = getattr(torch.ops.hybridlm, op._qualname.removeprefix("hybridlm::"))

    def formula(*shapes, out_shape=None, **_) -> int:
        return int(flops(*shapes))

    register_flop_formula(packet)(formula)
    if kept:
        KEPT_OPS.add(packet)
