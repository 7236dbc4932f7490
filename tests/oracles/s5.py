"""Smith, Warrington, Linderman 2022, section 3: dense real matrices of all P states, a loop over time.

A couple (z, conj z) is turned into (Re z, Im z), where A, B and C are real. Each state has a step of its own: with the
matrix S = diag(dt), x' = S A x + S B u is held for a time of 1, and [[Abar, Bbar], [0, 1]] is the exponential of
[[S A, S B], [0, 0]] (Van Loan 1978). Nothing here knows that A is diagonal.
"""

import torch

VARIANTS = {
    "one-block": {"d_state": 6, "blocks": 1, "time_scale": 0.5},
    "blocks-of-4": {"d_state": 24, "blocks": 6, "time_scale": 3.0},
    "wide": {"d_state": 40, "blocks": 5},
}


def oracle(mixer, u):
    """y (t, d), and one of each couple of the last state."""
    d, n = u.shape[1], len(mixer.A_real)
    A, S = torch.zeros(2 * n, 2 * n, dtype=u.dtype), torch.zeros(2 * n, 2 * n, dtype=u.dtype)
    B, C = torch.zeros(2 * n, d, dtype=u.dtype), torch.zeros(d, 2 * n, dtype=u.dtype)
    for k in range(n):
        re, im = min(mixer.A_real[k], torch.tensor(-1e-4, dtype=u.dtype)), mixer.A_imag[k]
        i, j = 2 * k, 2 * k + 1
        A[i, i], A[i, j], A[j, i], A[j, j] = re, -im, im, re
        S[i, i] = S[j, j] = mixer.log_dt[k].exp() * mixer.config.time_scale
        B[i], B[j] = mixer.B[k, :, 0], mixer.B[k, :, 1]
        C[:, i], C[:, j] = 2 * mixer.C[:, k, 0], -2 * mixer.C[:, k, 1]
    both = torch.zeros(2 * n + d, 2 * n + d, dtype=u.dtype)
    both[: 2 * n, : 2 * n], both[: 2 * n, 2 * n :] = S @ A, S @ B
    both = torch.linalg.matrix_exp(both)
    Abar, Bbar = both[: 2 * n, : 2 * n], both[: 2 * n, 2 * n :]
    h, ys = torch.zeros(2 * n, dtype=u.dtype), []
    for token in u:
        h = Abar @ h + Bbar @ token
        y = C @ h + mixer.D * token
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        gate = 1 / (1 + torch.exp(-(mixer.gate_proj.weight @ y + mixer.gate_proj.bias)))
        ys.append(mixer.out_proj.weight @ (y * gate))
    return torch.stack(ys), {"ssm": h.view(n, 2)}
