"""What a state stands for: the basis functions of each measure, the signal in a state, and the kernels e^{sA} B.

Functions of age s >= 0: how long ago, on the measure's own time scale.

Source: HiPPO (2020), appendices B.1 and D; How to Train Your HiPPO (2022), definition 2 and section 4.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import choice, paired, whole
from hybridlm.ops.hippo.measures import LARGEST, MEASURES, transition


def weight(measure: str, ages: Float[Tensor, "m"]) -> Float[Tensor, "m"]:
    """w(s), which integrates to 1: e^-s for legs and lagt, 1 on [0, 1] for legt and fourier; 0 at negative ages."""
    s = ages.double()
    if choice("measure", measure, MEASURES) in ("legs", "lagt"):
        return torch.where(s >= 0, torch.exp(-s), 0)
    return ((s >= 0) & (s <= 1)).double()


def basis(measure: str, n: int, ages: Float[Tensor, "m"]) -> Float[Tensor, "m {n}"]:
    """p_i(s), i < n: (m, n) float64, orthonormal against `weight`.

    legs: sqrt(2i+1) P_i(2 e^-s - 1). legt: sqrt(2i+1) P_i(1 - 2 s). lagt: L_i(s). fourier: 1, 0, then
    sqrt(2) cos(2 pi k s), sqrt(2) sin(2 pi k s) for k = 1 .. n/2 - 1; the sine of k = 0 is the 0.
    P_i are Legendre's polynomials, L_i Laguerre's. HiPPO appendices B.1, D.1 to D.4.
    """
    s = ages.double()
    if choice("measure", measure, MEASURES) == "fourier":
        return _waves(paired("n", n), s)
    whole("n", n, high=LARGEST)
    if measure == "lagt":
        return _recurrence(n, 1 - s, lambda i, p, q: ((2 * i + 1 - s) * p - i * q) / (i + 1))
    x = 2 * torch.exp(-s) - 1 if measure == "legs" else 1 - 2 * s
    scale = (2 * torch.arange(n, dtype=torch.float64) + 1).sqrt()
    return scale * _recurrence(n, x, lambda i, p, q: ((2 * i + 1) * x * p - i * q) / (i + 1))


def _waves(n: int, s: Tensor) -> Tensor:
    angle = 2 * math.pi * s[:, None] * torch.arange(n // 2, dtype=torch.float64)
    scale = torch.full((n // 2,), 2**0.5, dtype=torch.float64)
    scale[0] = 1
    return torch.stack([scale * angle.cos(), scale * angle.sin()], dim=-1).flatten(1)


def _recurrence(n: int, first: Tensor, following: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
    """Orthogonal polynomials of degrees 0 to n - 1: 1, `first`, and p_{i+1} from p_i and p_{i-1}: (m, n)."""
    p = [torch.ones_like(first), first]
    for i in range(1, n - 1):
        p.append(following(i, p[-1], p[-2]))
    return torch.stack(p[:n], dim=-1)


def reconstruct(measure: str, state: Float[Tensor, "*batch n"], ages: Float[Tensor, "m"]) -> Float[Tensor, "*batch m"]:
    """The signal that states stand for, read at ages s: f(t - s) = sum_i x_i p_i(s). (..., n), (m) -> (..., m).

    Of a state of `project_scaled` at time t, the value at time u in (0, t] has age log(t / u) under legs.
    HiPPO, appendix C.3.
    """
    return state.double() @ basis(measure, state.shape[-1], ages).T


def kernel(measure: str, n: int, ages: Float[Tensor, "m"]) -> Float[Tensor, "m {n}"]:
    """e^{sA} B, what an impulse of age s has left in each state: (m, n) float64, by the matrix exponential.

    With legs and lagt it is p_i(s) w(s) exactly; with legt and fourier it nears it as n grows, since a window of finite
    n has to guess what leaves it. How to Train Your HiPPO, definition 2 and section 4.
    """
    A, B = transition(measure, n)
    return torch.linalg.matrix_exp(ages.double()[:, None, None] * A) @ B
