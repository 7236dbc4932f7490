"""What the chunked recurrences have in common: folding time into chunks, decays inside a chunk, states between chunks.

Letters: z chunks, i and j places in a chunk (a later and an earlier one), c places of a chunk.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

NOTHING_LEFT = -1000.0  # a logarithm of which exp leaves nothing, alone or in a sum, and that has differences


def fold(v: Tensor, size: int) -> Tensor:
    """(b, t, ...) -> (b, z, size, ...), the last chunk filled up with zeros."""
    z = pieces(v.shape[1], size)
    if missing := z * size - v.shape[1]:
        v = torch.cat([v, v.new_zeros(v.shape[0], missing, *v.shape[2:])], dim=1)
    return v.unflatten(1, (z, size))


def bits(n: int) -> int:
    """n.bit_length(), by comparisons: so torch.compile keeps what it has compiled for every length of an octave."""
    count = 0
    while 1 << count <= n:
        count += 1
    return count


def pieces(t: int, size: int) -> int:
    """Chunks that t > 0 tokens fill, -(-t // size), by comparisons: after these a length is a number to torch.compile,
    where lengths with a remainder in them take its algebra minutes."""
    count, full = 1, 0
    while count * size < t:
        count *= 2
    while count := count // 2:
        full += count if (full + count) * size < t else 0
    return full + 1


def forget_between(decay: Tensor, document: Tensor | None) -> Tensor:
    """decay (b, t, ...) with -inf, of which exp leaves nothing, at the first token of each document. 0: the state's."""
    return at_begins(decay, document, -math.inf)


def at_begins(v: Tensor, document: Tensor | None, value: float) -> Tensor:
    """v (b, t, ...) with a value in place of what stands at the first token of each document but the state's."""
    if document is None:
        return v
    begins = document != F.pad(document[:, :-1], (1, 0))
    return torch.where(begins.reshape(begins.shape + (1,) * (v.ndim - 2)), value, v)


class Decays(NamedTuple):
    """What is left of a state: exp of sums of decays, one number a head."""

    within: Tensor  # from after place j to after place i, (..., i, j), 0 for i < j
    since_start: Tensor  # from the chunk's start to after i, (..., i)
    until_end: Tensor  # from after j to the chunk's end, (..., j)
    through: Tensor  # over a whole chunk, (...)


def decays(v: Tensor) -> Decays:
    """v (..., c): the logarithm of the decay at each place of a chunk."""
    within, since_start = decay_mask(v), v.cumsum(-1).exp()
    return Decays(within, since_start, within[..., -1, :], since_start[..., -1])


def decays_by_hand(v: Tensor) -> Decays:
    """The same in a few passes, for what nobody takes the gradients of: those would be differences of long sums.

    Running sums in float64, each as two numbers of float32, so that the difference of two has the digits that a sum by
    itself would have. Stacked, they are what torch.compile computes once and not again for every pair of places.
    """
    if v.dtype == torch.float64:
        return decays(v)
    total = v.double().clamp(min=NOTHING_LEFT).cumsum(-1)
    high = total.float()
    high, low = torch.stack([high, (total - high).float()]).unbind(0)
    lower = torch.ones(v.shape[-1], v.shape[-1], dtype=torch.bool, device=v.device).tril()
    between = (high[..., :, None] - high[..., None, :]) + (low[..., :, None] - low[..., None, :])
    within = between.masked_fill_(~lower, -math.inf).exp_()
    since_start = high.exp()
    until_end = ((high[..., -1:] - high) + (low[..., -1:] - low)).exp()
    return Decays(within, since_start, until_end, since_start[..., -1])


def decay_mask(v: Tensor) -> Tensor:
    """1-semiseparable (Dao and Gu 2024, section 2.2): (..., c) -> (..., i, j), exp(v_{j+1} + ... + v_i), 0 for i < j.

    Cut in half, it has the masks of the halves on its diagonal and below them an outer product: what is left at the end
    of the first half, and from the start of the second. Every sum stands for itself: the difference of two long running
    sums would have lost the digits of a short one.
    """
    c = v.shape[-1]
    if c % 2 or c <= 8:
        below = torch.ones(c, c, dtype=torch.bool, device=v.device).tril(-1)
        return v[..., None].masked_fill(~below, 0).cumsum(-2).exp().tril()
    halves = rearrange(v, "... (two c) -> two ... c", two=2)
    first, second = decay_mask(halves)
    until_end, since_start = first[..., -1, :], halves[1].cumsum(-1).exp()
    corner = since_start[..., :, None] * until_end[..., None, :]
    return torch.cat([F.pad(first, (0, c // 2)), torch.cat([corner, second], dim=-1)], dim=-2)


def pass_on(S: Tensor, through: Tensor, added: Tensor, *, back: bool = False, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Chunk by chunk: S (b, ...), through and added (b, z, ...) -> S before each chunk, and after the last.

    back: from the last chunk to the first, as gradients travel: S after each chunk, and before the first.
    dim: where the chunks are, of through, added and what is returned for each.
    """
    steps, met = list(zip(through.unbind(dim), added.unbind(dim), strict=True)), []
    for decay, more in reversed(steps) if back else steps:
        met.append(S)
        S = torch.addcmul(more, decay, S)
    return torch.stack(met[::-1] if back else met, dim=dim), S
