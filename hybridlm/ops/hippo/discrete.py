"""From x' = A x + B f to x_k = Abar x_{k-1} + Bbar f_k, where f_k is the input during step k.

Source: HiPPO (2020), section 2.4, theorem 2 (eq. 4) and appendix B.3; S4 (2021), eq. 3; Mamba (2023), eq. 4 (zoh).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hybridlm.checks import choice, real
from hybridlm.errors import SpecError
from hybridlm.ops.hippo.basis import basis
from hybridlm.ops.hippo.measures import transition

RATIONAL = {"bilinear": (0.5, 0.5), "euler": (0.0, 1.0), "backward": (1.0, 0.0)}  # parts of a step: implicit, explicit
METHODS = (*RATIONAL, "zoh")


def discretize(
    A: Float[Tensor, "n n"], B: Float[Tensor, "n"], dt: float, method: str = "bilinear"
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n"]]:
    """Abar (n, n), Bbar (n), float64, of a step dt > 0.

    bilinear: (I - dt/2 A)^-1 (I + dt/2 A), (I - dt/2 A)^-1 dt B; error O(dt^2), and as stable as A is.
    zoh: e^{dt A}, integral of e^{sA} B over a step; exact for an f that is constant during a step, singular A or not.
    euler: I + dt A, dt B; O(dt), and explodes unless dt |A| is small: |A| grows with n^2.
    backward: (I - dt A)^-1, (I - dt A)^-1 dt B; O(dt), stable.
    SpecError: an unknown method, or a dt that is no number from 1e-60 to 1e60.
    """
    A, B, dt = A.double(), B.double(), real("dt", dt, low=1e-60, high=1e60)
    if choice("method", method, METHODS) == "zoh":
        return _held(dt * A, dt * B)
    return _rational(dt * A, dt * B, *RATIONAL[method])


def _held(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """e^A and the integral of e^{sA} B over [0, 1]: both stand in the exponential of [[A, B], [0, 0]]."""
    n = len(B)
    block = A.new_zeros(n + 1, n + 1)
    block[:n, :n], block[:n, n] = A, B
    block = torch.linalg.matrix_exp(block)
    return block[:n, :n], block[:n, n]


def _rational(A: Tensor, B: Tensor, implicit: float, explicit: float) -> tuple[Tensor, Tensor]:
    """(I - implicit A)^-1 (I + explicit A), (I - implicit A)^-1 B for A (..., n, n), B (..., n)."""
    identity = torch.eye(B.shape[-1], dtype=B.dtype)
    right = torch.cat([identity + explicit * A, B[..., None]], dim=-1)
    both = torch.linalg.solve(identity - implicit * A, right)
    return both[..., :-1], both[..., -1]


def discretize_scaled(
    n: int, k: Int[Tensor, "m"], method: str = "bilinear"
) -> tuple[Float[Tensor, "m {n} {n}"], Float[Tensor, "m {n}"]]:
    """LegS's own update, x' = (A x + B f) / t: Abar (m, n, n), Bbar (m, n), float64, of the steps k (m), from 1.

    Step k leads from time k - 1 to time k, counted in samples: there is no dt, as the memory stretches with its input.
    bilinear, euler, backward: those of A/k, B/k; HiPPO, appendix B.3 (eq. 4 is euler, which explodes while k < n/2).
    zoh: in log t the system is x' = A x + B f, so Abar = e^{A log(k/(k-1))}, and Bbar = (I - Abar) e_0 as A e_0 = -B:
    exact for a held input from the first step on, where Abar is 0.
    SpecError: an unknown method, n out of range, a k below 1.
    """
    A, B = transition("legs", n)
    if len(k) and k.min() < 1:
        raise SpecError(f"k: {k.min().item()}; steps are counted from 1")
    k = k.double()
    if choice("method", method, METHODS) != "zoh":
        return _rational(A / k[:, None, None], B / k[:, None], *RATIONAL[method])
    Abar = _shrink(n, (k - 1) / k)
    return Abar, torch.eye(n, dtype=torch.float64)[0] - Abar[..., 0]


def _shrink(n: int, r: Tensor) -> Tensor:
    """e^{A log(1/r)} of LegS for r (m) in [0, 1]: (m, n, n).

    It takes what fills [0, 1] to what fills [0, r], with nothing after: r int_0^1 q_i(r v) q_j(v) dv, with the
    orthonormal q_i = sqrt(2i+1) P_i(2v - 1). Gauss's n nodes give these integrals of polynomials exactly.
    """
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(n))
    v = (nodes + 1) / 2
    small = basis("legt", n, 1 - torch.outer(r, v).flatten()).unflatten(0, (len(r), n))
    return r[:, None, None] * small.mT @ (basis("legt", n, 1 - v) * weights[:, None] / 2)
