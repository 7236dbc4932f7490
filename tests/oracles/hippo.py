"""HiPPO from its definition: basis functions and integrals over the past, in numpy, with numpy's polynomials."""

from __future__ import annotations

import numpy as np
from numpy.polynomial import laguerre, legendre


def functions(measure, n, s):
    """p_i(s), i < n, at ages s (m): (m, n) numpy, from the textbook's polynomials."""
    eye, order = np.eye(n), np.arange(n)
    if measure == "lagt":
        return laguerre.lagval(s, eye).T
    if measure == "fourier":
        waves = [w(2 * np.pi * k * s) for k in range(n // 2) for w in (np.cos, np.sin)]
        return np.stack(waves, axis=1) * np.where(order == 0, 1, 2**0.5)
    argument = 2 * np.exp(-s) - 1 if measure == "legs" else 1 - 2 * s
    return legendre.legval(argument, eye).T * np.sqrt(2 * order + 1)


def quadrature(measure):
    """Ages s and weights of sum w_j g(s_j) = integral of g(s) w(s) ds, exact to rounding for smooth g."""
    nodes, weights = legendre.leggauss(40 if measure == "lagt" else 200)
    if measure == "lagt":  # piece by piece: beyond 200, e^-s is nothing
        s = (np.arange(200)[:, None] + (nodes + 1) / 2).ravel()
        return s, np.tile(weights / 2, 200) * np.exp(-s)
    u = (nodes + 1) / 2
    return (-np.log(u) if measure == "legs" else u), weights / 2


def full(x):
    """Real pairs (..., 2) -> complex numpy."""
    return x[..., 0].numpy() + 1j * x[..., 1].numpy()
