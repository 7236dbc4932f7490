"""The kernel that computes every chunk by itself: y of x and the states; turned around, dx of dy and the adjoints.

With P_ij = L_ij (C_i . B_j), C and B changing places when turned:
    y_i  = sum_{j <= i} P_ij dt_j x_j + since_i S C_i + D x_i
    dx_j = dt_j (sum_{i >= j} P_ij dy_i + until_j G B_j) + D dy_j
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.ssd.triton_states import Sizes, Tuning, decay_mask, launched, place, rows_of, tile, turned, visible


def read(v, mine, others, D, document, steps, states, back: bool, s: Sizes, tuning: Tuning) -> Tensor:
    """y of v = x, mine = C, others = B and the states before the chunks; or, back, dx of dy, B, C and the adjoints."""
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    programs = s.b * s.chunks * s.g * triton.cdiv(s.h // s.g, tuning.heads)
    packed, skip = document is not None, D is not None
    _read_kernel[(programs,)](
        *rows_of(v), *rows_of(mine), *rows_of(others), D if skip else v, document if packed else v,
        *(document.stride() if packed else (0, 0)), steps, states, out,
        s.t, s.h, s.p, s.n, s.g, s.chunks, steps[0].numel(),
        s.size, *s.padded, tuning.heads, packed, skip, back, tuning.fine, **launched(tuning.read),
    )  # fmt: skip
    return out


@triton.jit
def _read_kernel(
    v, v_b, v_t: tl.constexpr, v_h: tl.constexpr, mine, mine_b, mine_t: tl.constexpr, mine_g: tl.constexpr,
    others, others_b, others_t: tl.constexpr, others_g: tl.constexpr, D, document, document_b, document_t,
    steps, states, out, t, h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, g: tl.constexpr, chunks, plane,
    SIZE: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    PACKED: tl.constexpr, SKIP: tl.constexpr, BACK: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    row, z, group, _, first, end = place(chunks, g, h // g, HEADS)
    start = z * SIZE
    i, q, m = tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    tokens = (t - start).to(tl.int32)
    key = tile(mine + row * mine_b + start * mine_t + group * mine_g, i, mine_t, m, tokens, n)
    other = turned(others + row * others_b + start * others_t + group * others_g, i, others_t, m, tokens, n)
    scores = tl.dot(key, other, input_precision="tf32x3")
    document += row * document_b + start * document_t
    later, earlier = (i[None, :], i[:, None]) if BACK else (i[:, None], i[None, :])
    scores = visible(scores, document, document_t, later, earlier, tokens, PACKED)
    v += row * v_b + start * v_t
    out += (row * t + start) * h * p
    for head in range(first, end):
        cut = steps + (row * h + head) * chunks * SIZE + start
        S = turned(states + ((row * h + head) * chunks + z) * p * n, q, n, m, p, n)
        value = tile(v + head * v_h, i, v_t, q, tokens, p)
        skip = tl.load(D + head).to(tl.float32) if SKIP else 0.0
        y = answer(scores, key, value, S, skip, cut, plane, i, BACK, FINE)
        inside = (i < tokens)[:, None] & (q < p)[None, :]
        tl.store(out + i[:, None] * h * p + head * p + q[None, :], y.to(out.dtype.element_ty), inside)


@triton.jit
def answer(scores, key, value, S, skip, cut, plane, i, BACK: tl.constexpr, FINE: tl.constexpr):
    """What one head of one chunk gives. scores: C B^T, or B C^T; S: (n, p), before the chunk or after it."""
    later, earlier = (i[None, :], i[:, None]) if BACK else (i[:, None], i[None, :])
    scores *= decay_mask(cut, plane, later, earlier, FINE)
    if not BACK:
        scores *= tl.load(cut + i)[None, :]
    y = tl.dot(key, S, input_precision="tf32x3") * tl.load(cut + (4 * plane if BACK else 3 * plane) + i)[:, None]
    y = tl.dot(scores.to(value.dtype), value, y, input_precision="tf32x3")
    if BACK:
        y *= tl.load(cut + i)[:, None]
    return y + skip * value
