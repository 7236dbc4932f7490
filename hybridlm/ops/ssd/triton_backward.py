"""Gradients of state space duality in Triton: S before and G after every chunk, then every chunk by itself.

G is the gradient of the state that the chunk leaves. With L the decays and M_ij = L_ij (C_i . B_j) (dy_i . x_j),
    u_j  = sum_i L_ij (C_i . B_j) dy_i + until_j G B_j,    dx_j = dt_j u_j + D dy_j
    dC_i = sum_j L_ij (dy_i . x_j) dt_j B_j + since_i S^T dy_i
    dB_j = dt_j (sum_i L_ij (dy_i . x_j) C_i + until_j G^T x_j)
    ddt_j = x_j . u_j + A da_j
What is written before t and read at t or later passes through a_t = dt_t A, and nothing else does:
    da_t = sum_{j < t <= i} M_ij dt_j + sum_{i >= t} since_i dy_i . S C_i
           + sum_{j < t} until_j dt_j x_j . G B_j + through <S, G>
Sums stay in the chunk, and in the document. That of M is taken as it stands if `fine`; else it is a sum from t on of
what its rows sum to less what its columns do, both without the diagonal: cheap, with errors of 1e-6.
Every program adds up its heads in one order, and what is left to sum is summed by torch: the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.ssd.triton_states import (
    Sizes,
    Tuning,
    adjoints,
    decay_mask,
    place,
    rows_of,
    sizes,
    states,
    steps,
    tile,
    tuning,
    turned,
    visible,
)


@torch.library.custom_op("hybridlm::ssd_triton_backward", mutates_args=())
def gradients(
    dy: Tensor, dlast: Tensor | None, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
    state: Tensor | None, document: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Of x, dt, A, B, C, D and state, those that are None included."""
    return backward(dy, dlast, x, dt, A, B, C, D, state, document, tuning(x, B))


@gradients.register_fake
def _(dy, dlast, x, dt, A, B, C, D, state, document):
    like = [v.new_empty(v.shape) for v in (x, dt, A, B, C, A if D is None else D)]
    shape = (x.shape[0], *x.shape[2:], B.shape[3])
    return *like, x.new_empty(shape, dtype=torch.float32 if state is None else state.dtype)


def backward(dy, dlast, x, dt, A, B, C, D, state, document, tuning: Tuning) -> tuple[Tensor, ...]:
    """The same, cut as `tuning` says."""
    s = sizes(x, B, tuning.chunk)
    dy = dy.to(x.dtype)
    cuts = steps(dt, A, document, s)
    before, _ = states(x, B, cuts, _dense(state), s, tuning)
    after, dstate, inner = adjoints(dy, C, cuts, _dense(dlast), before, s, tuning)
    sums = torch.empty(5, s.b, s.h, s.chunks * s.size, dtype=torch.float32, device=x.device)
    dx, dB, dD = _of_keys(dy, x, B, C, D, document, cuts, after, sums, s, tuning)
    dC = _of_queries(dy, x, B, C, document, cuts, before, sums, s, tuning)
    ddt, dA = _of_steps(A, document, cuts, sums, inner, s, tuning.fine)
    dD = dD.to(A.dtype if D is None else D.dtype)
    dstate = dstate if state is None else dstate.to(state.dtype)
    return dx, ddt.to(dt.dtype), dA.to(A.dtype), dB, dC, dD, dstate


