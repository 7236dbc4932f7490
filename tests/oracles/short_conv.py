"""The short convolution of the LFM2 report (2025), tap by tap."""

import torch

VARIANTS = {
    "plain": {"gate": False, "d_conv": 5},
    "biased": {"bias": True, "d_conv": 2},
    "plain-biased": {"gate": False, "bias": True, "d_conv": 4},
}


def oracle(mixer, u):
    """y (t, d), and the last k - 1 inputs of the convolution."""
    t, d = u.shape
    parts = [affine(mixer.in_proj, row) for row in u]
    C = torch.stack([part[d : 2 * d] for part in parts]) if mixer.config.gate else None
    x = torch.stack([part[:d] * part[2 * d :] if mixer.config.gate else part for part in parts])
    taps, ys = mixer.conv.weight[:, 0], []
    k = taps.shape[1]
    for i in range(t):
        z = torch.zeros(d, dtype=u.dtype) if mixer.conv.bias is None else mixer.conv.bias
        for back in range(min(k, i + 1)):
            z = z + taps[:, k - 1 - back] * x[i - back]
        ys.append(affine(mixer.out_proj, C[i] * z if mixer.config.gate else z / (1 + torch.exp(-z))))
    before = torch.zeros(k - 1, d, dtype=u.dtype)
    return torch.stack(ys), {"conv": torch.cat([before, x])[-(k - 1) :].T}


def affine(layer, v):
    """W v + b."""
    out = layer.weight @ v
    return out if layer.bias is None else out + layer.bias
