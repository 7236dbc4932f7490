"""Linear attention, token by token and head by head, as the papers write it: Katharopoulos et al. 2020, eq. 16 to 20;
Sun et al. 2023, eq. 6 and 8; Yang et al. 2023, eq. 3 and section 4.4."""

import math

import torch

VARIANTS = {
    "2020": {"heads": 4, "head_dim": 6, "decay": "none", "feature_map": "elu1", "normalizer": True, "gate": False},
    "retnet": {"heads": 2, "d_key": 9, "decay": "fixed", "chunk": 16},
    "one-a-head": {"heads": 3, "head_dim": 5, "d_key": 7, "decay": "head", "feature_map": "relu", "chunk": 5},
    "faded-normalised": {"heads": 2, "d_key": 3, "feature_map": "elu1", "normalizer": True, "chunk": 24},
}


def oracle(mixer, x):
    """y (t, d), and S of every head with the sum of keys z as a last row."""
    c = mixer.config
    n, p = c.d_key, c.head_dim
    S, z, ys = torch.zeros(c.heads, p, n, dtype=x.dtype), torch.zeros(c.heads, n, dtype=x.dtype), []
    for row in x:
        q, k, v = (layer.weight @ row for layer in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        out = torch.zeros(c.heads, p, dtype=x.dtype)
        for head in range(c.heads):
            mine = slice(head * n, head * n + n)
            phi_q, phi_k = phi(q[mine], c.feature_map), phi(k[mine], c.feature_map)
            a = decay(mixer, row, head)
            for i in range(n):
                S[head, :, i] = a[i] * S[head, :, i] + phi_k[i] * v[head * p : head * p + p]
                z[head, i] = a[i] * z[head, i] + phi_k[i]
            out[head] = S[head] @ phi_q / math.sqrt(n)
            if c.normalizer:
                out[head] /= z[head] @ phi_q / math.sqrt(n) + 1e-6
            else:
                out[head] *= mixer.norm.weight / torch.sqrt((out[head] ** 2).mean() + mixer.norm.eps)
        out = out.reshape(-1)
        if c.gate:
            g = mixer.g_proj.weight @ row
            out = out * g / (1 + torch.exp(-g))
        ys.append(mixer.o_proj.weight @ out)
    return torch.stack(ys), {"ssm": torch.cat([S, z[:, None]], dim=1) if c.normalizer else S}


def phi(x, name):
    if name == "elu1":
        return torch.tensor([v + 1 if v > 0 else math.exp(v) for v in x.tolist()], dtype=x.dtype)
    return torch.tensor([max(v, 0.0) for v in x.tolist()], dtype=x.dtype) if name == "relu" else x


def decay(mixer, x, head):
    """The factor of each of the n columns of S."""
    c = mixer.config
    one = torch.ones(c.d_key, dtype=x.dtype)
    if c.decay == "none":
        return one
    if c.decay == "fixed":
        return one * (1 - 2 ** (-5 - head))
    if c.decay == "head":
        logit = one * (mixer.decay_proj.weight[head] @ x + mixer.decay_proj.bias[head])
    else:
        down, up = mixer.decay_proj
        logit = (up.weight @ (down.weight @ x) + up.bias)[head * c.d_key : (head + 1) * c.d_key]
    return (1 / (1 + torch.exp(-logit))) ** (1 / 16)
