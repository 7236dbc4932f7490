"""Gated DeltaNet, token by token and head by head: Yang, Kautz, Hatamizadeh 2024, eq. 10, and the layer of figure 1."""

import math

import torch

VARIANTS = {
    "grouped": {"heads": 6, "key_heads": 2, "head_dim": 5, "d_key": 7, "d_conv": 3, "chunk": 16},
    "negative": {"heads": 2, "negative_eigenvalues": True, "gate": False, "chunk": 5, "d_conv": 2},
    "one-key-head": {"heads": 4, "key_heads": 1, "head_dim": 10, "d_key": 12, "negative_eigenvalues": True},
}
UNIT = 1e-6


def oracle(mixer, x):
    """y (t, d), the last k - 1 inputs of the convolution, and S of every head."""
    c = mixer.config
    n, p, width = c.d_key, c.head_dim, c.key_heads * c.d_key
    before = torch.stack([mixer.in_proj_qkv.weight @ row for row in x])
    mixed = convolved(before, mixer.conv1d.weight[:, 0])
    S, ys = torch.zeros(c.heads, p, n, dtype=x.dtype), []
    for row, qkv in zip(x, mixed, strict=True):
        out = torch.zeros(c.heads, p, dtype=x.dtype)
        for head in range(c.heads):
            mine = (head // (c.heads // c.key_heads)) * n
            q, k = qkv[mine : mine + n], qkv[width + mine : width + mine + n]
            v = qkv[2 * width + head * p : 2 * width + head * p + p]
            q, k = (z / torch.sqrt((z * z).sum() + UNIT) for z in (q, k))
            step = torch.log1p(torch.exp(mixer.in_proj_a.weight[head] @ row + mixer.dt_bias[head]))
            a = torch.exp(-torch.exp(mixer.A_log[head]) * step)
            beta = (2 if c.negative_eigenvalues else 1) / (1 + torch.exp(-(mixer.in_proj_b.weight[head] @ row)))
            S[head] = a * S[head] @ (torch.eye(n, dtype=x.dtype) - beta * torch.outer(k, k))
            S[head] += beta * torch.outer(v, k)
            y = S[head] @ q / math.sqrt(n)
            out[head] = y / torch.sqrt((y * y).mean() + mixer.norm.eps) * mixer.norm.weight
        out = out.reshape(-1)
        if c.gate:
            z = mixer.in_proj_z.weight @ row
            out = out * z / (1 + torch.exp(-z))
        ys.append(mixer.out_proj.weight @ out)
    lead = torch.zeros(c.d_conv - 1, before.shape[1], dtype=x.dtype)
    return torch.stack(ys), {"conv": torch.cat([lead, before])[-(c.d_conv - 1) :].T, "ssm": S}


def convolved(x, taps):
    """silu(sum_i w_i x_{t - i}), channel by channel; the last tap is the present token's."""
    k, rows = taps.shape[1], []
    for t in range(len(x)):
        z = sum(taps[:, k - 1 - back] * x[t - back] for back in range(min(k, t + 1)))
        rows.append(z / (1 + torch.exp(-z)))
    return torch.stack(rows)
