"""The shift state space model of H3: a memory of the last inputs themselves, read by a learned filter."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.shift_ssm import reference
from hybridlm.ops.shift_ssm.reference import shift_flops

__all__ = ["shift_flops", "shift_ssm"]


def shift_ssm(
    x: Float[Tensor, "b t d"],
    C: Float[Tensor, "d n"],
    D: Float[Tensor, "d"],
    *,
    state: Float[Tensor, "b d n-1"] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d n-1"] | None]:
    """h_t = S h_{t-1} + e_1 x_t, y_t = C h_t + D x_t, S the shift by one place: y_t = sum_{i < n} C_i x_{t-i} + D x_t.

    x: (b, t, d). C: (d, n), the present first. D: (d). state: the n - 1 inputs before the first token, the latest last;
    None: zeros, and then no final state is returned.
    lengths: valid tokens of each row, the rest being pads behind them, which hold zeros; 0 leaves the row's state as it
    is. document: non-decreasing along t; 0 continues the state, and no tap reaches over a change of number.
    Returns y (b, t, d) in x's dtype and the last n - 1 inputs of each row's last document, in the dtype of `state`.
    Computed in at least float32: many tokens by FFT, one token tap by tap. t >= 1, n >= 1.
    Source: Fu, Dao et al. (2022), section 3.1.
    """
    run = resolve("shift_ssm", backend, {"reference": reference.shift_ssm})
    with torch.autocast(x.device.type, enabled=False):
        return run(x, C, D, state, lengths, document)
