"""The shift state space model in plain PyTorch: its state is the last inputs, its kernel is C itself, padded.

From about 16 states on, one FFT is faster than a pass over all tokens for each tap.
"""

from math import log2

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.causal_conv.reference import last_inputs
from hybridlm.ops.long_conv import long_conv
from hybridlm.ops.long_conv.reference import fft_length


def shift_ssm(
    x: Tensor, C: Tensor, D: Tensor, state: Tensor | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Inputs remembered stand before x, as part of document 0."""
    t, n = x.shape[1], C.shape[1]
    wide = torch.promote_types(torch.float32, x.dtype)
    C, D = C.to(wide), D.to(wide)
    history = x if state is None else torch.cat([state.mT.to(x.dtype), x], dim=1)
    owner = document
    if document is not None and state is not None:
        owner = F.pad(document, (n - 1, 0))
    y = _one(history.to(wide), C, owner) if t == 1 else _many(history.to(wide), C, owner)[:, -t:]
    y = (y + D * x.to(wide)).to(x.dtype)
    return y, None if state is None else last_inputs(history, n - 1, lengths, owner).to(state.dtype)


def _one(history: Tensor, C: Tensor, owner: Tensor | None) -> Tensor:
    """C h of the last token: history (b, 1 or n, d) -> (b, 1, d)."""
    if owner is not None:
        history = torch.where((owner == owner[:, -1:])[..., None], history, 0)
    return (history * C[:, : history.shape[1]].flip(1).mT).sum(dim=1, keepdim=True)


def _many(history: Tensor, C: Tensor, owner: Tensor | None) -> Tensor:
    """C h after every input: history (b, l, d) -> (b, l, d)."""
    return long_conv(history, F.pad(C, (0, max(0, history.shape[1] - C.shape[1]))), document=owner)


def shift_flops(d: int, n: int, t: int, state: bool) -> tuple[int, float]:
    """(recurrence, FFTs) of t tokens, d channels, n states, without a state or from one.

    One token: n products and sums, of which there is one without a state. Many: three real FFTs over what is remembered
    and x, of 2.5 l log2 l each. D u: 2 a channel and token.
    """
    if t == 1:
        return d * (2 * (n if state else 1) + 2), 0.0
    length = fft_length(2 * (t + (n - 1) * state) - 1)
    return 2 * t * d, 3 * d * 2.5 * length * log2(length)