def _dense(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.float().contiguous()


def _cut(s: Sizes, tuning: Tuning) -> tuple[int, int, int]:
    """(rows of a program, shares of a group's heads, programs)."""
    rows = s.size if tuning.fine else min(tuning.back_rows, s.size)
    shares = triton.cdiv(s.h // s.g, tuning.back_heads)
    return rows, shares, s.b * s.chunks * (s.size // rows) * s.g * shares


def _shared(like: Tensor, shares: int) -> Tensor:
    """Room for the gradient of B or C, one for each share of the heads."""
    dtype = like.dtype if shares == 1 else torch.float32
    return torch.empty(shares, *like.shape, dtype=dtype, device=like.device)


def _joined(parts: Tensor, like: Tensor) -> Tensor:
    return parts[0] if len(parts) == 1 else parts.sum(0).to(like.dtype)


# ----------------------------------------------------------------------------------------------------------------- keys
def _of_keys(dy, x, B, C, D, document, steps, after, sums, s: Sizes, tuning: Tuning) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dB, dD; into sums[2:] x_j . u_j: from later tokens of the chunk, from after the chunk, and in all."""
    rows, shares, programs = _cut(s, tuning)
    packed, skip = document is not None, D is not None
    dx, dB = torch.empty(x.shape, dtype=x.dtype, device=x.device), _shared(B, shares)
    dD = torch.empty(s.b, s.chunks * s.size // rows, s.h, dtype=torch.float32, device=x.device)
    warps, stages = tuning.back
    _keys_kernel[(programs,)](
        *rows_of(dy), *rows_of(x), *rows_of(B), *rows_of(C), D if skip else x, document if packed else x,
        *(document.stride() if packed else (0, 0)), steps, after, dx, dB, dD, sums,
        s.t, s.h, s.p, s.n, s.g, s.chunks, steps[0].numel(), dB[0].numel(),
        s.size, rows, *s.padded, tuning.back_heads, packed, skip, tuning.fine,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return dx, _joined(dB, B), dD.sum((0, 1))


@triton.jit
def _keys_kernel(
    dy, dy_b, dy_t, dy_h, x, x_b, x_t, x_h, B, B_b, B_t, B_g, C, C_b, C_t, C_g, D, document, document_b, document_t,
    steps, after, dx, dB, dD, sums, t, h, p, n, g, chunks, plane, part,
    SIZE: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    PACKED: tl.constexpr, SKIP: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    row, z, block, group, share, first, end = place(chunks, g, h // g, SIZE // ROWS, HEADS)
    start = z * SIZE
    j, i, q, m = block * ROWS + tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    tokens = (t - start).to(tl.int32)
    C += row * C_b + start * C_t + group * C_g
    key = tile(B + row * B_b + start * B_t + group * B_g, j, B_t, m, tokens, n)
    scores = tl.dot(key, turned(C, i, C_t, m, tokens, n), input_precision="ieee")
    itself = tl.sum(key * tile(C, j, C_t, m, tokens, n).to(tl.float32), 1)
    document += row * document_b + start * document_t
    sees = visible(document, document_t, i[None, :], j[:, None], tokens, PACKED)
    x, dy = x + row * x_b + start * x_t, dy + row * dy_b + start * dy_t
    dx += (row * t + start) * h * p
    pairs, dkey = tl.zeros((ROWS, SIZE), tl.float32), tl.zeros((ROWS, N), tl.float32)
    for head in range(first, end):
        cut = (row * h + head) * chunks * SIZE + start
        G = tile(after + ((row * h + head) * chunks + z) * p * n, q, n, m, p, n)
        value, grad = tile(x + head * x_h, j, x_t, q, tokens, p), tile(dy + head * dy_h, i, dy_t, q, tokens, p)
        step, until = tl.load(steps + cut + j)[:, None], tl.load(steps + 4 * plane + cut + j)[:, None]
        mask = decay_mask(steps + cut, plane, i[None, :], j[:, None], sees, FINE)
        met = tl.dot(value, tl.trans(grad), input_precision="ieee") * mask
        pairs += met * step
        met = tl.where(i[None, :] > j[:, None], met * scores, 0.0)
        later = tl.sum(met, 1)
        tl.store(sums + 2 * plane + cut + j, later)
        if FINE:
            tl.store(sums + cut + i, _across(met * step, i[None, :], j[:, None]))
        u = tl.dot(key, tl.trans(G), input_precision="ieee") * until
        after_chunk = tl.sum(u * value, 1)
        tl.store(sums + 3 * plane + cut + j, after_chunk)
        u = tl.dot((scores * mask).to(grad.dtype), grad, u, input_precision="ieee") * step
        dkey = tl.dot((value * (step * until)).to(G.dtype), G, dkey, input_precision="ieee")
        grad = tile(dy + head * dy_h, j, dy_t, q, tokens, p).to(tl.float32)
        here = tl.sum(grad * value, 1)
        tl.store(sums + 4 * plane + cut + j, later + after_chunk + here * itself)
        tl.store(dD + ((row * chunks + z) * (SIZE // ROWS) + block) * h + head, tl.sum(here, 0))
        if SKIP:
            u += tl.load(D + head).to(tl.float32) * grad
        inside = (j < tokens)[:, None] & (q < p)[None, :]
        tl.store(dx + j[:, None] * h * p + head * p + q[None, :], u.to(dx.dtype.element_ty), inside)
    dkey = tl.dot(pairs.to(key.dtype), tile(C, i, C_t, m, tokens, n), dkey, input_precision="ieee")
    dB += share * part + ((row * t + start) * g + group) * n
    tl.store(
        dB + j[:, None] * g * n + m[None, :], dkey.to(dB.dtype.element_ty), (j < tokens)[:, None] & (m < n)[None, :]
    )


@triton.jit
def _across(met, i, j):
    """met (j, i) summed over j < t <= i, for each t."""
    return tl.sum(tl.where(j < i, tl.cumsum(met, 1, reverse=True), 0.0), 0)


# -------------------------------------------------------------------------------------------------------------- queries
def _of_queries(dy, x, B, C, document, steps, before, sums, s: Sizes, tuning: Tuning) -> Tensor:
    """dC; into sums[:2] dy_i . y_i: from earlier tokens of the chunk, and from before the chunk."""
    rows, shares, programs = _cut(s, tuning)
    packed, dC = document is not None, _shared(C, shares)
    warps, stages = tuning.back
    _queries_kernel[(programs,)](
        *rows_of(dy), *rows_of(x), *rows_of(B), *rows_of(C), document if packed else x,
        *(document.stride() if packed else (0, 0)), steps, before, dC, sums,
        s.t, s.h, s.p, s.n, s.g, s.chunks, steps[0].numel(), dC[0].numel(),
        s.size, rows, *s.padded, tuning.back_heads, packed, tuning.fine,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return _joined(dC, C)


@triton.jit
def _queries_kernel(
    dy, dy_b, dy_t, dy_h, x, x_b, x_t, x_h, B, B_b, B_t, B_g, C, C_b, C_t, C_g, document, document_b, document_t,
    steps, before, dC, sums, t, h, p, n, g, chunks, plane, part,
    SIZE: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    PACKED: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    row, z, block, group, share, first, end = place(chunks, g, h // g, SIZE // ROWS, HEADS)
    start = z * SIZE
    i, j, q, m = block * ROWS + tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    tokens = (t - start).to(tl.int32)
    B += row * B_b + start * B_t + group * B_g
    query = tile(C + row * C_b + start * C_t + group * C_g, i, C_t, m, tokens, n)
    scores = tl.dot(query, turned(B, j, B_t, m, tokens, n), input_precision="ieee")
    document += row * document_b + start * document_t
    sees = visible(document, document_t, i[:, None], j[None, :], tokens, PACKED)
    x += row * x_b + start * x_t
    dy += row * dy_b + start * dy_t
    pairs, dquery = tl.zeros((ROWS, SIZE), tl.float32), tl.zeros((ROWS, N), tl.float32)
    for head in range(first, end):
        cut = (row * h + head) * chunks * SIZE + start
        S = tile(before + ((row * h + head) * chunks + z) * p * n, q, n, m, p, n)
        grad, value = tile(dy + head * dy_h, i, dy_t, q, tokens, p), tile(x + head * x_h, j, x_t, q, tokens, p)
        step, since = tl.load(steps + cut + j)[None, :], tl.load(steps + 3 * plane + cut + i)[:, None]
        mask = decay_mask(steps + cut, plane, i[:, None], j[None, :], sees, FINE)
        met = tl.dot(grad, tl.trans(value), input_precision="ieee") * mask * step
        pairs += met
        if not FINE:
            tl.store(sums + cut + i, tl.sum(tl.where(i[:, None] > j[None, :], met * scores, 0.0), 1))
        read = tl.dot((grad * since).to(S.dtype), S, input_precision="ieee")
        tl.store(sums + plane + cut + i, tl.sum(read * query, 1))
        dquery += read
    dquery = tl.dot(pairs.to(query.dtype), tile(B, j, B_t, m, tokens, n), dquery, input_precision="ieee")
    dC += share * part + ((row * t + start) * g + group) * n
    inside = (i < tokens)[:, None] & (m < n)[None, :]
    tl.store(dC + i[:, None] * g * n + m[None, :], dquery.to(dC.dtype.element_ty), inside)


# ---------------------------------------------------------------------------------------------------------------- steps
def _of_steps(A, document, steps, sums, inner, s: Sizes, fine: bool) -> tuple[Tensor, Tensor]:
    """ddt and dA, both float32."""
    ddt = torch.empty(s.b, s.t, s.h, dtype=torch.float32, device=A.device)
    dA = torch.empty(s.b * s.chunks, s.h, dtype=torch.float32, device=A.device)
    packed = document is not None
    _steps_kernel[(s.b * s.h * s.chunks,)](
        A, document if packed else A, *(document.stride() if packed else (0, 0)), steps, sums, inner, ddt, dA,
        s.t, s.h, s.chunks, steps[0].numel(), inner.shape[3], s.size, packed, fine, num_warps=4,
    )  # fmt: skip
    return ddt, dA.sum(0)


@triton.jit
def _steps_kernel(
    A, document, document_b, document_t, steps, sums, inner, ddt, dA, t, h, chunks, plane, parts,
    SIZE: tl.constexpr, PACKED: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row, head, z = pid // chunks // h, pid // chunks % h, pid % chunks
    at, s, cut = tl.arange(0, SIZE), tl.arange(0, SIZE)[None, :], pid * SIZE
    ends = tl.load(sums + plane + cut + s)
    if not FINE:
        ends += tl.load(sums + cut + s) - tl.load(steps + cut + s) * tl.load(sums + 2 * plane + cut + s)
    begins = tl.load(steps + cut + s) * tl.load(sums + 3 * plane + cut + s)
    through = 0.0
    for index in range(parts):
        through += tl.load(inner + pid * parts + index)
    through += tl.load(sums + cut + at) if FINE else 0.0
    passes = tl.where(s >= at[:, None], ends, begins)
    if PACKED:
        document += row * document_b
        here, there = tl.minimum(z * SIZE + at, t - 1), tl.minimum(z * SIZE + s, t - 1)
        mine = tl.load(document + here * document_t)
        passes = tl.where(mine[:, None] == tl.load(document + there * document_t), passes, 0.0)
        goes_on = mine == tl.load(document + (here - 1) * document_t, here > 0, 0)
        da = tl.where(goes_on, tl.sum(passes, 1) + through, 0.0)
    else:
        da = tl.sum(passes, 1) + through
    rate, step = tl.load(A + head).to(tl.float32), tl.load(steps + cut + at)
    direct = tl.load(sums + 4 * plane + cut + at)
    inside = z * SIZE + at < t
    tl.store(ddt + (row * t + z * SIZE + at) * h + head, direct + rate * da, inside)
    tl.store(dA + (row * chunks + z) * h + head, tl.sum(step * da, 0))
