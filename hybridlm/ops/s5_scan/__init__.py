"""The state space model of S5: one diagonal system that all channels write to and read from, as a parallel scan."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops.backend import resolve
from hybridlm.ops.s5_scan import reference
from hybridlm.ops.s5_scan.reference import s5_flops

__all__ = ["s5_flops", "s5_scan"]


def s5_scan(
    x: Float[Tensor, "b t d"],
    Lambda: Float[Tensor, "n 2"],
    B: Float[Tensor, "n d 2"],
    C: Float[Tensor, "d n 2"],
    D: Float[Tensor, "d"],
    dt: Float[Tensor, "n"],
    *,
    state: Float[Tensor, "b n 2"] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n 2"] | None]:
    """h_t = Abar h_{t-1} + Bbar x_t, y_t = C h_t + D x_t, with A = diag(Lambda), each state held for a step of its own.

    Abar = e^(dt Lambda), Bbar = (Abar - 1) / Lambda B. x: (b, t, d). Lambda (n, 2), B (n, d, 2), C (d, n, 2): pairs
    (re, im) of one of each conjugate couple: n = P/2, C h means 2 Re(C z); Re(Lambda) <= 0. D: (d). dt: (n); 0 holds.
    state: (b, n, 2) before the first token; None: zero, and then no final state is returned.
    lengths: (b) valid tokens of each row, the rest being pads behind them. document: (b, t) non-decreasing, 0 continues
    the state; the final state is that of each row's last document.
    Returns y (b, t, d) in x's dtype and the state after each row's last valid token, in the dtype of `state`.
    The system is discretised in float64, and so is one token; a scan is computed in promote(float32, x's dtype).
    Source: Smith, Warrington, Linderman (2022), sections 2.2 and 3.
    """
    run = resolve("s5_scan", backend, {"reference": reference.s5_scan})
    with torch.autocast(x.device.type, enabled=False):
        return run(x, reference.System.of(Lambda, B, C, dt), D, state, lengths, document)
