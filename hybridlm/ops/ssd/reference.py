"""State space duality in plain PyTorch: linear attention in which C is the query, B the key and dt x the value."""

import torch
from torch import Tensor

from hybridlm.ops.linear_attention.reference import linear_attention, linear_attention_flops
from hybridlm.ops.spread import spread


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
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    u, dt = x.to(wide), dt.to(wide)
    if x.shape[1] == 1:
        y, H = step(u, dt, A.to(wide), B.to(wide), C.to(wide), D, state, document, in_place)
        return y.to(x.dtype), H
    y, H = linear_attention(C, B, u * dt[..., None], dt * A.to(wide), state, document, chunk)
    y = y if D is None else y + spread(D.to(wide), dt)[..., None] * u
    return y.to(x.dtype), H


def step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    """One token: the recurrence itself, in the fewest operations, as decoding is bound by their number."""
    b, _, h, p = x.shape
    g, n = B.shape[2:]
    decay = torch.exp(dt[:, 0] * A)[..., None, None]
    if document is not None:
        decay = torch.where(document[..., None, None] == 0, decay, 0)
    state = x.new_zeros(b, h, p, n) if state is None else state
    u = (x * dt[..., None]).reshape(b, g, -1, 1)  # heads of a group and their channels as one: (b, g, r p, 1)
    B, C = B[:, 0, :, None], C[:, 0, ..., None]
    if in_place and state.dtype == x.dtype and state.is_contiguous() and not state.requires_grad:
        H = state.mul_(decay)
        flat = H.view(b, g, -1, n).addcmul_(u, B)
    else:
        flat = torch.addcmul((decay * state.to(x.dtype)).reshape(b, g, -1, n), u, B)
        H = flat.view(b, h, p, n)
    y = (flat @ C).view(b, 1, h, p)
    return y if D is None else torch.addcmul(y, D.to(x.dtype)[:, None], x), H


def ssd_flops(t: int, h: int, p: int, g: int, n: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row, as `linear_attention_flops` counts them.

    Each token, filled up or not, takes 3 p (dt x, D x, add) + 1 (dt A) a head more.
    """
    matmul, scan = linear_attention_flops(t, h, p, g, n, chunk)
    c = min(chunk, t)
    return matmul, scan + -(-t // c) * c * h * (3 * p + 1)
