"""Mamba-3 (SISO) from the paper's recurrence, with complex numbers for what turns: one token and head at a time.

Lahoti et al. 2026, arXiv:2603.15569v1, sections 3.1 and 3.2. The state is a complex number for each pair that turns and
a real one for each of the others; its real parts in the mixer's order are what the mixer remembers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

VARIANTS = {
    "groups-2": {"d_state": 6, "head_dim": 8, "n_groups": 2, "chunk": 16},
    "all-turns": {"d_state": 5, "head_dim": 16, "rope_fraction": 1, "chunk": 5, "dt_max": 1.0},
    "nothing-turns": {"d_state": 3, "head_dim": 3, "expand": 1.5, "rope_fraction": 0, "n_groups": 4},
}


@torch.no_grad()
def oracle(mixer, u):
    c, heads = mixer.config, len(mixer.D)
    p, n, g, a = c.head_dim, c.d_state, c.n_groups, int(c.d_state * c.rope_fraction) // 2
    parts = (u @ mixer.in_proj.weight.T).split([heads * p, heads * p, g * n, g * n, heads, heads, heads, a], dim=-1)
    z, x, B, C, raw_dt, raw_A, raw_l, raw_theta = parts
    H = torch.zeros(heads, p, n - a, dtype=torch.complex128)
    before = torch.zeros(heads, p, n - a, dtype=torch.complex128)  # x B^T of the token before
    key, value = torch.zeros(heads, n, dtype=u.dtype), torch.zeros(heads, p, dtype=u.dtype)
    ys = []
    for t in range(len(u)):
        y = torch.zeros(heads, p, dtype=u.dtype)
        for head in range(heads):
            group = head // (heads // g)
            dt = math.log1p(math.exp(raw_dt[t, head] + mixer.dt_bias[head]))
            A = -max(math.log1p(math.exp(raw_A[t, head])), 1e-4)
            l = 1 / (1 + math.exp(-raw_l[t, head]))  # noqa: E741
            turn = torch.cat([math.pi * torch.tanh(raw_theta[t]) * dt, torch.zeros(n - 2 * a, dtype=u.dtype)])
            alpha = torch.exp(torch.complex(torch.full_like(turn, dt * A), -turn))
            key[head] = unit(B[t, group * n :][:n], mixer.B_norm) + mixer.B_bias[head]
            query = unit(C[t, group * n :][:n], mixer.C_norm) + mixer.C_bias[head]
            value[head] = x[t, head * p :][:p]
            now = torch.outer(value[head].to(H.dtype), paired(key[head], a))
            H[head] = alpha * H[head] + (1 - l) * dt * alpha * before[head] + l * dt * now
            before[head] = now
            y[head] = (H[head] @ paired(query, a).conj()).real + mixer.D[head] * value[head]
        ys.append(y.reshape(-1) * F.silu(z[t]))
    flat = torch.cat([torch.view_as_real(H[..., :a]).flatten(-2), H[..., a:].real], dim=-1)
    return torch.stack(ys) @ mixer.out_proj.weight.T, {"ssm": flat, "key": key, "value": value}


def paired(v, a):
    """(n) -> the first 2 a numbers as a complex ones, then the rest."""
    return torch.cat([torch.complex(v[: 2 * a : 2], v[1 : 2 * a : 2]), v[2 * a :].to(torch.complex128)])


def unit(x, norm):
    """RMSNorm."""
    return x / torch.sqrt((x * x).mean() + norm.eps) * norm.weight
