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
what its rows sum to less what its columns do: cheap, with errors of 1e-6 of the largest.
Every program adds up its heads in one order, and what is left to sum is summed by torch: the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.ssd.triton_read import read
from hybridlm.ops.ssd.triton_scan import scan_back
from hybridlm.ops.ssd.triton_segments import entering, fold, fold_documents, leaving, unfold
from hybridlm.ops.ssd.triton_states import (
    Sizes,
    Tuning,
    adjoints,
    decay_mask,
    launched,
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
    dy, x, of_dt, B, C = (fold(v, tuning.segments) for v in (dy.to(x.dtype), x, dt, B, C))
    document = fold_documents(document, tuning.segments)
    s = sizes(x, B, tuning.chunk)
    cuts = steps(of_dt, A, document, s)
    before, _ = states(x, B, cuts, entering(x, B, cuts, _dense(state), s, tuning), s, tuning)
    dlast = leaving(dy, C, cuts, _dense(dlast), s, tuning)
    if tuning.fused_back:
        dx, dstate, after, inner = scan_back(dy, B, C, D, document, cuts, dlast, before, s, tuning)
    else:
        after, dstate, inner = adjoints(dy, C, cuts, dlast, before, s, tuning)
        dx = read(dy, B, C, D, document, cuts, after, True, s, tuning)
    sums = torch.empty(2, 2, s.b, s.h, s.chunks * s.size, dtype=torch.float32, device=x.device)
    dC, dD = _meet(dy, x, C, B, document, cuts, before, sums, False, s, tuning)
    dB = _meet(x, dy, B, C, document, cuts, after, sums, True, s, tuning)  # after dC, see `fine`
    ddt, dA = _of_steps(A, document, cuts, sums, inner, s, tuning.fine)
    dD = dD.to(A.dtype if D is None else D.dtype)
    dstate = dstate[:: tuning.segments].to(dstate.dtype if state is None else state.dtype).contiguous()
    dx, ddt, dB, dC = (unfold(v, tuning.segments) for v in (dx, ddt.to(dt.dtype), dB, dC))
    return dx, ddt, dA.to(A.dtype), dB, dC, dD, dstate


def _dense(state: Tensor | None) -> Tensor | None:
    return None if state is None else state.float().contiguous()


# ---------------------------------------------------------------------------------------------------------------- pairs
def _meet(v, others_v, k, others_k, document, steps, states, sums, back: bool, s: Sizes, tuning: Tuning):
    """dC of v = dy, others_v = x, k = C, others_k = B and the states before the chunks, and dD; or, back, dB of x, dy,
    B, C and the adjoints. Into `sums` (back, 2, b, h, chunks * size) dy_i . y_i or x_j . u_j, without D: what comes
    from inside the chunk, and from outside.
    """
    shares = triton.cdiv(s.h // s.g, tuning.back_heads)
    out = torch.empty(shares, *k.shape, dtype=k.dtype if shares == 1 else torch.float32, device=k.device)
    dD = torch.empty(s.b, s.chunks, s.h, dtype=torch.float32, device=k.device)
    packed = document is not None
    _meet_kernel[(s.b * s.chunks * s.g * shares,)](
        *rows_of(v), *rows_of(others_v), *rows_of(k), *rows_of(others_k), document if packed else v,
        *(document.stride() if packed else (0, 0)), steps, states, out, dD, sums[int(back)], sums[0, 0],
        s.t, s.h, s.p, s.n, s.g, s.chunks, steps[0].numel(), out[0].numel(),
        s.size, *s.padded, tuning.back_heads, packed, back, back and tuning.fused_back, tuning.fine,
        **launched(tuning.meet),
    )  # fmt: skip
    out = out[0] if shares == 1 else out.sum(0).to(k.dtype)
    return out if back else (out, dD.sum((0, 1)))


@triton.jit
def _meet_kernel(
    v, v_b, v_t: tl.constexpr, v_h: tl.constexpr, w, w_b, w_t: tl.constexpr, w_h: tl.constexpr,
    k, k_b, k_t: tl.constexpr, k_g: tl.constexpr, u, u_b, u_t: tl.constexpr, u_g: tl.constexpr,
    document, document_b, document_t, steps, states, out, dD, sums, across,
    t, h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, g: tl.constexpr, chunks, plane, part,
    SIZE: tl.constexpr, P: tl.constexpr, N: tl.constexpr, HEADS: tl.constexpr,
    PACKED: tl.constexpr, BACK: tl.constexpr, TURNED: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    row, z, group, share, first, end = place(chunks, g, h // g, HEADS)
    start, tokens = z * SIZE, (t - z * SIZE).to(tl.int32)
    i, q, m = tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    key = tile(k + row * k_b + start * k_t + group * k_g, i, k_t, m, tokens, n)
    u += row * u_b + start * u_t + group * u_g
    document += row * document_b + start * document_t
    later, earlier = (i[None, :], i[:, None]) if BACK else (i[:, None], i[None, :])
    scores = tl.dot(key, turned(u, i, u_t, m, tokens, n), input_precision="tf32x3")
    scores = visible(scores, document, document_t, later, earlier, tokens, PACKED)
    v, w = v + row * v_b + start * v_t, w + row * w_b + start * w_t
    pairs, dkey = tl.zeros((SIZE, SIZE), tl.float32), tl.zeros((SIZE, N), tl.float32)
    for head in range(first, end):
        cut = (row * h + head) * chunks * SIZE + start
        S = states + ((row * h + head) * chunks + z) * p * n
        S = turned(S, m, p, q, n, p) if TURNED else tile(S, q, n, m, p, n)
        value, other = tile(v + head * v_h, i, v_t, q, tokens, p), tile(w + head * w_h, i, w_t, q, tokens, p)
        dkey, y = _outside(dkey, key, value, S, steps + cut + i, plane, BACK)
        tl.store(sums + plane + cut + i, y)
        met = tl.dot(value, tl.trans(other), input_precision="tf32x3")
        met *= decay_mask(steps + cut, plane, later, earlier, FINE)
        if not BACK:
            here = tl.sum(tl.where(later == earlier, met, 0.0), 1)
            tl.store(dD + (row * chunks + z) * h + head, tl.sum(here, 0))
        step = tl.load(steps + cut + earlier)
        met = met if BACK else met * step
        tl.store(sums + cut + i, tl.sum(met * scores, 1))
        met = met * step if BACK else met
        if FINE and BACK:
            tl.store(across + cut + i, _across(met * scores, later, earlier))
        pairs += met
    pairs = visible(pairs, document, document_t, later, earlier, tokens, PACKED)
    dkey = tl.dot(pairs.to(key.dtype), tile(u, i, u_t, m, tokens, n), dkey, input_precision="tf32x3")
    out += share * part + ((row * t + start) * g + group) * n
    inside = (i < tokens)[:, None] & (m < n)[None, :]
    tl.store(out + i[:, None] * g * n + m[None, :], dkey.to(out.dtype.element_ty), inside)


@triton.jit
def _outside(dkey, key, value, S, steps, plane, BACK: tl.constexpr):
    """dkey and what of a row's y comes from the state, times value."""
    weight = tl.load(steps + (4 * plane if BACK else 3 * plane))[:, None]
    y = tl.dot(key, tl.trans(S), input_precision="tf32x3") * weight
    weight = weight * tl.load(steps)[:, None] if BACK else weight
    return tl.dot((value * weight).to(S.dtype), S, dkey, input_precision="tf32x3"), tl.sum(y * value, 1)


@triton.jit
def _across(met, i, j):
    """met (j, i) summed over j < t <= i, for each t."""
    return tl.sum(tl.where(j < i, tl.cumsum(met, 1, reverse=True), 0.0), 0)


# ---------------------------------------------------------------------------------------------------------------- steps
def _of_steps(A, document, steps, sums, inner, s: Sizes, fine: bool) -> tuple[Tensor, Tensor]:
    """ddt and dA, both float32."""
    ddt = torch.empty(s.b, s.t, s.h, dtype=torch.float32, device=A.device)
    dA = torch.empty(s.b * s.chunks, s.h, dtype=torch.float32, device=A.device)
    packed = document is not None
    _steps_kernel[(s.b * s.h * s.chunks,)](
        A, document if packed else A, *(document.stride() if packed else (0, 0)), steps, sums, inner, ddt, dA,
        s.t, s.h, s.chunks, steps[0].numel(), inner.shape[3], s.size, packed, fine, num_warps=1,
    )  # fmt: skip
    return ddt, dA.sum(0)


@triton.jit
def _steps_kernel(
    A, document, document_b, document_t, steps, sums, inner, ddt, dA, t, h, chunks, plane,
    PARTS: tl.constexpr, SIZE: tl.constexpr, PACKED: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    row, head, z = pid // chunks // h, pid // chunks % h, pid % chunks
    at = tl.arange(0, SIZE)
    i, cut = z * SIZE + at, pid * SIZE + at
    step, within, before = tl.load(steps + cut), tl.load(sums + cut), tl.load(sums + plane + cut)
    later, after = tl.load(sums + 2 * plane + cut), tl.load(sums + 3 * plane + cut)
    ends = before if FINE else before + within - step * later
    begins = tl.load(steps + cut - 1, at > 0, 0.0) * tl.load(sums + 3 * plane + cut - 1, at > 0, 0.0)  # up to t - 1
    begun, over = at < 0, at < 0
    if PACKED:
        document += row * document_b
        mine = tl.load(document + tl.minimum(i, t - 1) * document_t)
        begun = mine != tl.load(document + (tl.minimum(i, t - 1) - 1) * document_t, i > 0, 0)
        over = mine != tl.load(document + tl.minimum(i + 1, t - 1) * document_t)
    da = tl.sum(tl.load(inner + pid * PARTS + tl.arange(0, PARTS)), 0) + (within if FINE else 0.0)
    da += _sums(ends, over, True) + _sums(tl.where(begun, 0.0, begins), begun, False)
    da = tl.where(begun, 0.0, da)
    tl.store(ddt + (row * t + i) * h + head, later + after + tl.load(A + head).to(tl.float32) * da, i < t)
    tl.store(dA + (row * chunks + z) * h + head, tl.sum(step * da, 0))


@triton.jit
def _sums(v, fresh, BACK: tl.constexpr):
    """Running sums, from the right if BACK, each begun anew where it is fresh."""
    return tl.associative_scan((v, fresh.to(tl.int32)), 0, _add, reverse=BACK)[0]


@triton.jit
def _add(one, one_fresh, other, other_fresh):
    return tl.where(other_fresh > 0, other, one + other), one_fresh | other_fresh
