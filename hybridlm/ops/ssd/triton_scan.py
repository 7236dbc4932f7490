"""The forward of state space duality as one walk, where rows and heads alone fill a GPU: no state leaves the registers.

H^T (n, p) is kept as it comes out of a product, so that C H^T needs no transpose of one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.ssd.triton_states import Sizes, Tuning, decay_mask, launched, rows_of, tile, visible


def scan(x, B, C, D, document, steps, initial, s: Sizes, tuning: Tuning) -> tuple[Tensor, Tensor]:
    """y and the last state (b, h, p, n), float32."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    last = torch.empty(s.b, s.h, s.p, s.n, dtype=torch.float32, device=x.device)
    packed, skip, given = document is not None, D is not None, initial is not None
    _scan_kernel[(s.b * s.h,)](
        *rows_of(x), *rows_of(B), *rows_of(C), D if skip else x, document if packed else x,
        *(document.stride() if packed else (0, 0)), steps, initial if given else last, y, last,
        s.t, s.h, s.p, s.n, s.h // s.g, s.chunks, steps[0].numel(),
        s.size, *s.padded, packed, skip, given, tuning.fine, **launched(tuning.scan),
    )  # fmt: skip
    return y, last


@triton.jit
def _scan_kernel(
    x, x_b, x_t: tl.constexpr, x_h: tl.constexpr, B, B_b, B_t: tl.constexpr, B_g: tl.constexpr,
    C, C_b, C_t: tl.constexpr, C_g: tl.constexpr, D, document, document_b, document_t, steps, initial, y, last,
    t, h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, r: tl.constexpr, chunks, plane,
    SIZE: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr, SKIP: tl.constexpr,
    GIVEN: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row, head = pid // h, pid % h
    x += row * x_b + head * x_h
    y += row * t * h * p + head * p
    B, C = B + row * B_b + head // r * B_g, C + row * C_b + head // r * C_g
    document += row * document_b
    i, q, m = tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    spot = pid * p * n + q[None, :] * n + m[:, None]
    held = (q < p)[None, :] & (m < n)[:, None]
    H = tl.load(initial + spot, held, 0.0) if GIVEN else tl.zeros((N, P), tl.float32)
    skip = tl.load(D + head).to(tl.float32) if SKIP else 0.0
    for at in range(pid * chunks, pid * chunks + chunks):  # in 64 bits, as pid is
        start = (at - pid * chunks) * SIZE
        tokens, cut = tl.minimum(t - start, SIZE).to(tl.int32), steps + at * SIZE
        key, query = tile(B + start * B_t, i, B_t, m, tokens, n), tile(C + start * C_t, i, C_t, m, tokens, n)
        value = tile(x + start * x_t, i, x_t, q, tokens, p)
        scores = tl.dot(query, tl.trans(key), input_precision="tf32x3")
        scores = visible(scores, document + start * document_t, document_t, i[:, None], i[None, :], tokens, PACKED)
        scores *= decay_mask(cut, plane, i[:, None], i[None, :], FINE) * tl.load(cut + i)[None, :]
        out = tl.dot(query, H.to(query.dtype), input_precision="tf32x3") * tl.load(cut + 3 * plane + i)[:, None]
        out = tl.dot(scores.to(value.dtype), value, out, input_precision="tf32x3")
        inside = (i < tokens)[:, None] & (q < p)[None, :]
        out = (out + skip * value).to(y.dtype.element_ty)
        tl.store(y + start * h * p + i[:, None] * h * p + q[None, :], out, inside)
        kept = value * (tl.load(cut + i) * tl.load(cut + 4 * plane + i))[:, None]
        H *= tl.load(cut + 3 * plane + SIZE - 1)
        H = tl.dot(tl.trans(key), kept.to(key.dtype), H, input_precision="tf32x3")
    tl.store(last + spot, H, held)
