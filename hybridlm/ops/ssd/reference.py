"""State space duality in plain PyTorch: linear attention in which C is the query, B the key and dt x the value."""

import torch
from torch import Tensor

from hybridlm.ops.linear_attention.reference import linear_attention, linear_attention_flops


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
    u, dt = x.to(wide), dt.to(wide)
    y, H = linear_attention(C, B, u * dt[..., None], dt * A.to(wide), state, document, chunk)
    y = y if D is None else y + D.to(wide)[:, None] * u
    return y.to(x.dtype), H


def ssd_flops(t: int, h: int, p: int, g: int, n: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row, as `linear_attention_flops` counts them.

    Each token, filled up or not, takes 3 p (dt x, D x, add) + 1 (dt A) a head more.
    """
    matmul, scan = linear_attention_flops(t, h, p, g, n, chunk)
    c = min(chunk, t)
    return matmul, scan + -(-t // c) * c * h * (3 * p + 1)
