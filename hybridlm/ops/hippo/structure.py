"""The structure of HiPPO's matrices: normal plus low rank, in a unitary basis diagonal plus low rank; and diagonal kin.

A + P^T P = -c I + S with S skew, so its eigenvectors are unitary and its eigenvalues lie on the line Re = -c. A itself
is never diagonalised: the eigenvectors of LegS are conditioned beyond float64 from n = 32 on.
Complex numbers are real pairs (..., 2), one of each conjugate couple, Im >= 0: n states are n/2 couples.

Source: Gu, Goel, Re, S4 (2021, arXiv:2111.00396), theorem 1 and appendix C; Gu, Gupta et al., On the Parameterization
and Initialization of Diagonal State Space Models (2022, arXiv:2206.11893), section 4; Gupta et al., DSS (2022,
arXiv:2203.14343).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import choice, paired
from hybridlm.errors import SpecError
from hybridlm.ops.hippo.measures import MEASURES, transition

Pairs = Float[Tensor, "{n}//2 2"]


def low_rank(measure: str, n: int) -> Float[Tensor, "r {n}"]:
    """P (r, n) float64 with A + P^T P normal: r = 2 for legt, P its even and its odd entries of B; else B / sqrt(2)."""
    _, B = transition(measure, n)
    if measure != "legt":
        return B[None] / 2**0.5
    is_even = torch.arange(n) % 2 == 0
    return torch.stack([B * is_even, B * ~is_even])


def nplr(measure: str, n: int) -> tuple[Pairs, Float[Tensor, "r {n}//2 2"], Pairs, Float[Tensor, "{n} {n}//2 2"]]:
    """Lambda (n/2, 2), P (r, n/2, 2), B (n/2, 2), V (n, n/2, 2) with A = V (diag(Lambda) - P P^*) V^*, B = V B.

    Float64 real pairs; the other half of Lambda, P, B and of V's columns is the conjugate of this one. V is unitary.
    The r rows of P are its columns in the formula: r = 2 for legt, else 1. Im(Lambda) >= 0 and rising, Re(Lambda)
    = -1/2 for legs and lagt, 0 for legt and fourier. The free phases of V are such that B is real and positive; where
    r = 1, P is B / sqrt(2).
    """
    _, B = transition(measure, paired("n", n))
    rate, imag, V = _normal(measure, n)
    turned = V.mH @ B.to(V.dtype)
    B = turned.abs()
    V = V * (turned / B)
    if measure == "legt":
        P = (V.mH @ low_rank(measure, n).to(V.dtype).T).T
    else:
        P = torch.complex(B / 2**0.5, torch.zeros_like(B))[None]
    Lambda = torch.stack([torch.full_like(B, -rate), imag], dim=-1)
    B = torch.stack([B, torch.zeros_like(B)], dim=-1)
    return Lambda, torch.view_as_real(P), B, torch.view_as_real(V.resolve_conj())


def _normal(measure: str, n: int) -> tuple[float, Tensor, Tensor]:
    """A + P^T P = -c I + S: c, the upper half of S's spectrum (n/2), and its eigenvectors V (n, n/2) complex."""
    if measure == "fourier":  # in closed form: eigenvalue 0 is double, and `eigh` would not give it as a couple
        couple = torch.tensor([[1], [-1j]], dtype=torch.complex128) / 2**0.5
        return 0.0, 2 * math.pi * torch.arange(n // 2, dtype=torch.float64), torch.kron(torch.eye(n // 2), couple)
    A, _ = transition(measure, n)
    normal = A + sum(torch.outer(p, p) for p in low_rank(measure, n))
    skew = (normal - normal.T) / 2
    imag, V = torch.linalg.eigh(-1j * skew)
    return 0.0 if measure == "legt" else 0.5, imag[n // 2 :], V[:, n // 2 :]


def dplr(measure: str, n: int) -> tuple[Pairs, Pairs, Pairs]:
    """Diagonal plus rank 1: Lambda, P, B (n/2, 2) each, A = diag(Lambda) - P P^* in another basis; see `nplr`.

    For legs, lagt and fourier. SpecError: legt, which is of rank 2.
    """
    if measure == "legt":
        raise SpecError("measure: 'legt' is normal plus rank 2; use nplr, or one of legs, lagt, fourier")
    Lambda, P, B, _ = nplr(measure, n)
    return Lambda, P[0], B


def diagonal(kind: str, n: int) -> Pairs:
    """Lambda (n/2, 2) of a diagonal system of n states, float64 real pairs, Im >= 0.

    legs, legt, lagt, fourier: the normal part of the measure alone, the low rank left out (legs: DSS and S4D-LegS).
    lin: -1/2 + i pi k.  inv: -1/2 + i n/pi (n/(2k+1) - 1).  real: -(k+1).  k < n/2; S4D, section 4.
    """
    kind = choice("kind", kind, KINDS)
    if kind in MEASURES:
        return nplr(kind, n)[0]
    k = torch.arange(paired("n", n) // 2, dtype=torch.float64)
    if kind == "real":
        return torch.stack([-(k + 1), torch.zeros_like(k)], dim=-1)
    imag = math.pi * k if kind == "lin" else n / math.pi * (n / (2 * k + 1) - 1)
    return torch.stack([torch.full_like(k, -0.5), imag], dim=-1)


KINDS = (*MEASURES, "lin", "inv", "real")
