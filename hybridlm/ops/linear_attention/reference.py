"""Linear attention with a decay in plain PyTorch: the block decomposition of Dao and Gu 2024, section 6, figure 5.

Inside a chunk the recurrence is written out as attention with a decaying mask (section 6.1); between chunks only states
travel (sections 6.2 and 6.3). All heads of a group share q and k, so these are never repeated.
A decay that differs between the channels of a key has chunks of its own, in channel.py.

Letters: z chunks, i and j places in a chunk (a query's and a key's), g groups, r heads of a group.
"""

import torch
from einops import einsum, rearrange
from torch import Tensor

from hybridlm.ops.by_hand import by_hand, by_hand_compiled
from hybridlm.ops.chunks import decays, fold, forget_between, pass_on
from hybridlm.ops.linear_attention import channel
from hybridlm.ops.linear_attention.by_chunk import AtOnce, ByChunk


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    wide, g = torch.promote_types(v.dtype, torch.float32), q.shape[2]
    q, k, u = q.to(wide), k.to(wide), v.to(wide)
    S = u.new_zeros(u.shape[0], *u.shape[2:], q.shape[-1]) if state is None else state.to(wide)
    S, u = rearrange(S, "b (g r) p n -> b g r p n", g=g), rearrange(u, "b t (g r) p -> b t g r p", g=g)
    decay = forget_between(_aligned(decay, u, g), document)
    if u.shape[1] == 1:
        y, S = _step(q, k, u, decay, S)
    elif decay.shape[-1] == 1:  # the same for all channels
        y, S = _chunked(q, k, u, decay.squeeze(-1), S, chunk)
    else:
        y, S = channel.chunked(q, k, u, decay.squeeze(-2), S, chunk)
    y, S = rearrange(y, "b t g r p -> b t (g r) p"), rearrange(S, "b g r p n -> b (g r) p n")
    return y.to(v.dtype), S


def _aligned(decay: Tensor | None, v: Tensor, g: int) -> Tensor:
    """(b, t, g, r, n), with 1 for what it is the same for."""
    if decay is None:
        return v.new_zeros(1, v.shape[1], 1, 1, 1)
    shape = "b t (g r) -> b t g r 1" if decay.ndim == 3 else "b t g n -> b t g 1 n"
    return rearrange(decay.to(v.dtype), shape, g=g)


def _step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself."""
    S = torch.addcmul(torch.exp(decay[:, 0])[..., None, :] * S, v[:, 0, ..., None], k[:, 0, :, None, None])
    return einsum(S, q[:, 0], "b g r p n, b g n -> b g r p").unsqueeze(1), S


def _chunked(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Many tokens. The last chunk is filled up with zeros, which hold the state."""
    t = v.shape[1]
    q, k, v, decay = (fold(x, min(chunk, t)) for x in (q, k, v, decay))
    if by_hand(q, k, v, decay, S):
        y, S = ByChunk.apply(_chunks, q, k, v, decay.expand(v.shape[:-1]), S)
    elif by_hand_compiled(v):
        y, S = AtOnce.apply(q, k, v, decay.expand(v.shape[:-1]), S)
    else:
        y, S = _chunks(q, k, v, decay, S)
    return rearrange(y, "b z i g r p -> b (z i) g r p")[:, :t], S


def _chunks(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """q, k (b, z, c, g, n), v (b, z, c, g, r, p), decay (b, z, c, g, r), S (b, g, r, p, n): y as v, and the last S."""
    left = decays(rearrange(decay, "b z j g r -> b z g r j"))

    # Inside a chunk: attention with scores q k^T, masked by the decay from j to i.
    scores = einsum(q, k, "b z i g n, b z j g n -> b z g i j").unsqueeze(3) * left.within
    y = einsum(scores, v, "b z g r i j, b z j g r p -> b z i g r p")
    # Between chunks: what each adds to the state, the state before each, and what is read from it.
    kept = v * rearrange(left.until_end, "b z g r j -> b z j g r 1")
    added = einsum(kept, k, "b z j g r p, b z j g n -> b z g r p n")
    before, S = pass_on(S, left.through[..., None, None], added)
    carried = einsum(q, before, "b z i g n, b z g r p n -> b z i g r p")
    y = y + carried * rearrange(left.since_start, "b z g r i -> b z i g r 1")
    return y, S


def linear_attention_flops(
    t: int, h: int, p: int, g: int, n: int, chunk: int, *, by_channel: bool = False
) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row; exponentials are not counted.

    matrix products: 2 m n k each, the last chunk filled up. One token: what is read, 2 p n a head.
    recurrence: one token takes 3 p n (fade, write, add) a head. Of more, each takes 2 c (segment sums, mask) + 3 p
    (until_end, since_start, sum) a head, each chunk 2 p n (pass on). by_channel: see `channel_flops`.
    """
    if t == 1:
        return 2 * h * p * n, 3 * h * p * n
    if by_channel:
        return channel.channel_flops(t, h, p, g, n, chunk)
    c = min(chunk, t)
    z = -(-t // c)
    inside, between = 2 * c * c * (g * n + h * p), 4 * c * h * p * n
    return z * (inside + between), z * h * (c * (2 * c + 3 * p) + 2 * p * n)
