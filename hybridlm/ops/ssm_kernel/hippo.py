"""HiPPO-LegS: the state matrix that makes a linear system remember its input as Legendre coefficients.

Source: Gu et al., HiPPO (2020), eq. 3 and appendix D; Gu, Goel, Re, S4 (2021), theorem 1 and appendix C.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def legs(n: int) -> tuple[Float[Tensor, "{n} {n}"], Float[Tensor, "{n}"]]:
    """A[i, k] = -sqrt((2i+1)(2k+1)) below the diagonal, -(i+1) on it, 0 above; B[i] = sqrt(2i+1). Float64."""
    order = torch.arange(n, dtype=torch.float64)
    B = (2 * order + 1).sqrt()
    A = -torch.tril(torch.outer(B, B), diagonal=-1) - torch.diag(order + 1)
    return A, B


def legs_dplr(
    n: int,
) -> tuple[Float[Tensor, "{n}//2 2"], Float[Tensor, "{n}//2 2"], Float[Tensor, "{n}//2 2"]]:
    """LegS as diagonal plus low rank: Lambda, P, B with A = diag(Lambda) - P P^*, up to a unitary change of basis.

    Float64 real pairs (re, im), one of each conjugate couple, Im(Lambda) > 0 and rising. A + P P^T with
    P[i] = sqrt(i + 1/2) is -1/2 I plus a skew matrix S, and -iS is Hermitian: `eigh` gives Im(Lambda) and a unitary V.
    A is never diagonalised itself: its eigenvectors are conditioned beyond float64 from n = 32 on.
    Eigenvectors have free phases; here they make B, and with it P = B / sqrt(2), real and positive.
    """
    A, B = legs(n)
    P = B / 2**0.5
    normal = A + torch.outer(P, P)
    skew = (normal - normal.T) / 2
    imag, V = torch.linalg.eigh(-1j * skew)
    B = (V[:, n // 2 :].mH @ B.to(V.dtype)).abs()
    Lambda = torch.stack([torch.full_like(B, -0.5), imag[n // 2 :]], dim=-1)
    B = torch.stack([B, torch.zeros_like(B)], dim=-1)
    return Lambda, B / 2**0.5, B
