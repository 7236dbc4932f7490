"""State space duality in plain PyTorch: the block decomposition of Dao and Gu 2024, section 6, figure 5.

Inside a chunk the recurrence is written out as attention with a decaying mask (section 6.1); between chunks only states
travel (sections 6.2 and 6.3). All heads of a group share B and C, so these are never repeated.

Letters: z chunks, i and j places in a chunk (a query's and a key's), g groups, r heads of a group.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    u, dt, A, B, C = x.to(wide), dt.to(wide), A.to(wide), B.to(wide), C.to(wide)
    H = u.new_zeros(u.shape[0], *u.shape[2:], B.shape[-1]) if state is None else state.to(wide)
    H = rearrange(H, "b (g r) p n -> b g r p n", g=B.shape[2])
    xdt, dtA = (rearrange(v, "b t (g r) ... -> b t g r ...", g=B.shape[2]) for v in (u * dt[..., None], dt * A))
    y, H = _step(xdt, dtA, B, C, H, document) if x.shape[1] == 1 else _chunked(xdt, dtA, B, C, H, document, chunk)
    y, H = rearrange(y, "b t g r p -> b t (g r) p"), rearrange(H, "b g r p n -> b (g r) p n")
    y = y if D is None else y + D.to(wide)[:, None] * u
    return y.to(x.dtype), H


def _step(x: Tensor, dtA: Tensor, B: Tensor, C: Tensor, H: Tensor, document: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself."""
    decay = torch.exp(dtA[:, 0])
    if document is not None:
        decay = decay.masked_fill((document != 0)[..., None], 0)
    H = torch.addcmul(decay[..., None, None] * H, x[:, 0, ..., None], B[:, 0, :, None, None])
    return einsum(H, C[:, 0], "b g r p n, b g n -> b g r p").unsqueeze(1), H


def _chunked(
    x: Tensor, dtA: Tensor, B: Tensor, C: Tensor, H: Tensor, document: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Many tokens. The last chunk is filled up with steps of size 0, which hold the state."""
    t = x.shape[1]
    size = min(chunk, t)
    x, B, C = (_fold(v, size) for v in (x, B, C))
    decay = _decays(
        rearrange(_fold(dtA, size), "b z j g r -> b z g r j"), None if document is None else _fold(document, size)
    )

    # Inside a chunk: attention with scores C B^T, masked by the decay from j to i.
    scores = einsum(C, B, "b z i g n, b z j g n -> b z g i j").unsqueeze(3) * decay.within
    y = einsum(scores, x, "b z g r i j, b z j g r p -> b z i g r p")
    # Between chunks: what each adds to the state, the state before each, and what is read from it.
    kept = x * rearrange(decay.until_end, "b z g r j -> b z j g r 1")
    added = einsum(kept, B, "b z j g r p, b z j g n -> b z g r p n")
    before, H = _pass_on(H, decay.through, added)
    carried = einsum(C, before, "b z i g n, b z g r p n -> b z i g r p")
    y = y + carried * rearrange(decay.since_start, "b z g r i -> b z i g r 1")
    return rearrange(y, "b z i g r p -> b (z i) g r p")[:, :t], H


def _fold(v: Tensor, size: int) -> Tensor:
    """(b, t, ...) -> (b, z, size, ...), filled up with zeros; a document (b, t) with its last number."""
    missing = -v.shape[1] % size
    fill = v[:, -1:].expand(-1, missing) if v.ndim == 2 else v.new_zeros(v.shape[0], missing, *v.shape[2:])
    return rearrange(torch.cat([v, fill], dim=1), "b (z c) ... -> b z c ...", c=size)


class Decays(NamedTuple):
    """What is left of a state: exp of sums of dt A, zero across the start of a document."""

    within: Tensor  # from after place j to after place i, (b, z, g, r, i, j); the mask L of eq. 5
    since_start: Tensor  # from the chunk's start to after i, (b, z, g, r, i)
    until_end: Tensor  # from after j to the chunk's end, (b, z, g, r, j)
    through: Tensor  # over a whole chunk, (b, z, g, r)


def _decays(dtA: Tensor, document: Tensor | None) -> Decays:
    """dtA (b, z, g, r, c), document (b, z, c) or None."""
    within, since_start = _decay_mask(dtA), dtA.cumsum(-1).exp()
    if document is not None:
        same = document[..., :, None] == document[..., None, :]
        before = F.pad(document[:, :-1, -1], (1, 0))  # the document of the state that enters a chunk
        within = within * same[:, :, None, None]
        since_start = since_start * (document == before[..., None])[:, :, None, None]
    return Decays(within, since_start, within[..., -1, :], since_start[..., -1])


def _decay_mask(v: Tensor) -> Tensor:
    """The 1-semiseparable matrix of section 2.2: (..., c) -> (..., i, j), exp(v_{j+1} + ... + v_i), 0 for i < j.

    Cut in half, it has the masks of the halves on its diagonal and below them an outer product: what is left at the end
    of the first half, and from the start of the second. Every sum stands for itself: the difference of two long running
    sums would have lost the digits of a short one.
    """
    c = v.shape[-1]
    if c % 2 or c <= 8:
        below = torch.ones(c, c, dtype=torch.bool, device=v.device).tril(-1)
        return v[..., None].masked_fill(~below, 0).cumsum(-2).exp().tril()
    halves = rearrange(v, "... (two c) -> two ... c", two=2)
    first, second = _decay_mask(halves)
    until_end, since_start = first[..., -1, :], halves[1].cumsum(-1).exp()
    corner = since_start[..., :, None] * until_end[..., None, :]
    return torch.cat([F.pad(first, (0, c // 2)), torch.cat([corner, second], dim=-1)], dim=-2)


def _pass_on(H: Tensor, through: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
    """From chunk to chunk: H (b, g, r, p, n) -> H before each, (b, z, g, r, p, n), and after the last."""
    before = []
    for decay, more in zip(through[..., None, None].unbind(1), added.unbind(1), strict=True):
        before.append(H)
        H = torch.addcmul(more, decay, H)
    return torch.stack(before, dim=1), H


def ssd_flops(t: int, h: int, p: int, g: int, n: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row; exponentials are not counted.

    matrix products: 2 m n k each, the last chunk filled up. One token: what is read, 2 p n a head.
    recurrence: one token takes 3 p n (fade, write, add) + 3 p (dt x, D x, add) + 1 (dt A) a head. Of more, each takes
    2 c (segment sums, mask) + 6 p (dt x, D x, until_end, since_start, two sums) + 1 a head, each chunk 2 p n (pass on).
    """
    if t == 1:
        return 2 * h * p * n, h * (3 * p * n + 3 * p + 1)
    c = min(chunk, t)
    z = -(-t // c)
    inside, between = 2 * c * c * (g * n + h * p), 4 * c * h * p * n
    return z * (inside + between), z * h * (c * (2 * c + 6 * p + 1) + 2 * p * n)
