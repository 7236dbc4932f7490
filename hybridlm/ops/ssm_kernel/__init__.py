"""The state space model of S4: diagonal plus low rank, bilinear, as a convolution or as a recurrence."""

from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.ops import lti
from hybridlm.ops.backend import resolve
from hybridlm.ops.ssm_kernel import reference
from hybridlm.ops.ssm_kernel.flops import s4_flops

__all__ = ["s4_flops", "s4_kernel", "s4_scan"]

Pairs = Float[Tensor, "d n 2"]


def s4_kernel(
    Lambda: Pairs,
    P: Pairs,
    B: Pairs,
    C: Pairs,
    dt: Float[Tensor, "d"],
    length: int,
    *,
    backend: str = "auto",
) -> Float[Tensor, "d {length}"]:
    """K_i = C Abar^i Bbar, i < length, of the system that `s4_scan` describes, without D: (d, length) float64.

    Generating function inside the unit circle, Cauchy sums over [B, P] x [C, P], Woodbury. C belongs to no length.
    Source: Gu, Goel, Re (2021), algorithm 1 and lemma C.3.
    """
    run = resolve("s4_kernel", backend, {"reference": reference.s4_kernel})
    return run(reference.System.of(Lambda, P, B, C, dt), length)


def s4_scan(
    x: Float[Tensor, "b t d"],
    Lambda: Pairs,
    P: Pairs,
    B: Pairs,
    C: Pairs,
    D: Float[Tensor, "d"],
    dt: Float[Tensor, "d"],
    *,
    state: Float[Tensor, "b d n 2"] | None = None,
    lengths: Int[Tensor, "b"] | None = None,
    document: Int[Tensor, "b t"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b d n 2"] | None]:
    """h_t = Abar h_{t-1} + Bbar x_t, y_t = C h_t + D x_t for every channel, with A = diag(Lambda) - P P^*.

    x: (b, t, d). Lambda, P, B, C: (d, n, 2), real pairs of one of each conjugate couple: n = N/2; Re(Lambda) < 0.
    D, dt: (d). state: (b, d, n, 2) before the first token; None: zero, and then no final state is computed, as it would
    cost more than y.
    lengths: (b) valid tokens of each row, the rest being pads behind them. document: (b, t) non-decreasing, 0 continues
    the state; the final state is that of each row's last document.
    Returns y (b, t, d) in x's dtype and the state after each row's last valid token, in the dtype of `state`.
    Discretisation, kernel and states are computed in float64; the convolution in promote(float32, x's dtype).
    Source: Gu, Goel, Re (2021), eq. 3, section 3 and appendix C.
    """
    run = resolve("s4_scan", backend, {"reference": lti.scan})
    return run(x, reference.System.of(Lambda, P, B, C, dt), D, state, lengths, document)
