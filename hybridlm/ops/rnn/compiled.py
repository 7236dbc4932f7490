"""The recurrences as single ops under torch.compile, which would go into their loops and count their documents."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridlm.ops.backend import exporting
from hybridlm.ops.rnn.recurrence import Loop, Memory, Weights, recur

_loops: dict[str, Loop] = {}  # by name, as an op's arguments are plain data


def register(name: str, loop: Loop) -> None:
    """Let `run` know a loop by this name."""
    _loops[name] = loop


def run(
    name: str,
    x: Tensor,
    weights: Weights,
    state: Memory | None,
    count: int,
    lengths: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Memory]:
    """As `recur`, with a registered loop. One token is written out, and torch.compile may see that.

    A program that is exported is to run where this op is not: there the loop is written out, token by token.
    """
    by_name = torch.compiler.is_compiling() and not exporting()
    if not by_name or (x.shape[1] == 1 and document is None):
        return recur(_loops[name], x, weights, state, count, lengths, document)
    wide = torch.promote_types(x.dtype, torch.float32)
    state = state or (x.new_zeros(x.shape[0], weights[1].shape[1], dtype=wide),) * count
    y, *last = torch.ops.hybridlm.recurrent(name, [x, *weights, *state], lengths, document)
    return y, tuple(last)


@torch.library.custom_op("hybridlm::recurrent", mutates_args=())
def _recurrent(name: str, tensors: Sequence[Tensor], lengths: Tensor | None, document: Tensor | None) -> list[Tensor]:
    """tensors: x (b, t, d), four weights, and the state. Returns y (b, t, h) and the last state."""
    return [_own(tensor) for tensor in _outputs(name, tensors, lengths, document)]


@_recurrent.register_fake
def _(name, tensors, lengths, document):
    x, _, hidden, _, _, *state = tensors
    wide = torch.promote_types(x.dtype, torch.float32)
    return [x.new_empty(*x.shape[:2], hidden.shape[1]), *(s.new_empty(s.shape, dtype=wide) for s in state)]


def _own(tensor: Tensor) -> Tensor:
    """What an op returns: dense, as its fake says, and in memory of its own."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _outputs(name: str, tensors: Sequence[Tensor], lengths: Tensor | None, document: Tensor | None) -> list[Tensor]:
    x, *weights, state = *tensors[:5], tuple(tensors[5:])
    y, last = recur(_loops[name], x, tuple(weights), state, len(state), lengths, document)
    return [y, *last]


# Not torch.library.custom_op, in whose body no gradient can be taken.
torch.library.define(
    "hybridlm::recurrent_gradient",
    "(str name, Tensor[] incoming, Tensor[] tensors, Tensor? lengths, Tensor? document) -> Tensor[]",
)


@torch.library.impl("hybridlm::recurrent_gradient", "default")
def _(name, incoming, tensors, lengths, document):
    """The gradient of each tensor; the loop runs again for it."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        outputs = _outputs(name, leaves, lengths, document)
    return [_own(gradient) for gradient in torch.autograd.grad(outputs, leaves, incoming)]


@torch.library.register_fake("hybridlm::recurrent_gradient")
def _(name, incoming, tensors, lengths, document):
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def _keep(ctx, inputs: tuple, output: list[Tensor]) -> None:
    ctx.name, tensors, *marks = inputs
    ctx.marked = [mark is not None for mark in marks]
    ctx.save_for_backward(*(mark for mark in marks if mark is not None), *tensors)


def _backward(ctx, incoming: list[Tensor]) -> tuple:
    saved = list(ctx.saved_tensors)
    marks = [saved.pop(0) if marked else None for marked in ctx.marked]
    incoming = [tensor.contiguous() for tensor in incoming]
    return None, torch.ops.hybridlm.recurrent_gradient(ctx.name, incoming, saved, *marks), None, None


_recurrent.register_autograd(_backward, setup_context=_keep)
