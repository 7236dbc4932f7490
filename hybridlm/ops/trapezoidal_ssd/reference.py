"""Mamba-3's recurrence in plain PyTorch: one pass of linear attention over the tokens before.

Two things are turned into what linear attention does. **Rotation.** A state that turns by -turn_t at every step is, in
a frame that turns along, one that does not, with B and C turned by the sum of the angles so far. The sum starts at 0 in
every call, and the state is turned back at its end: so the state is the paper's complex one, and no angle is carried.
**Two tokens a step.** Token s enters at step s with l_s dt_s and at s + 1 with (1 - l_{s+1}) dt_{s+1}, both decaying
alike from then on. So at step t, before its own token is written, the state has

    U_t = e^{dt_t A_t} (U_{t-1} + (l_{t-1} dt_{t-1} + (1 - l_t) dt_t) x_{t-1} B_{t-1}^T)

which is linear attention over keys and values of one token earlier; H_t = U_t + l_t dt_t x_t B_t^T. Nothing at t is
taken from t + 1, and nothing is added that must be subtracted again.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.chunks import at_begins
from hybridlm.ops.linear_attention import linear_attention, linear_attention_flops
from hybridlm.ops.rows import last_valid


class Memory(NamedTuple):
    """H (b, h, p, n), and of the last token B (b, h, n) and x (b, h, p)."""

    ssm: Tensor
    key: Tensor
    value: Tensor


def trapezoidal_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    trap: Tensor,
    turn: Tensor,
    B: Tensor,
    C: Tensor,
    state: Memory | None,
    lengths: Tensor | None,
    document: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Memory]:
    wide = torch.promote_types(x.dtype, torch.float32)
    u, dt, trap, B, C, decay = (v.to(wide) for v in (x, dt, trap, B, C, dt.to(wide) * A.to(wide)))
    ssm, key, value = (v.to(wide) for v in state or _nothing(u, B))

    angle = _sums(turn, document).to(wide)
    k, q = rotate(B, angle), rotate(C, angle)
    own, late = trap * dt, at_begins((1 - trap) * dt, document, 0.0)  # weights of a token, and of the one before it
    weight = late + at_begins(F.pad(own[:, :-1], (0, 0, 1, 0)), document, 0.0)
    entering = (torch.exp(decay) * weight)[..., None] * _before(u, value)
    y, ssm = linear_attention(q, _before(k, key), entering, decay, state=ssm, document=document, chunk=chunk)

    y = y + (own * (B * C).sum(-1))[..., None] * u
    ssm = ssm + (own[:, -1, :, None] * u[:, -1])[..., None] * k[:, -1, :, None]
    last = Memory(rotate(ssm, -angle[:, -1, :, None]), last_valid(B, key, lengths), last_valid(u, value, lengths))
    return y.to(x.dtype), last


def rotate(v: Tensor, angle: Tensor) -> Tensor:
    """v (..., n) with each pair of numbers 2 i and 2 i + 1, i < a, turned by angle (..., a)."""
    a = angle.shape[-1]
    (left, right), rest = v[..., : 2 * a].unflatten(-1, (a, 2)).unbind(-1), v[..., 2 * a :]
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1)
    return torch.cat([turned.flatten(-2), rest], dim=-1)


def _sums(turn: Tensor, document: Tensor | None) -> Tensor:
    """Sums along t over a document so far, mod 2 pi; in float64, as a sum of many turns has lost an angle's digits.

    With documents by doubling: sums over 1, 2, 4, ... tokens. The difference of two running sums would be the same
    number, but its gradient would leak into the documents before, by its rounding.
    """
    total, reach = turn.to(torch.float64), 1
    if document is None:
        return torch.remainder(total.cumsum(1), 2 * math.pi)
    while reach < total.shape[1]:
        same = document[:, reach:] == document[:, :-reach]
        earlier = torch.where(same[..., None, None], total[:, :-reach], 0)
        total, reach = torch.cat([total[:, :reach], total[:, reach:] + earlier], dim=1), 2 * reach
    return torch.remainder(total, 2 * math.pi)


def _before(v: Tensor, first: Tensor) -> Tensor:
    """v (b, t, ...) one token later, `first` (b, ...) in front."""
    return torch.cat([first[:, None], v[:, :-1]], dim=1)


def _nothing(u: Tensor, B: Tensor) -> Memory:
    b, _, h, p = u.shape
    return Memory(u.new_zeros(b, h, p, B.shape[-1]), u.new_zeros(b, h, B.shape[-1]), u.new_zeros(b, h, p))


def trapezoidal_ssd_flops(t: int, h: int, p: int, n: int, a: int, chunk: int) -> tuple[int, int]:
    """(matrix products, elementwise recurrence) of t tokens of one row; exponentials, sines and cosines do not count.

    matrix products: those of linear attention with a group a head. recurrence: its own; for each token and head 13 a
    (sum of angles, B and C turned, 6 a pair), 2 n (B C), 3 p (entering, own, add) and 7 (dt A, the weights, own B C);
    for each head at the end 2 p n + p (last token) and 6 p a (turned back).
    """
    matmul, scan = linear_attention_flops(t, h, p, h, n, chunk)
    return matmul, scan + t * h * (13 * a + 2 * n + 3 * p + 7) + h * (2 * p * n + p + 6 * p * a)
