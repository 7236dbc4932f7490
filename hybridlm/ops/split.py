"""A projection's parts, and their gradients side by side again."""

import torch
from torch import Tensor


def split(x: Tensor, widths: int | list[int]) -> tuple[Tensor, ...]:
    """x.split(widths, dim=-1).

    Compiled on a GPU the gradient is put together by PyTorch's own concatenation: what Inductor generates reads each
    part under a mask, element by element.
    """
    if torch.compiler.is_compiling() and x.is_cuda:
        return _Split.apply(x, widths)
    return x.split(widths, dim=-1)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, widths: int | list[int]) -> tuple[Tensor, ...]:
        return x.split(widths, dim=-1)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return _join(gradients), None


@torch.library.custom_op("hybridlm::join", mutates_args=())
def _join(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=-1)


@_join.register_fake
def _(parts):
    return parts[0].new_empty(*parts[0].shape[:-1], sum(v.shape[-1] for v in parts))
