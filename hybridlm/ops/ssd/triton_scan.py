"""State space duality as one walk, where rows and heads alone fill a GPU: the state stays in registers.

Turned around it gives dx, and stores the state's gradient after each chunk on its way. The state is kept as (n, p), as
it comes out of a product, so that nothing has to be transposed that did.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.ssd.triton_read import answer
from hybridlm.ops.ssd.triton_states import Sizes, Tuning, launched, rows_of, tile, turned, visible


def scan(x, B, C, D, document, steps, initial, s: Sizes, tuning: Tuning) -> tuple[Tensor, Tensor]:
    """y and the last state (b, h, p, n), float32."""
    return _scan(x, C, B, D, document, steps, initial, None, s, tuning)[:2]


def scan_back(dy, B, C, D, document, steps, final, before, s: Sizes, tuning: Tuning) -> tuple[Tensor, ...]:
    """dx, and what `adjoints` gives, the first of it as (b, h, chunks, n, p): dstate, after, inner."""
    return _scan(dy, B, C, D, document, steps, final, before, s, tuning)


def _scan(v, mine, others, D, document, steps, initial, before, s: Sizes, tuning: Tuning) -> tuple[Tensor, ...]:
    back, f32 = before is not None, {"dtype": torch.float32, "device": v.device}
    out, last = torch.empty(v.shape, dtype=v.dtype, device=v.device), torch.empty(s.b, s.h, s.p, s.n, **f32)
    stored = torch.empty(s.b, s.h, s.chunks, s.n, s.p, dtype=v.dtype, device=v.device) if back else out
    inner = torch.empty(s.b, s.h, s.chunks, s.padded[1], **f32) if back else last
    packed, skip, given = document is not None, D is not None, initial is not None
    _scan_kernel[(s.b * s.h,)](
        *rows_of(v), *rows_of(mine), *rows_of(others), D if skip else v, document if packed else v,
        *(document.stride() if packed else (0, 0)), steps, initial if given else last, before if back else v,
        out, last, stored, inner, s.t, s.h, s.p, s.n, s.h // s.g, s.chunks, steps[0].numel(),
        s.size, *s.padded, packed, skip, given, back, tuning.fine, **launched(tuning.scan),
    )  # fmt: skip
    return out, last, stored, inner


@triton.jit
def _scan_kernel(
    v, v_b, v_t: tl.constexpr, v_h: tl.constexpr, mine, mine_b, mine_t: tl.constexpr, mine_g: tl.constexpr,
    others, others_b, others_t: tl.constexpr, others_g: tl.constexpr, D, document, document_b, document_t, steps,
    initial, before, out, last, stored, inner,
    t, h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, r: tl.constexpr, chunks, plane,
    SIZE: tl.constexpr, P: tl.constexpr, N: tl.constexpr, PACKED: tl.constexpr, SKIP: tl.constexpr,
    GIVEN: tl.constexpr, BACK: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row, head = pid // h, pid % h
    v, out = v + row * v_b + head * v_h, out + row * t * h * p + head * p
    mine, others = mine + row * mine_b + head // r * mine_g, others + row * others_b + head // r * others_g
    i, q, m = tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    held = (q < p)[None, :] & (m < n)[:, None]
    S = turned(initial + pid * p * n, q, n, m, p, n) if GIVEN else tl.zeros((N, P), tl.float32)
    skip = tl.load(D + head).to(tl.float32) if SKIP else 0.0
    for at in range(pid * chunks, pid * chunks + chunks):  # in 64 bits, as pid is
        z = pid * chunks + chunks - 1 - at if BACK else at - pid * chunks
        start, cut = z * SIZE, steps + (pid * chunks + z) * SIZE
        tokens = tl.minimum(t - start, SIZE).to(tl.int32)
        through = tl.load(cut + 3 * plane + SIZE - 1)
        if BACK:
            place = (pid * chunks + z) * p * n
            tl.store(stored + place + m[:, None] * p + q[None, :], S.to(stored.dtype.element_ty), held)
            met = turned(before + place, q, n, m, p, n)
        key = tile(mine + start * mine_t, i, mine_t, m, tokens, n)
        other = tile(others + start * others_t, i, others_t, m, tokens, n)
        value = tile(v + start * v_t, i, v_t, q, tokens, p)
        scores = tl.dot(key, tl.trans(other), input_precision="tf32x3")
        later, earlier = (i[None, :], i[:, None]) if BACK else (i[:, None], i[None, :])
        papers = document + row * document_b + start * document_t
        scores = visible(scores, papers, document_t, later, earlier, tokens, PACKED)
        y = answer(scores, key, value, S.to(key.dtype), skip, cut, plane, i, BACK, FINE)
        inside = (i < tokens)[:, None] & (q < p)[None, :]
        tl.store(out + (start + i)[:, None] * h * p + q[None, :], y.to(out.dtype.element_ty), inside)
        if BACK:
            tl.store(inner + (pid * chunks + z) * N + m, tl.sum(S * met, 1) * through)
        weight = tl.load(cut + 3 * plane + i) if BACK else tl.load(cut + i) * tl.load(cut + 4 * plane + i)
        S = tl.dot(tl.trans(other), (value * weight[:, None]).to(key.dtype), S * through, input_precision="tf32x3")
    tl.store(last + pid * p * n + q[None, :] * n + m[:, None], S, held)
