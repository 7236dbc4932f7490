"""The decoder of `head: recover`: what stood at each position of a row, from one vector of d_model numbers.

    z_i = x + p_i                         p_i: sines and cosines of the position
    z  <- gelu(W norm(z) + b), twice      logits = W norm(z) + b

As in the auto-encoder of MAD's compression task (Poli et al. 2024, arXiv 2403.17844, appendix B, and its code): it does
not widen, and looks at one position at a time, so that all it knows of the row is x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridlm.layers import init
from hybridlm.layers.cost import Cost, linear
from hybridlm.layers.init import Streams
from hybridlm.layers.linear import Linear
from hybridlm.layers.norm import norm_class, norm_parameters

HIDDEN = 2  # layers before the logits
LONGEST_WAVE = 10_000  # of the positions, over 2 pi


class Decoder(nn.Module):
    """(..., d) -> (..., classes), of vectors that carry their positions already (see `with_places`)."""

    def __init__(self, d_model: int, classes: int, norm: str, eps: float):
        super().__init__()
        self.norms = nn.ModuleList(norm_class(norm)(d_model, eps) for _ in range(HIDDEN + 1))
        self.hidden = nn.ModuleList(Linear(d_model, d_model) for _ in range(HIDDEN))
        self.out = Linear(d_model, classes)

    def reset_parameters(self, streams: Streams) -> None:
        for norm in self.norms:
            norm.reset_parameters()
        for i, layer in enumerate(self.hidden):
            init.linear(layer, streams, f"hidden.{i}")
        init.linear(self.out, streams, "out")

    def forward(self, x: Tensor) -> Tensor:
        *norms, last = self.norms
        for norm, layer in zip(norms, self.hidden, strict=True):
            x = F.gelu(layer(norm(x)))
        return self.out(last(x))


def with_places(x: Tensor, places: Tensor) -> Tensor:
    """x (b, d) and positions (b, t) -> (b, t, d): the vector of each row with each of its positions added.

    Position i adds sin(i w) to the first half of the channels and cos(i w) to the other, w falling from 1 to
    1 / LONGEST_WAVE (Vaswani et al. 2017, section 3.5, in halves instead of turns).
    """
    half = -(-x.shape[-1] // 2)
    falling = torch.arange(half, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)) / max(half - 1, 1)
    angles = places[..., None] * LONGEST_WAVE**-falling
    waves = torch.cat([angles.sin(), angles.cos()], dim=-1)[..., : x.shape[-1]]
    return x[:, None] + waves.to(x.dtype)


def decoder_cost(d_model: int, classes: int, norm: str) -> Cost:
    """Of a decoder, at every position."""
    norms = (HIDDEN + 1) * norm_parameters(norm, d_model)
    layers = HIDDEN * (d_model + 1) * d_model + (d_model + 1) * classes
    hidden = HIDDEN * d_model
    return Cost(norms + layers, lambda tokens, past: linear(tokens, d_model, hidden + classes))
