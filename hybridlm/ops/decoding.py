"""What the kernels of decoding have in common: one token, a state that they write over, and no gradients."""

import torch
from torch import Tensor

from hybridlm.ops.backend import triton_asked, triton_lacks

ROWS = 65535  # the second and third axes of a grid end there
READ = (torch.bfloat16, torch.float16, torch.float32)


def kernel_lacks(*tensors: Tensor | None) -> str | None:
    """Why a kernel without gradients that computes in float32 cannot take these."""
    given = [v for v in tensors if v is not None]
    if (why := triton_lacks(given[0])) is not None:
        return why
    if with_gradients(*given):
        return "the kernels of decoding have no gradients"
    if any(v.dtype not in READ for v in given):
        return "the kernels of decoding read bf16, fp16 and fp32"
    return None


def with_gradients(*tensors: Tensor | None) -> bool:
    """Whether autograd follows what is done with these."""
    return torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in tensors)


def step_lacks(
    x: Tensor, state: Tensor | None, *others: Tensor | None, document: Tensor | None, in_place: bool
) -> str | None:
    """Why a kernel for one token x (b, 1, ...) after a state, in the state's memory, cannot take the call."""
    if x.shape[1] != 1 or state is None or not in_place:
        return "the kernel of decoding takes one token after a state, in place"
    if document is not None:
        return "the kernel of decoding knows no documents"
    if (why := kernel_lacks(x, state, *others)) is not None:
        return why
    if x.shape[0] > ROWS:
        return f"the kernel of decoding takes at most {ROWS} rows"
    return None if state.is_contiguous() else "the kernel of decoding needs its state in one piece"


def small_asked(x: Tensor) -> str | None:
    """Why `auto` takes no kernel of ours for an operation on few numbers though one could run."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses it with what stands around it"
    return triton_asked(x)
