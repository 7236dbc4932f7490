"""LSTM and GRU as PyTorch's own compiled loop of matrix products and gates, one token after the other.

A loop in Python would spend its time in Python. One token is written out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.rnn.compiled import register, run
from hybridlm.ops.rnn.mapped import Settings, call
from hybridlm.ops.rnn.recurrence import Memory, Weights


def lstm(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    return run("lstm", x, weights, state, 2, lengths, document)


def gru(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    return run("gru", x, weights, state, 1, lengths, document)


@contextmanager
def plain() -> Iterator[None]:
    """Neither oneDNN nor cuDNN."""
    onednn = torch.backends.mkldnn.flags(enabled=False, deterministic=None, allow_tf32=None, fp32_precision=None)
    cudnn = torch.backends.cudnn.flags(  # None leaves a setting as it is
        enabled=False, benchmark=None, benchmark_limit=None, deterministic=None, allow_tf32=None, fp32_precision=None
    )
    with onednn, cudnn:
        yield


def lstm_loop(settings: Settings, x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """x (b, t, d), a state for every row -> y (b, t, h), the state after the last token. settings: see `call`."""
    if x.shape[1] == 1:
        return lstm_step(x, state, weights)
    y, *last = call(_lstm, settings, x, *state, *weights)
    return y, tuple(last)


def _lstm(x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, *last = torch.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return y, *(tensor.reshape(h.shape) for tensor in last)  # one axis too many in PyTorch 2.11, when traced


def lstm_step(x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """One token: the recurrence itself."""
    ih, hh, bias_ih, bias_hh = weights
    h, c = state
    i, f, g, o = (F.linear(x[:, 0], ih, bias_ih) + F.linear(h, hh, bias_hh)).chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h[:, None], (h, c)


def gru_loop(settings: Settings, x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """The same for a GRU."""
    if x.shape[1] == 1:
        return gru_step(x, state, weights)
    y, *last = call(_gru, settings, x, *state, *weights)
    return y, tuple(last)


def _gru(x: Tensor, h: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    y, h = torch.gru(x, h[None], weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return y, h[0]


def gru_step(x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """One token: the recurrence itself."""
    ih, hh, bias_ih, bias_hh = weights
    (h,) = state
    a_r, a_z, a_n = F.linear(x[:, 0], ih, bias_ih).chunk(3, dim=-1)
    v_r, v_z, v_n = F.linear(h, hh, bias_hh).chunk(3, dim=-1)
    n, z = torch.tanh(a_n + (a_r + v_r).sigmoid() * v_n), (a_z + v_z).sigmoid()
    h = n + z * (h - n)
    return h[:, None], (h,)


register("lstm", partial(lstm_loop, plain))
register("gru", partial(gru_loop, plain))
