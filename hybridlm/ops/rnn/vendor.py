"""LSTM and GRU by what PyTorch takes where it may choose: oneDNN on a CPU, cuDNN on a GPU, its own loop elsewhere.

cuDNN would round float32 to TF32, three digits of seven, if it were let.
"""

from torch import Tensor

from hybridlm.ops.rnn.recurrence import Memory, Weights, recur
from hybridlm.ops.rnn.reference import cudnn, gru_loop, lstm_loop


def lstm(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    with cudnn(allow_tf32=False):
        return recur(lstm_loop, x, weights, state, 2, lengths, document)


def gru(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    with cudnn(allow_tf32=False):
        return recur(gru_loop, x, weights, state, 1, lengths, document)
