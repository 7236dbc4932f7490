"""The compiled loops under torch.func: they have no rule for vmap, so the models of a stack go through one by one."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

Kernel = Callable[..., tuple[Tensor, ...]]


def call(kernel: Kernel, *tensors: Tensor) -> tuple[Tensor, ...]:
    """kernel(*tensors), under vmap and grad of torch.func too."""
    return Mapped.apply(kernel, *tensors) if any(map(is_wrapped, tensors)) else kernel(*tensors)


class Mapped(torch.autograd.Function):
    """kernel(*tensors), one slice of the mapped axis at a time."""

    @staticmethod
    def forward(kernel: Kernel, *tensors: Tensor) -> tuple[Tensor, ...]:
        return kernel(*tensors)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.kernel, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        return None, *MappedGradient.apply(ctx.kernel, len(incoming), *incoming, *ctx.saved_tensors)

    @staticmethod
    def vmap(info, in_dims: tuple, kernel: Kernel, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _one_by_one(info.batch_size, in_dims[1:], tensors, lambda *one: Mapped.apply(kernel, *one))


class MappedGradient(torch.autograd.Function):
    """Gradients of a kernel, which runs again for them: (what comes in of each output, *tensors) -> of each tensor."""

    @staticmethod
    def forward(kernel: Kernel, outputs: int, *given: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in given[outputs:]]
            return torch.autograd.grad(kernel(*leaves), leaves, given[:outputs])

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(info, in_dims: tuple, kernel: Kernel, outputs: int, *given: Tensor) -> tuple:
        return _one_by_one(
            info.batch_size, in_dims[2:], given, lambda *one: MappedGradient.apply(kernel, outputs, *one)
        )


def _one_by_one(count: int, dims: tuple, tensors: tuple[Tensor, ...], run: Kernel) -> tuple:
    """run on each slice; results stacked in front."""
    slices = zip(*(_slices(tensor, dim, count) for tensor, dim in zip(tensors, dims, strict=True)), strict=True)
    stacked = tuple(torch.stack(results) for results in zip(*(run(*one) for one in slices), strict=True))
    return stacked, (0,) * len(stacked)


def _slices(tensor: Tensor, dim: int | None, count: int) -> tuple[Tensor, ...]:
    return (tensor,) * count if dim is None else tensor.unbind(dim)
