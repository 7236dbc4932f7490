"""Recurrent networks with gates, whose state goes through a nonlinearity at every token: no scan, no parallel form."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import Offer, resolve
from hybridlm.ops.rnn import reference, vendor

Hidden = Float[Tensor, "b h"]


def lstm(
    x: Float[Tensor, "b t d"],
    weight_ih: Float[Tensor, "g d"],
    weight_hh: Float[Tensor, "g h"],
    bias_ih: Float[Tensor, "g"],
    bias_hh: Float[Tensor, "g"],
    *,
    state: tuple[Hidden, Hidden] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h"], tuple[Hidden, Hidden]]:
    """c_t = f * c_{t-1} + i * g,  y_t = o * tanh(c_t),  [i, f, g, o] = sigma(W_ih x_t + b_ih + W_hh y_{t-1} + b_hh).

    sigma is tanh for g, the logistic function for i, f and o. Hochreiter and Schmidhuber 1997, with the forget gate of
    Gers et al. 2000; weights as nn.LSTM has them. Returns (y, the last (y, c)).
    state: (y, c) before the first token (zero if None). lengths: valid tokens of each row, at its start; what follows
    is not read, and 0 leaves the row's state as it is. document: non-decreasing along t; 0 continues the state, and it
    starts from zero wherever the number changes. Packing waits for the device, to count documents.
    Computed in at least float32, which is the dtype of the state; y has the dtype of x, and means nothing at a pad.
    reference: PyTorch's compiled loop of matrix products; vendor: oneDNN's or cuDNN's, see `best_first`. t >= 1.
    """
    run = resolve("lstm", backend, best_first(x, vendor.lstm, reference.lstm))
    return run(x, (weight_ih, weight_hh, bias_ih, bias_hh), state, lengths, document)


def gru(
    x: Float[Tensor, "b t d"],
    weight_ih: Float[Tensor, "g d"],
    weight_hh: Float[Tensor, "g h"],
    bias_ih: Float[Tensor, "g"],
    bias_hh: Float[Tensor, "g"],
    *,
    state: Hidden | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h"], Hidden]:
    """y_t = (1 - z) * n + z * y_{t-1},  n = tanh(a_n + r * v_n),  r = sigma(a_r + v_r),  z = sigma(a_z + v_z).

    [a_r, a_z, a_n] = W_ih x_t + b_ih,  [v_r, v_z, v_n] = W_hh y_{t-1} + b_hh. Cho et al. 2014, with the reset gate
    after the matrix product, as nn.GRU has it. Returns (y, the last y). For the rest, see `lstm`.
    """
    run = resolve("gru", backend, best_first(x, vendor.gru, reference.gru))
    y, (last,) = run(
        x, (weight_ih, weight_hh, bias_ih, bias_hh), None if state is None else (state,), lengths, document
    )
    return y, last


def best_first(x: Tensor, vendor: Callable, reference: Callable) -> dict[str, Callable | Offer]:
    """The vendor's loop is the faster one; but cuDNN's is exact in float64 alone, and takes twice the memory."""
    wide = "cuDNN computes in float64, in twice the memory: ask for it by name" if x.is_cuda else None
    return {"vendor": Offer(vendor, asked=wide), "reference": reference}
