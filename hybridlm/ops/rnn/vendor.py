"""LSTM and GRU by what PyTorch takes where it may choose: oneDNN on a CPU, cuDNN on a GPU, its own loop elsewhere.

cuDNN computes in float64: its tanh in float32 is off by some 5e-6, and what it gets there it may round to TF32, three
digits of seven. On an H200 both take the same time, 1.4 to 6 times less than the reference does.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from hybridlm.ops.rnn.compiled import register, run
from hybridlm.ops.rnn.recurrence import Loop, Memory, Weights
from hybridlm.ops.rnn.reference import gru_loop, lstm_loop


def lstm(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    return run("vendor's lstm", x, weights, state, 2, lengths, document)


def gru(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    return run("vendor's gru", x, weights, state, 1, lengths, document)


def exact(loop: Loop, x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """A loop that cuDNN runs, in float64; elsewhere, and where one token is written out, as it is."""
    return in_double(loop, x, state, weights) if x.is_cuda and x.shape[1] > 1 else loop(x, state, weights)


def in_double(loop: Loop, x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """The weights lie in one piece of memory, one after the other, as cuDNN takes them without a copy of its own."""
    flat = torch.cat([weight.flatten() for weight in weights]).double()
    pieces = flat.split([weight.numel() for weight in weights])
    wide = tuple(piece.view(weight.shape) for piece, weight in zip(pieces, weights, strict=True))
    y, last = loop(x.double(), tuple(tensor.double() for tensor in state), wide)
    return y.to(x.dtype), tuple(tensor.to(x.dtype) for tensor in last)


register("vendor's lstm", partial(exact, partial(lstm_loop, nullcontext)))
register("vendor's gru", partial(exact, partial(gru_loop, nullcontext)))
