"""LSTM and GRU by what PyTorch takes where it may choose: oneDNN on a CPU, cuDNN on a GPU, its own loop elsewhere.

cuDNN would round float32 to TF32, three digits of seven, if it were let, forward and backward. Its tanh is still off by
some 5e-6 in float32, where the reference, four times slower on an H200, is off by 1e-7.
"""

from functools import partial

from torch import Tensor

from hybridlm.ops.rnn.compiled import register, run
from hybridlm.ops.rnn.recurrence import Memory, Weights
from hybridlm.ops.rnn.reference import cudnn, gru_loop, lstm_loop

exact = partial(cudnn, allow_tf32=False)


def lstm(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    return run("vendor's lstm", x, weights, state, 2, lengths, document)


def gru(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    return run("vendor's gru", x, weights, state, 1, lengths, document)


register("vendor's lstm", partial(lstm_loop, exact))
register("vendor's gru", partial(gru_loop, exact))
