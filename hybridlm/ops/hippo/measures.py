"""The four measures of HiPPO, each as the linear system x' = A x + B f whose state is the projection of f's past.

A state of size n holds x_i(t) = integral of f(t - s) p_i(s) w(s) ds over ages s >= 0, with the p_i orthonormal against
the measure w. The time scale is 1: a window is [0, 1], a fading measure is e^-s. A system of scale T is A/T, B/T.

Source: Gu et al., HiPPO (2020, arXiv:2008.07669), section 2.3 and appendix D; Gu, Johnson et al., How to Train Your
HiPPO (2022, arXiv:2206.12037), section 4.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hybridlm.checks import choice, paired, whole

LARGEST = 4096  # states of a system: A is dense


def transition(measure: str, n: int) -> tuple[Float[Tensor, "{n} {n}"], Float[Tensor, "{n}"]]:
    """A (n, n) and B (n) of a measure, float64; i is the row, k the column, from 0.

    legs: scaled Legendre, w = e^-s. A[i, k] = -sqrt((2i+1)(2k+1)) for i > k, -(i+1) on the diagonal, 0 above;
        B[i] = sqrt(2i+1). HiPPO theorem 2 (eq. 3), where it is run with 1/t before it: see `project_scaled`.
    legt: translated Legendre, w = 1 on [0, 1]. A[i, k] = -sqrt((2i+1)(2k+1)) for i >= k, times (-1)^(i-k) above;
        B[i] = sqrt(2i+1). HiPPO theorem 1 for theta = 1 and orthonormal polynomials (appendix D.1, lambda_n = 1), not
        the scaling of the Legendre memory unit, sqrt(2i+1) (-1)^i times this state.
    lagt: translated Laguerre, w = e^-s. A[i, k] = -1 for i >= k, 0 above; B = 1. HiPPO theorem 1 and appendix D.2 with
        alpha = 0, beta = 1. S4's appendix C.1 has this A + I/2, whose kernels are L_i(s) e^(-s/2).
    fourier: w = 1 on [0, 1]. Couples (cos, sin) of 2 pi k s, k < n/2, so n is even: A = R - 2 q q^T, B = 2 q with
        R = [[0, -2 pi k], [2 pi k, 0]] and q = sqrt(2) (1, 0) in block k; q = (1, 0) for k = 0, whose sine stays 0.
        How to Train Your HiPPO, HiPPO-FouT. The factor 2: at an edge waves give the mean of both ends of the window.
    SpecError: an unknown measure, n out of range, or odd for couples.
    """
    build = MEASURES[choice("measure", measure, MEASURES)]
    return build(whole("n", n, high=LARGEST))


def _legs(n: int) -> tuple[Tensor, Tensor]:
    order = torch.arange(n, dtype=torch.float64)
    B = (2 * order + 1).sqrt()
    A = -torch.tril(torch.outer(B, B), diagonal=-1) - torch.diag(order + 1)
    return A, B


def _legt(n: int) -> tuple[Tensor, Tensor]:
    order = torch.arange(n, dtype=torch.float64)
    B = (2 * order + 1).sqrt()
    alternating = torch.outer(B, B) * (1 - 2 * ((order[:, None] - order) % 2))
    return -torch.tril(torch.outer(B, B)) - torch.triu(alternating, diagonal=1), B


def _lagt(n: int) -> tuple[Tensor, Tensor]:
    ones = torch.ones(n, n, dtype=torch.float64)
    return -torch.tril(ones), ones[0]


def _fourier(n: int) -> tuple[Tensor, Tensor]:
    q = torch.zeros(paired("n", n), dtype=torch.float64)
    q[::2] = 2**0.5
    q[0] = 1
    turns = torch.zeros(n - 1, dtype=torch.float64)
    turns[::2] = 2 * math.pi * torch.arange(n // 2, dtype=torch.float64)
    R = torch.diag(turns, -1) - torch.diag(turns, 1)
    return R - 2 * torch.outer(q, q), 2 * q


MEASURES = {"legs": _legs, "legt": _legt, "lagt": _lagt, "fourier": _fourier}
