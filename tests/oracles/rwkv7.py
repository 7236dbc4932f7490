"""RWKV-7's time mixing (Peng et al. 2025, eq. 2 to 22), token by token and head by head, transitions as matrices."""

import math

import torch

VARIANTS = {
    "heads-4": {"head_dim": 8, "w_rank": 3, "a_rank": 5, "g_rank": 7, "chunk": 16},
    "heads-2": {"head_dim": 16, "w_rank": 2, "a_rank": 1, "g_rank": 3, "chunk": 5},
    "heads-8": {"head_dim": 4, "chunk": 64},
}


def oracle(mixer, u):
    """y (t, d), the last token, and S of every head."""
    d, p = u.shape[1], mixer.config.head_dim
    heads = d // p
    S, before, ys = torch.zeros(heads, p, p, dtype=u.dtype), torch.zeros(d, dtype=u.dtype), []
    for x in u:
        r, w, k, v, a, g = (
            x + mu * (before - x) for mu in (mixer.x_r, mixer.x_w, mixer.x_k, mixer.x_v, mixer.x_a, mixer.x_g)
        )
        r, k, v = mixer.r_proj.weight @ r, mixer.k_proj.weight @ k, mixer.v_proj.weight @ v
        w = torch.exp(-math.exp(-0.5) * sigma(low_rank(mixer.decay, torch.tanh, w)))
        a = sigma(low_rank(mixer.rate, lambda z: z, a))
        g = low_rank(mixer.gate, sigma, g)
        removal, k = k * mixer.k_k, k * ((1 - mixer.k_a) + mixer.k_a * a)
        outs = []
        for head in range(heads):
            own = slice(head * p, head * p + p)
            kappa = removal[own] / torch.sqrt(removal[own] @ removal[own] + 1e-6)
            S[head] = S[head] @ (torch.diag(w[own]) - torch.outer(kappa, a[own] * kappa)) + torch.outer(v[own], k[own])
            y = S[head] @ r[own]
            y = (y - y.mean()) / torch.sqrt(y.var(correction=0) + mixer.norm.eps)
            y = y * mixer.norm.weight[own] + mixer.norm.bias[own]
            outs.append(y + (r[own] @ (mixer.r_k[head] * k[own])) * v[own])
        ys.append(mixer.out_proj.weight @ (g * torch.cat(outs)))
        before = x
    return torch.stack(ys), {"shift": before, "ssm": S}


def sigma(x):
    return 1 / (1 + torch.exp(-x))


def low_rank(layer, f, x):
    """eq. 2."""
    out = layer.up.weight @ f(layer.down.weight @ x)
    return out if layer.up.bias is None else out + layer.up.bias
