"""Where the plain PyTorch of an op has its backward pass written by hand: on a CPU, which is bound by memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.ops.backend import forward_mode


def by_hand(*tensors: Tensor) -> bool:
    """Whether that is for these: not under torch.func, which wants formulas that it can trace, nor where derivatives
    are taken forward, nor under torch.compile, see `by_hand_compiled`."""
    if torch.compiler.is_compiling() or forward_mode() or any(is_wrapped(tensor) for tensor in tensors):
        return False
    return tensors[0].device.type == "cpu"


def by_hand_compiled(x: Tensor) -> bool:
    """Whether a backward pass by hand that torch.compile can trace is for this: on a CPU too, and in float32 alone."""
    return torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32


def by_formula(formula: Callable, inputs: Sequence[Tensor], incoming: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of a formula, with a graph of their own: for second derivatives, which nothing by hand has."""
    with torch.enable_grad():
        outputs = formula(*inputs)
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, incoming, create_graph=True, allow_unused=True))
    return [next(found) if x.requires_grad else None for x in inputs]
