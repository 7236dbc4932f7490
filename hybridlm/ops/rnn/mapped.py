"""The compiled loops under torch.func and under settings of PyTorch's that must hold in the backward pass too.

They have no rule for vmap, so the models of a stack go through one by one. cuDNN's backward pass runs outside of what
stood around its forward pass, so both are run here.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

Kernel = Callable[..., tuple[Tensor, ...]]
Settings = Callable[[], AbstractContextManager[None]]


def call(kernel: Kernel, settings: Settings, *tensors: Tensor) -> tuple[Tensor, ...]:
    """kernel(*tensors) under these settings, its backward pass as well; under vmap and grad of torch.func too."""
    with settings():
        by_cudnn = tensors[0].is_cuda and torch.backends.cudnn.enabled
        if by_cudnn or any(map(is_wrapped, tensors)):
            return Mapped.apply(kernel, settings, *tensors)
        return kernel(*tensors)


class Mapped(torch.autograd.Function):
    """kernel(*tensors), one slice of the mapped axis at a time."""

    @staticmethod
    def forward(kernel: Kernel, settings: Settings, *tensors: Tensor) -> tuple[Tensor, ...]:
        return kernel(*tensors)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.kernel, ctx.settings, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients = MappedGradient.apply(ctx.kernel, ctx.settings, len(incoming), *incoming, *ctx.saved_tensors)
        return None, None, *gradients

    @staticmethod
    def vmap(info, in_dims: tuple, kernel: Kernel, settings: Settings, *tensors: Tensor) -> tuple:
        return _one_by_one(info.batch_size, in_dims[2:], tensors, lambda *one: Mapped.apply(kernel, settings, *one))


class MappedGradient(torch.autograd.Function):
    """Gradients of a kernel, which runs again for them: (what comes in of each output, *tensors) -> of each tensor."""

    @staticmethod
    def forward(kernel: Kernel, settings: Settings, outputs: int, *given: Tensor) -> tuple[Tensor, ...]:
        with settings(), torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in given[outputs:]]
            return torch.autograd.grad(kernel(*leaves), leaves, given[:outputs])

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info, in_dims: tuple, kernel: Kernel, settings: Settings, outputs: int, *given: Tensor) -> tuple:
        return _one_by_one(
            info.batch_size, in_dims[3:], given, lambda *one: MappedGradient.apply(kernel, settings, outputs, *one)
        )


def _one_by_one(count: int, dims: tuple, tensors: tuple[Tensor, ...], run: Kernel) -> tuple:
    """run on each slice; results stacked in front."""
    slices = zip(*(_slices(tensor, dim, count) for tensor, dim in zip(tensors, dims, strict=True)), strict=True)
    stacked = tuple(torch.stack(results) for results in zip(*(run(*one) for one in slices), strict=True))
    return stacked, (0,) * len(stacked)


def _slices(tensor: Tensor, dim: int | None, count: int) -> tuple[Tensor, ...]:
    return (tensor,) * count if dim is None else tensor.unbind(dim)
