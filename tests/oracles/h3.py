"""Fu, Dao et al. 2022, algorithm 1: a shift matrix, a dense diagonal system a head, a loop over time and heads.

Under a zero-order hold [[Abar, Bbar], [0, 1]] is the exponential of dt [[A, B], [0, 0]] (Van Loan 1978); under the
bilinear rule both come from solving with the full matrix. Each head's system keeps every entry of K v^T apart.
"""

import torch

from tests.oracles.dense import expm, full

VARIANTS = {
    "elementwise": {"d_state": 6, "head_dim": 1, "init": "inv"},
    "long-bilinear": {"d_state": 20, "head_dim": 4, "discretization": "bilinear"},
    "two-heads": {"d_state": 2, "head_dim": 16, "init": "real"},
}


def oracle(mixer, u):
    """y (t, d), the last N - 1 keys (d, N - 1), and one of each couple of every entry's state (h, p, p, N/2, 2)."""
    c, (t, d) = mixer.config, u.shape
    p, n = c.head_dim, c.d_state
    q, k, v = ([affine(layer, row) for row in u] for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
    shift = torch.diag(torch.ones(n - 1, dtype=u.dtype), -1)
    register = torch.zeros(d, n, dtype=u.dtype)
    systems = [system(mixer, head) for head in range(d // p)]
    H = torch.zeros(d // p, p, p, n, dtype=torch.complex128)
    ys = []
    for i in range(t):
        register = register @ shift.T
        register[:, 0] = k[i]
        K = (mixer.shift.C * register).sum(1) + mixer.shift.D * k[i]
        y = torch.zeros(d, dtype=u.dtype)
        for head, (A, B, C) in enumerate(systems):
            at = slice(head * p, (head + 1) * p)
            outer = torch.outer(K[at], v[i][at])
            H[head] = torch.einsum("mn,abn->abm", A, H[head]) + outer[..., None] * B
            y[at] = q[i][at] @ ((H[head] @ C).real + mixer.ssm.D[head] * outer)
        ys.append(affine(mixer.out_proj, y))
    return torch.stack(ys), {"conv": register[:, : n - 1].flip(1), "ssm": torch.view_as_real(H[..., : n // 2])}


def affine(layer, x):
    """W x + b."""
    return layer.weight @ x + layer.bias


def system(mixer, head):
    """Abar (N, N), Bbar (N) and C (N) of a head, complex."""
    s = mixer.ssm
    A = torch.diag(full(torch.complex(-s.log_A_real[head].exp(), s.A_imag[head])))
    B, C = (full(torch.view_as_complex(x[head].contiguous())) for x in (s.B, s.C))
    dt, n, eye = s.log_dt[head].exp(), len(B), torch.eye(len(B), dtype=A.dtype)
    if mixer.config.discretization == "bilinear":
        half = eye - dt / 2 * A
        return torch.linalg.solve(half, eye + dt / 2 * A), torch.linalg.solve(half, dt * B), C
    both = torch.zeros(n + 1, n + 1, dtype=A.dtype)
    both[:n, :n], both[:n, n] = A, B
    both = expm(dt * both)
    return both[:n, :n], both[:n, n], C
