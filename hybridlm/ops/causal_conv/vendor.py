"""The short causal convolution by the causal_conv1d package (1.5 or later), called at the level of functions.

Its `seq_idx` keeps documents apart, but the state before the first token is, to it, the first document's: where that is
not number 0 the state is emptied here. The state that is returned is read off the inputs, as the package gives none
with documents. It sums the gradients of its weights in whatever order its threads come: the last bits differ from call
to call, and where determinism is asked for our own kernel is taken.
"""

import torch
from torch import Tensor

from hybridlm.ops.backend import found, missing
from hybridlm.ops.causal_conv.around import around, register

FUNCTIONS = "causal_conv1d.cpp_functions"
EVEN = 8  # channels that it loads at a time


def lacks(x: Tensor, weight: Tensor, state: Tensor | None) -> str | None:
    """Why the package cannot take these; None if it can."""
    if not x.is_cuda:
        return "causal_conv1d needs a GPU"
    if (why := missing(FUNCTIONS, "causal_conv1d_fwd_function")) is not None:
        return why
    if not 2 <= weight.shape[-1] <= 4:
        return "causal_conv1d takes widths from 2 to 4"
    if x.shape[2] % EVEN:
        return f"causal_conv1d takes channels in multiples of {EVEN}"
    if x.dtype == torch.float64 or weight.dtype == torch.float64:
        return "causal_conv1d takes dtypes of at most 32 bits"
    if state is not None and state.dtype != x.dtype:
        return "causal_conv1d takes a state in the dtype of the input"
    if x.shape[1] == 1:
        return "causal_conv1d is taken for more than one token"
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
        return "causal_conv1d sums the gradients of its weights in any order"
    many = x.stride(0) * (x.shape[0] - 1) + x.stride(1) * x.shape[1]
    return "causal_conv1d counts in 32 bits, and these are too many numbers" if many >= 2**31 else None


def causal_conv1d(x: Tensor, *rest) -> tuple[Tensor, Tensor]:
    return around(_conv, x, *rest)


@torch.library.custom_op("hybridlm::causal_conv1d", mutates_args=())
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, document: Tensor | None, silu: bool
) -> Tensor:
    """x (b, t, c), weight (c, k), before (b, k - 1, c) -> y (b, t, c)."""
    run = found(FUNCTIONS, "causal_conv1d_fwd_function")
    x, weight, bias, before, document = _in_order(x, weight, bias, before, document)
    return run(x, weight, bias, document, before, None, silu).transpose(1, 2).contiguous()


@torch.library.custom_op("hybridlm::causal_conv1d_backward", mutates_args=())
def _conv_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    before: Tensor | None,
    document: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, before; empty for what is None."""
    run, none = found(FUNCTIONS, "causal_conv1d_bwd_function"), x.new_empty(0)
    x, weight, bias, before, document = _in_order(x, weight, bias, before, document)
    dy = _channels_last(dy)
    dx, dw, db, dbefore = run(x, weight, bias, dy, document, before, None, None, before is not None, silu)
    dbefore = none if before is None else dbefore.transpose(1, 2).contiguous()
    return dx.transpose(1, 2).contiguous(), dw, weight.new_empty(0) if bias is None else db, dbefore


def _in_order(
    x: Tensor, weight: Tensor, bias: Tensor | None, before: Tensor | None, document: Tensor | None
) -> tuple[Tensor | None, ...]:
    """All as the package wants them: x and before (b, c, ...) with the channels innermost in memory."""
    weight, bias, document = (v if v is None else v.contiguous() for v in (weight, bias, document))
    return _channels_last(x), weight, bias, before if before is None else _channels_last(before), document


def _channels_last(x: Tensor) -> Tensor:
    """(b, t, c) -> (b, c, t), as a view where rows of a split lie so that the package can read them."""
    even = x.stride(2) == 1 and x.stride(0) % EVEN == 0 and x.stride(1) % EVEN == 0 and x.stride(1) >= x.shape[2]
    return (x if even and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)).transpose(1, 2)


register(_conv, _conv_backward)
