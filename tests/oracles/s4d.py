"""Gu, Gupta, Goel, Re 2022, section 3: dense matrices of all N states a channel, a loop over time.

Under a zero-order hold [[Abar, Bbar], [0, 1]] is the exponential of dt [[A, B], [0, 0]] (Van Loan 1978); under the
bilinear rule both come from solving with the full matrix. Nothing here knows that A is diagonal.
"""

import torch

from tests.oracles.dense import expm, full

VARIANTS = {
    "inv-bilinear": {"d_state": 10, "init": "inv", "discretization": "bilinear"},
    "real-slow": {"d_state": 6, "init": "real", "time_scale": 0.5},
    "legs": {"d_state": 12, "init": "legs", "time_scale": 2.0},
}


def oracle(mixer, u):
    """y (t, d), and one of each couple of the last state of every channel."""
    (t, d), system = u.shape, mixer.ssm
    y, states = torch.zeros_like(u), []
    for channel in range(d):
        A = torch.diag(full(torch.complex(-system.log_A_real[channel].exp(), system.A_imag[channel])))
        B, C = (full(torch.view_as_complex(p[channel].contiguous())) for p in (system.B, system.C))
        dt = system.log_dt[channel].exp() * mixer.config.time_scale
        Abar, Bbar = RULES[mixer.config.discretization](A, B, dt)
        h = torch.zeros_like(B)
        for i in range(t):
            h = Abar @ h + Bbar * u[i, channel]
            y[i, channel] = (C @ h).real + system.D[channel] * u[i, channel]
        states.append(torch.view_as_real(h[: len(h) // 2]))
    gelu = y * (1 + torch.erf(y / 2**0.5)) / 2
    wide = gelu @ mixer.output_linear.weight.T + mixer.output_linear.bias
    return wide[:, :d] / (1 + torch.exp(-wide[:, d:])), {"ssm": torch.stack(states)}


def hold(A, B, dt):
    """Abar, Bbar under a zero-order hold."""
    n = len(B)
    both = torch.zeros(n + 1, n + 1, dtype=A.dtype)
    both[:n, :n], both[:n, n] = A, B
    both = expm(dt * both)
    return both[:n, :n], both[:n, n]


def bilinear(A, B, dt):
    """Abar, Bbar by the trapezoidal rule."""
    eye = torch.eye(len(B), dtype=A.dtype)
    return torch.linalg.solve(eye - dt / 2 * A, eye + dt / 2 * A), torch.linalg.solve(eye - dt / 2 * A, dt * B)


RULES = {"zoh": hold, "bilinear": bilinear}
