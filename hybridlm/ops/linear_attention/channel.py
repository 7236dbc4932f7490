"""Linear attention with a decay of each key channel (Yang et al. 2023, section 4.3), many tokens at a time.

The score of places i and j in a chunk is sum_n q_in k_jn exp(decay_{j+1,n} + ... + decay_in). To take it as a product
of q and k, each with its part of the decay, the parts must meet between j and i, or one of them overflows. Cut in half,
a chunk has the scores of its halves on the diagonal; those below meet at the cut, q with what is left since it and k
with what is left until it. The halves are cut in the same way, down to single places (the paper has two levels).

Letters: z chunks, i and j places in a chunk (a query's and a key's), c places of a chunk, g groups, r heads of a group.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from hybridlm.ops.chunks import bits, fold, pass_on


def chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """q, k, decay (b, t, g, n), v (b, t, g, r, p), S (b, g, r, p, n). Zeros, which hold S, fill up the last chunk."""
    t, size = v.shape[1], whole(min(chunk, v.shape[1]))
    q, k, v, decay = (fold(x, size) for x in (q, k, v, decay))
    q, k, decay = (rearrange(x, "b z c g n -> b z g c n") for x in (q, k, decay))
    scores, *sums = _meet(q, k, decay)
    since_start, until_end = (x.exp() for x in sums)

    y = einsum(scores, v, "b z g i j, b z j g r p -> b z i g r p")
    added = einsum(v, k * until_end, "b z j g r p, b z g j n -> b z g r p n")
    before, S = pass_on(S, rearrange(since_start[..., -1, :], "b z g n -> b z g 1 1 n"), added)
    y = y + einsum(q * since_start, before, "b z g i n, b z g r p n -> b z i g r p")
    return rearrange(y, "b z i g r p -> b (z i) g r p")[:, :t], S


def _meet(q: Tensor, k: Tensor, decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., c, n) each -> scores (..., i, j), and sums of decays since the start and until the end, (..., c, n)."""
    c = q.shape[-2]
    if c == 1:
        return (q * k).sum(-1, keepdim=True), decay, torch.zeros_like(decay)
    q, k, decay = (rearrange(x, "... (two c) n -> two ... c n", two=2) for x in (q, k, decay))
    (first, second), since, until = _meet(q, k, decay)
    corner = (q[1] * since[1].exp()) @ (k[0] * until[0].exp()).mT
    scores = torch.cat([F.pad(first, (0, c // 2)), torch.cat([corner, second], dim=-1)], dim=-2)
    since_start = torch.cat([since[0], since[0][..., -1:, :] + since[1]], dim=-2)
    until_end = torch.cat([until[0] + since[1][..., -1:, :], until[1]], dim=-2)
    return scores, since_start, until_end


def whole(c: int) -> int:
    """The least power of two that is c or more: a chunk that can be cut down to single places."""
    return 1 << bits(c - 1)


def channel_flops(t: int, h: int, p: int, g: int, n: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t > 1 tokens of one row; exponentials are not counted.

    matrix products: 2 m n k each; below the cuts of a chunk lie c (c - 1) / 2 scores a group.
    recurrence: each token takes n (1 (decay of q and of k in the half that needs it) + 1 (sums of decays)) a cut and
    n (2 (q k) + 2 (until_end, since_start)) a group, p (sum) a head; each chunk 2 p n (pass on) a head.
    """
    c = whole(min(chunk, t))
    z, cuts = -(-t // c), c.bit_length() - 1
    inside, between = g * n * c * (c - 1) + 2 * c * c * h * p, 4 * c * h * p * n
    return z * (inside + between), z * (c * g * n * (2 * cuts + 4) + h * (c * p + 2 * p * n))
