"""The LSTM of Hochreiter and Schmidhuber 1997 with a forget gate (Gers et al. 2000), gate by gate."""

import torch

VARIANTS = {"narrow": {"hidden": 5}, "wide": {"hidden": 50}}


def oracle(mixer, u):
    """y (t, d), and the last h and c."""
    W, U = mixer.weight_ih.chunk(4), mixer.weight_hh.chunk(4)
    b = (mixer.bias_ih + mixer.bias_hh).chunk(4)
    h = c = torch.zeros(mixer.config.hidden, dtype=u.dtype)
    ys = []
    for x in u:
        i, f, g, o = (W[k] @ x + U[k] @ h + b[k] for k in range(4))
        c = c / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
        h = torch.tanh(c) / (1 + torch.exp(-o))
        ys.append(mixer.out_proj.weight @ h)
    return torch.stack(ys), {"h": h, "c": c}
