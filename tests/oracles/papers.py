"""Oracles of the built-in mixers, written from the papers with plain loops: one row, one token, one head at a time.

They read a mixer's parameters by name and its config, and share no code with it. Each takes the mixer in float64 and
x (t, d), and gives y (t, d) and the tensors of the final state of that row. They are slow and meant to be read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


# ------------------------------------------------------------------------------------------------------------ attention
def attention(mixer, x, window=None):
    """Vaswani et al. 2017, eq. 1: token i looks at tokens 0 .. i, or at the last `window` of them."""
    c, t = mixer.config, len(x)
    q = (x @ mixer.q_proj.weight.T).view(t, c.heads, c.head_dim)
    k = (x @ mixer.k_proj.weight.T).view(t, c.kv_heads, c.head_dim)
    v = (x @ mixer.v_proj.weight.T).view(t, c.kv_heads, c.head_dim)
    if c.qk_norm:
        q, k = unit(q, mixer.q_norm), unit(k, mixer.k_norm)
    if c.rope:
        q, k = (torch.stack([partly(row, i, c) for i, row in enumerate(rows)]) for rows in (q, k))
    out = torch.zeros(t, c.heads, c.head_dim, dtype=x.dtype)
    for i in range(t):
        first = 0 if window is None else max(0, i - window + 1)
        for head in range(c.heads):
            mine = head // (c.heads // c.kv_heads)
            scores = torch.stack([q[i, head] @ k[j, mine] / math.sqrt(c.head_dim) for j in range(first, i + 1)])
            weights = scores.exp() / scores.exp().sum()
            out[i, head] = sum(weight * v[j, mine] for weight, j in zip(weights, range(first, i + 1), strict=True))
    return out.reshape(t, -1) @ mixer.o_proj.weight.T, {"k": k, "v": v}


def unit(x, norm):
    """RMSNorm over the last axis."""
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + norm.eps) * norm.weight


def partly(x, position, config):
    """Only the first channels turned, as if there were no others."""
    width = config.rope_dim or config.head_dim
    return torch.cat([turned(x[..., :width], position, config.rope_theta), x[..., width:]], dim=-1)


def turned(x, position, theta):
    """Su et al. 2021, section 3.2: pairs (x_i, x_{i + p/2}) as complex numbers, times e^{i position theta^(-2i/p)}."""
    half = x.shape[-1] // 2
    angle = torch.tensor([position * theta ** (-2 * i / x.shape[-1]) for i in range(half)], dtype=torch.float64)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], dim=-1)


def sliding_window(mixer, x):
    """Beltagy et al. 2020, section 3.1, with a ring: token j lies in slot j mod window."""
    window = mixer.config.window
    y, last = attention(mixer, x, window)
    ring = {}
    for name, rows in last.items():
        ring[name] = torch.zeros(min(window, len(x)), *rows.shape[1:], dtype=rows.dtype)
        for j, row in enumerate(rows):
            ring[name][j % window] = row
    return y, ring


# -------------------------------------------------------------------------------------------------- state space layers
def convolved(x, layer):
    """Causal depthwise convolution and SiLU: y_t = silu(b + sum_i w_i x_{t - k + 1 + i}); and the last k - 1 inputs."""
    weight = layer.weight[:, 0]
    k = weight.shape[1]
    y = torch.zeros_like(x)
    for t in range(len(x)):
        for i in range(k):
            if t - k + 1 + i >= 0:
                y[t] += weight[:, i] * x[t - k + 1 + i]
        y[t] += layer.bias
    return F.silu(y), torch.cat([torch.zeros(k - 1, x.shape[1], dtype=x.dtype), x])[-(k - 1) :].T


def mamba(mixer, u):
    """Gu and Dao 2023, algorithm 2 and eq. 2, with B-bar = dt B, or as eq. 4 has it for a diagonal A.

    What is not selected stands in algorithm 1's place: a parameter, the same at every step.
    """
    c, (d_inner, n) = mixer.config, mixer.A_log.shape
    xz = u @ mixer.in_proj.weight.T
    x, conv = convolved(xz[:, :d_inner], mixer.conv1d)
    A = -mixer.A_log.exp()
    h, ys = torch.zeros(d_inner, n, dtype=u.dtype), []
    for t in range(len(u)):
        dt, B, C = selected(mixer, x[t])
        y = torch.zeros(d_inner, dtype=u.dtype)
        for d in range(d_inner):
            for i in range(n):
                decay = torch.exp(dt[d] * A[d, i])
                write = (decay - 1) / A[d, i] if c.discretization == "zoh" else dt[d]
                h[d, i] = decay * h[d, i] + write * B[i] * x[t, d]
            y[d] = C @ h[d] + mixer.D[d] * x[t, d]
        ys.append(y * F.silu(xz[t, d_inner:]) if c.gate else y)
    return torch.stack(ys) @ mixer.out_proj.weight.T, {"conv": conv, "ssm": h}


def selected(mixer, x):
    """dt (d_inner), B and C (N) of one token x (d_inner)."""
    c, at, parts = mixer.config, 0, {}
    for name, width in (("dt", c.dt_rank), ("B", c.d_state), ("C", c.d_state)):
        if name in c.select:
            parts[name], at = mixer.x_proj.weight[at : at + width] @ x, at + width
            if c.bcdt_norm:
                norms = {"dt": mixer.dt_layernorm, "B": mixer.b_layernorm, "C": mixer.c_layernorm}
                parts[name] = unit(parts[name], norms[name])
    raw = mixer.dt_proj.weight @ parts["dt"] + mixer.dt_proj.bias if "dt" in parts else mixer.dt_proj.bias
    return torch.log1p(torch.exp(raw)), parts.get("B", mixer.B), parts.get("C", mixer.C)


def mamba2(mixer, u):
    """Dao and Gu 2024, section 7.1: one scalar decay a head, B and C shared by the heads of a group."""
    c = mixer.config
    d_inner, heads = int(c.expand * mixer.d_model), len(mixer.A_log)
    wide = d_inner + 2 * c.n_groups * c.d_state
    projected = u @ mixer.in_proj.weight.T
    z, xBC, raw = projected[:, :d_inner], projected[:, d_inner : d_inner + wide], projected[:, d_inner + wide :]
    xBC, conv = convolved(xBC, mixer.conv1d)
    H, ys = torch.zeros(heads, c.head_dim, c.d_state, dtype=u.dtype), []
    for t in range(len(u)):
        x = xBC[t, :d_inner].view(heads, c.head_dim)
        B, C = xBC[t, d_inner:].view(2, c.n_groups, c.d_state)
        y = torch.zeros(heads, c.head_dim, dtype=u.dtype)
        for head in range(heads):
            group = head // (heads // c.n_groups)
            dt = torch.log1p(torch.exp(raw[t, head] + mixer.dt_bias[head]))
            decay = torch.exp(-dt * torch.exp(mixer.A_log[head]))
            H[head] = decay * H[head] + dt * torch.outer(x[head], B[group])
            y[head] = H[head] @ C[group] + mixer.D[head] * x[head]
        ys.append(y.reshape(-1) * F.silu(z[t]))
    if not c.gated_norm:
        return torch.stack(ys) @ mixer.out_proj.weight.T, {"conv": conv, "ssm": H}
    parts = torch.stack(ys).view(len(u), c.n_groups, -1)
    normed = parts / torch.sqrt((parts * parts).mean(-1, keepdim=True) + mixer.norm.eps)
    y = (normed.reshape(len(u), d_inner) * mixer.norm.weight) @ mixer.out_proj.weight.T
    return y, {"conv": conv, "ssm": H}


def s4(mixer, u):
    """Gu, Goel, Re 2021, eq. 3: dense A = diag(Lambda) - P P^* of all N states, the bilinear rule, a loop over time."""
    t, d = u.shape
    y, states = torch.zeros_like(u), []
    for channel in range(d):
        Lambda = torch.complex(-mixer.log_A_real[channel].exp(), mixer.A_imag[channel])
        P, B, C = (torch.view_as_complex(p[channel].contiguous()) for p in (mixer.P, mixer.B, mixer.C))
        Lambda, P, B, C = (torch.cat([v, v.conj()]) for v in (Lambda, P, B, C))
        half = mixer.log_dt[channel].exp() / 2
        A = torch.diag(Lambda) - torch.outer(P, P.conj())
        eye = torch.eye(len(A), dtype=A.dtype)
        Abar = torch.linalg.solve(eye - half * A, eye + half * A)
        Bbar = torch.linalg.solve(eye - half * A, 2 * half * B)
        h = torch.zeros_like(B)
        for i in range(t):
            h = Abar @ h + Bbar * u[i, channel]
            y[i, channel] = (C @ h).real + mixer.D[channel] * u[i, channel]
        states.append(torch.view_as_real(h[: len(h) // 2]))
    wide = F.gelu(y) @ mixer.output_linear.weight.T + mixer.output_linear.bias
    return wide[:, :d] * torch.sigmoid(wide[:, d:]), {"ssm": torch.stack(states)}


ORACLES = {"attention": attention, "sliding_window": sliding_window, "mamba": mamba, "mamba2": mamba2, "s4": s4}
