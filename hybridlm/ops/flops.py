"""What custom ops cost, told to PyTorch, which takes a kernel that is not its own for nothing.

Its FLOP counter then counts them, and torch.compile, where not all may be kept for the backward pass, computes again
what is cheap: `KEPT_OPS` holds the rest. PyTorch is told when kernels are loaded or a model is compiled, not before:
its counter imports Triton, which nobody should wait for who asks what a model costs.
"""

from collections.abc import Callable

import torch

KEPT_OPS: set[torch._ops.OpOverloadPacket | torch._ops.HigherOrderOperator] = {
    torch.ops.higher_order.flex_attention,
    torch.ops.aten._scaled_dot_product_cudnn_attention,
    torch.ops.aten._scaled_dot_product_flash_attention,
    torch.ops.aten._scaled_dot_product_efficient_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
}


_untold: list[tuple[torch._ops.OpOverloadPacket, Callable]] = []


def count(op: torch.library.CustomOpDef, flops: Callable[..., int], *, kept: bool = False) -> None:
    """flops: (shape of each tensor argument, all else as it is) -> floating-point operations of the call.

    kept: it is never computed again for a backward pass.
    """
    packet = getattr(torch.ops.hybridlm, op._qualname.removeprefix("hybridlm::"))

    def formula(*shapes, out_shape=None, **_) -> int:
        return int(flops(*shapes))

    _untold.append((packet, formula))
    if kept:
        KEPT_OPS.add(packet)


def tell() -> None:
    """Tell PyTorch's counter what it has not been told yet."""
    from torch.utils.flop_counter import register_flop_formula

    while _untold:
        packet, formula = _untold.pop()
        register_flop_formula(packet)(formula)
