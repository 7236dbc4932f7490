"""Diagonal state space models, one a channel: as a convolution or as a recurrence."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops import lti
from hybridlm.ops.backend import resolve
from hybridlm.ops.diagonal_ssm import reference
from hybridlm.ops.diagonal_ssm.flops import diagonal_flops

__all__ = ["RULES", "diagonal_flops", "diagonal_kernel", "diagonal_ssm"]

RULES = ("zoh", "bilinear")
"""How the continuous system is discretised."""

Rule = Literal["zoh", "bilinear"]
Pairs = Float[Tensor, "d n 2"]


def diagonal_kernel(
    Lambda: Pairs,
    B: Pairs,
    C: Pairs,
    dt: Float[Tensor, "d"],
    length: int,
    *,
    rule: Rule = "zoh",
    backend: str = "auto",
) -> Float[Tensor, "d {length}"]:
    """K_i = C Abar^i Bbar, i < length, of the system that `diagonal_ssm` describes, without D: (d, length) float64.

    A Vandermonde product, in blocks. Source: Gu, Gupta, Goel, Re (2022), section 3.2.
    """
    run = resolve("diagonal_kernel", backend, {"reference": reference.diagonal_kernel})
    return run(reference.System.of(Lambda, B, C, dt, rule), length)


def diagonal_ssm(
    x: Float[Tensor, "b t d"],
    Lambda: Pairs,
    B: Pairs,
    C: Pairs,
    D: Float[Tensor, "d"],
    dt: Float[Tensor, "d"],
    *,
    rule: Rule = "zoh",
    state: Float[Tensor, "b d n 2"] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d n 2"] | None]:
    """h_t = Abar h_{t-1} + Bbar x_t, y_t = C h_t + D x_t for every channel, with A = diag(Lambda).

    x: (b, t, d). Lambda, B, C: (d, n, 2), real pairs of one of each conjugate couple: n = N/2, C h = 2 Re(C z);
    Re(Lambda) <= 0. D, dt: (d); dt = 0 holds the state. rule: zoh, Abar = e^(dt A) and Bbar = (Abar - 1) / A B; or
    bilinear, Abar = (1 + dt/2 A) / (1 - dt/2 A) and Bbar = dt / (1 - dt/2 A) B.
    state: (b, d, n, 2) before the first token; None: zero, and then no final state is computed, as it would cost more
    than y.
    lengths: (b) valid tokens of each row, the rest being pads behind them. document: (b, t) non-decreasing, 0 continues
    the state; the final state is that of each row's last document.
    Returns y (b, t, d) in x's dtype and the state after each row's last valid token, in the dtype of `state`.
    Discretisation, kernel and states are computed in float64; the convolution in promote(float32, x's dtype).
    Source: Gu, Gupta, Goel, Re (2022), section 3.
    """
    run = resolve("diagonal_ssm", backend, {"reference": lti.scan})
    return run(x, reference.System.of(Lambda, B, C, dt, rule), D, state, lengths, document)
