"""The GRU of Cho et al. 2014, eq. 5 to 8, with the reset gate after the matrix product."""

import torch

VARIANTS = {"narrow": {"hidden": 5}, "wide": {"hidden": 50}}


def oracle(mixer, u):
    """y (t, d), and the last h."""
    W, U = mixer.weight_ih.chunk(3), mixer.weight_hh.chunk(3)
    b, v = mixer.bias_ih.chunk(3), mixer.bias_hh.chunk(3)
    h, ys = torch.zeros(mixer.config.hidden, dtype=u.dtype), []
    for x in u:
        r = 1 / (1 + torch.exp(-(W[0] @ x + b[0] + U[0] @ h + v[0])))
        z = 1 / (1 + torch.exp(-(W[1] @ x + b[1] + U[1] @ h + v[1])))
        n = torch.tanh(W[2] @ x + b[2] + r * (U[2] @ h + v[2]))
        h = (1 - z) * n + z * h
        ys.append(mixer.out_proj.weight @ h)
    return torch.stack(ys), {"h": h}
