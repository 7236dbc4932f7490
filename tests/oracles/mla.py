"""Latent attention from the DeepSeek-V2 report, section 2.1: keys and values of every head in full, one by one."""

import math

import torch

VARIANTS = {
    "query-rank": {"heads": 3, "q_rank": 10, "kv_rank": 7, "nope_dim": 5, "rope_dim": 4, "v_dim": 6},
    "nope": {"heads": 2, "kv_rank": 9, "nope_dim": 4, "rope_dim": 3, "v_dim": 8, "rope": False},
    "narrow-latent": {"heads": 4, "kv_rank": 2, "nope_dim": 12, "rope_dim": 2, "v_dim": 10, "rope_theta": 100.0},
    "wide-latent": {"heads": 2, "kv_rank": 40, "nope_dim": 3, "rope_dim": 6, "v_dim": 1},
}


def oracle(mixer, x):
    """y (t, d), and of every token its latent and its rotated key."""
    c, t = mixer.config, len(x)
    latents, keys, ys = torch.zeros(t, c.kv_rank).double(), torch.zeros(t, c.rope_dim).double(), []
    for j in range(t):
        both = mixer.kv_down.weight @ x[j]
        latents[j] = unit(both[: c.kv_rank], mixer.kv_norm)
        keys[j] = turned(both[c.kv_rank :], j, c)
    for i in range(t):
        wide = unit(mixer.q_down.weight @ x[i], mixer.q_norm) if c.q_rank else x[i]
        queries = (mixer.q_proj.weight @ wide).view(c.heads, c.nope_dim + c.rope_dim)
        heads = []
        for head, query in enumerate(queries):
            q = torch.cat([query[: c.nope_dim], turned(query[c.nope_dim :], i, c)])
            k = [torch.cat([mixer.k_up[head] @ latents[j], keys[j]]) for j in range(i + 1)]
            scores = torch.stack([q @ key for key in k]) / math.sqrt(len(q))
            weights = (scores - scores.max()).exp()
            values = [mixer.v_up[head] @ latents[j] for j in range(i + 1)]
            heads.append(sum(w * v for w, v in zip(weights / weights.sum(), values, strict=True)))
        ys.append(mixer.o_proj.weight @ torch.cat(heads))
    return torch.stack(ys), {"latent": latents, "key": keys}


def unit(x, norm):
    """RMSNorm."""
    return x / torch.sqrt((x * x).mean() + norm.eps) * norm.weight


def turned(x, position, config):
    """Pair i, (x_i, x_{i + p/2}), turned by position theta^(-2i/p)."""
    if not config.rope:
        return x
    half, out = len(x) // 2, x.clone()
    for i in range(half):
        angle = position * config.rope_theta ** (-2 * i / len(x))
        out[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        out[i + half] = x[i] * math.sin(angle) + x[i + half] * math.cos(angle)
    return out
