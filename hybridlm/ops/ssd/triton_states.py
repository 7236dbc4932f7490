"""Kernels of SSD that forward and backward share: decays inside a chunk, and the state or its adjoint between chunks.

The rows of `steps` (5, b, h, chunks * size), float32, with a_t = log2(e) dt_t A and sums inside a chunk only:
    0 dt     1, 2 a_1 + ... + a_i, its upper and its lower digits
    3 since  exp2(a_1 + ... + a_i), what is left at i of the state before the chunk; 0 where a document began since
    4 until  exp2(a_{j+1} + ... + a_c), what is left at the chunk's end of what j wrote; 0 where a document began since
Tokens past the end have dt = 0 and belong to the last document.

Sizes and strides of a model are constants of the kernels: addresses then take few registers, and little spills.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tuning(NamedTuple):
    """How the kernels are cut; changes speed, not results. Tuples are (warps, stages) and, if limited, registers.

    segments: of a row, which are rows themselves to the kernels. chunk: tokens that are computed as attention.
    fused: one walk computes y, and stores no states; fused_back: another dx, and stores the state's gradients.
    width: columns of the state in one program of a walk. heads, back_heads: how many one program computes in turn, that
    share C B^T. fine: decays to the last digit of float32.
    """

    chunk: int = 64
    fused: bool = False
    fused_back: bool = False
    scan: tuple[int, ...] = (4, 2)
    width: int = 128
    walk: tuple[int, ...] = (4, 3)
    heads: int = 32
    read: tuple[int, ...] = (4, 3)
    back_heads: int = 32
    meet: tuple[int, ...] = (4, 3)
    fine: bool = False
    segments: int = 1


def launched(how: tuple[int, ...]) -> dict[str, int]:
    """How a kernel is launched."""
    return dict(zip(("num_warps", "num_stages", "maxnreg"), how, strict=False))


class Sizes(NamedTuple):
    """b rows of t tokens, h heads of width p, g groups of state size n, cut into chunks of `size` tokens."""

    b: int
    t: int
    h: int
    p: int
    g: int
    n: int
    size: int

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.t, self.size)

    @property
    def padded(self) -> tuple[int, int]:
        """p and n as widths of a matrix product."""
        return tuple(max(16, triton.next_power_of_2(width)) for width in (self.p, self.n))


def tuning(x: Tensor, B: Tensor) -> Tuning:
    """How calls of this dtype and size are cut."""
    b, t, h, p = x.shape
    g, n = B.shape[2:]
    segments = _segments(b * h, t)
    return _of_rows(x.dtype, b * segments, t // segments, h, p, g, n)._replace(segments=segments)


def _of_rows(dtype: torch.dtype, b: int, t: int, h: int, p: int, g: int, n: int) -> Tuning:
    if dtype == torch.float32:
        return Tuning(64, False, False, (4, 1), 64, (4, 1), 4, (4, 1), 4, (4, 1), fine=True)
    if p * n > 64 * 128:
        return Tuning(64, False, False, (4, 1), 64, (4, 2), 4, (4, 1), 4, (8, 1))
    heads = _heads(b * triton.cdiv(t, 64) * g, h // g)
    width = next((w for w in (128, 64) if b * h * n >= MANY * w), 32)
    return Tuning(fused=b * h >= MANY, fused_back=b * h >= MANY, width=width, heads=heads, back_heads=heads)


MANY = 200  # programs that keep a GPU busy


SHORTEST = 1024  # tokens that are worth a segment


def _segments(walks: int, t: int) -> int:
    """As many as fill a GPU with walks, down to segments of a thousand tokens."""
    segments = 1
    while walks * segments < MANY and t % (2 * segments) == 0 and t // (2 * segments) >= SHORTEST:
        segments *= 2
    return segments


def _heads(chunks: int, r: int) -> int:
    """As many heads a program as leave enough programs."""
    return next((heads for heads in (32, 16, 8, 4) if heads <= r and chunks * triton.cdiv(r, heads) >= MANY), min(r, 4))


def sizes(x: Tensor, B: Tensor, size: int) -> Sizes:
    b, t, h, p = x.shape
    return Sizes(b, t, h, p, *B.shape[2:], size)


def rows_of(v: Tensor) -> tuple[Tensor, int, int, int]:
    """v (b, t, heads, width) whose last dimension is dense, and its strides before that."""
    v = v if v.stride(3) == 1 else v.contiguous()
    return v, *v.stride()[:3]


# ---------------------------------------------------------------------------------------------------------------- steps
def steps(dt: Tensor, A: Tensor, document: Tensor | None, s: Sizes) -> Tensor:
    """dt (b, t, h) and A (h,) -> (5, b, h, chunks * size), see above."""
    out = torch.empty(5, s.b, s.h, s.chunks * s.size, dtype=torch.float32, device=dt.device)
    heads = min(16, triton.next_power_of_2(s.h))
    packed = document is not None
    document = document if packed else dt
    grid = (s.b * s.chunks, triton.cdiv(s.h, heads))
    strides = (*dt.stride(), *document.stride()[:2])
    _steps[grid](dt, A, document, out, s.t, s.h, s.chunks, out[0].numel(), *strides, s.size, heads, packed, num_warps=4)
    return out


@triton.jit
def _steps(
    dt, A, document, out, t, h, chunks, plane, dt_b, dt_t, dt_h, document_b, document_t,
    SIZE: tl.constexpr, HEADS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    row, z = tl.program_id(0).to(tl.int64) // chunks, tl.program_id(0).to(tl.int64) % chunks
    at, head = z * SIZE + tl.arange(0, SIZE), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    there = (at < t)[:, None] & (head < h)[None, :]
    step = tl.load(dt + row * dt_b + at[:, None] * dt_t + head[None, :] * dt_h, there, 0.0).to(tl.float32)
    rate = tl.load(A + head, head < h, 0.0).to(tl.float32)
    decay = tl.maximum(step * rate[None, :], -104.0).to(
        tl.float64
    )  # exp(-104) is zero; more would cost the sums digits
    decay = decay * 1.4426950216293335 + decay * 1.9259629911266175e-08  # log2(e), in two numbers that float32 holds
    sums, total = tl.cumsum(decay, 0), tl.sum(decay, 0)
    since, until = tl.exp2(sums.to(tl.float32)), tl.exp2((total[None, :] - sums).to(tl.float32))
    if PACKED:
        document += row * document_b
        mine = tl.load(document + tl.minimum(at, t - 1) * document_t)[:, None]
        first = tl.load(document + (z * SIZE - 1) * document_t, z > 0, 0)
        last = tl.load(document + (tl.minimum(z * SIZE + SIZE, t) - 1) * document_t)
        since, until = tl.where(mine == first, since, 0.0), tl.where(mine == last, until, 0.0)
    upper = sums.to(tl.float32)
    out += (row * h + head[None, :]) * chunks * SIZE + at[:, None]
    there = (at >= 0)[:, None] & (head < h)[None, :]
    tl.store(out, step, there)
    tl.store(out + plane, upper, there)
    tl.store(out + 2 * plane, (sums - upper.to(tl.float64)).to(tl.float32), there)
    tl.store(out + 3 * plane, since, there)
    tl.store(out + 4 * plane, until, there)


@triton.jit
def decay_mask(steps, plane, i, j, FINE: tl.constexpr):
    """exp2(a_{j+1} + ... + a_i), and 1 for i < j: as rows and columns or the reverse. steps: of this head and chunk."""
    between = tl.load(steps + plane + i) - tl.load(steps + plane + j)
    if FINE:
        between += tl.load(steps + 2 * plane + i) - tl.load(steps + 2 * plane + j)
    return tl.exp2(tl.minimum(between, 0.0))


@triton.jit
def visible(v, document, document_t, i, j, tokens, PACKED: tl.constexpr):
    """v where place i of a chunk sees place j, that is j <= i in the same document, and 0 elsewhere. document: at the
    chunk's first token."""
    sees = i >= j
    if PACKED:
        mine = tl.load(document + tl.minimum(i, tokens - 1) * document_t)
        sees = sees & (mine == tl.load(document + tl.minimum(j, tokens - 1) * document_t))
    return tl.where(sees, v, 0.0)


@triton.jit
def place(chunks, g: tl.constexpr, r: tl.constexpr, HEADS: tl.constexpr):
    """What a program computes: (row, chunk, group, share of its heads, the first of them and their end)."""
    pid, shares = tl.program_id(0).to(tl.int64), tl.cdiv(r, HEADS)
    share, pid = pid % shares, pid // shares
    group, pid = pid % g, pid // g
    first = group * r + share * HEADS
    return pid // chunks, pid % chunks, group, share, first, tl.minimum(first + HEADS, group * r + r)


@triton.jit
def tile(v, at, stride: tl.constexpr, wide, tokens, width: tl.constexpr):
    """v[at, wide], 0 past the chunk's tokens and past the width."""
    return tl.load(v + at[:, None] * stride + wide[None, :], (at < tokens)[:, None] & (wide < width)[None, :], 0.0)


@triton.jit
def turned(v, at, stride: tl.constexpr, wide, tokens, width: tl.constexpr):
    """The transpose of `tile`, read so from memory."""
    return tl.load(v + at[None, :] * stride + wide[:, None], (at < tokens)[None, :] & (wide < width)[:, None], 0.0)


# ----------------------------------------------------------------------------------------------------------------- walk
def states(x, B, steps, initial, s: Sizes, tuning: Tuning) -> tuple[Tensor, Tensor]:
    """The state before each chunk (b, h, chunks, p, n) in the dtype of x, and after the last (b, h, p, n), float32."""
    before, last, _ = _walk(x, B, steps, initial, None, s, tuning)
    return before, last


def adjoints(dy, C, steps, final, before, s: Sizes, tuning: Tuning) -> tuple[Tensor, Tensor, Tensor]:
    """From the right: the state's gradient after each chunk, that of the initial state, and (b, h, chunks, any),
    which sum to <what is left of the state before the chunk, gradient after it>."""
    return _walk(dy, C, steps, final, before, s, tuning)


def end(v, k, steps, back: bool, s: Sizes, tuning: Tuning) -> Tensor:
    """What is added to the state on the way, or back to its gradient: (b, h, p, n), float32."""
    return _walk(v, k, steps, None, None, s, tuning, kept=False, back=back)[1]


def _walk(
    v, k, steps, initial, other, s: Sizes, tuning: Tuning, *, kept: bool = True, back: bool | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """kept: the state before each chunk is stored, and what `adjoints` gives is summed."""
    back, given = other is not None if back is None else back, initial is not None
    P, N = s.padded
    width = min(N, tuning.width)
    tiles = N // width
    last = torch.empty(s.b, s.h, s.p, s.n, dtype=torch.float32, device=v.device)
    stored = v.new_empty(s.b, s.h, s.chunks, s.p, s.n) if kept else last
    inner = last.new_empty(s.b, s.h, s.chunks, tiles * P) if back and kept else last
    _walk_kernel[(s.b * s.h * tiles,)](
        *rows_of(v), *rows_of(k), steps, initial if given else last, other if back and kept else stored, stored, last,
        inner, s.t, s.h, s.p, s.n, s.h // s.g, s.chunks, steps[0].numel(),
        s.size, P, width, tiles, given, back, kept, **launched(tuning.walk),
    )  # fmt: skip
    return stored, last, inner


@triton.jit
def _walk_kernel(
    v, v_b, v_t: tl.constexpr, v_h: tl.constexpr, k, k_b, k_t: tl.constexpr, k_g: tl.constexpr,
    steps, initial, other, stored, last, inner, t, h: tl.constexpr, p: tl.constexpr, n: tl.constexpr, r: tl.constexpr,
    chunks, plane, SIZE: tl.constexpr, P: tl.constexpr, N: tl.constexpr, TILES: tl.constexpr,
    GIVEN: tl.constexpr, BACK: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    head, part = pid // TILES, pid % TILES  # of all rows
    v += (head // h) * v_b + (head % h) * v_h
    k += (head // h) * k_b + (head % h) // r * k_g
    i, j = tl.arange(0, P)[:, None], part * N + tl.arange(0, N)[None, :]
    inside, spot = (i < p) & (j < n), i * n + j
    steps += head * chunks * SIZE
    S = tl.zeros((P, N), tl.float32)
    if GIVEN:
        S = tl.load(initial + head * p * n + spot, inside, 0.0)
    if BACK and KEPT:
        held = tl.load(other + (head * chunks + chunks - 1) * p * n + spot, inside, 0.0)
    for at in range(head * chunks, head * chunks + chunks):  # in 64 bits, as head is
        z = head * chunks + chunks - 1 - at if BACK else at - head * chunks
        place = (head * chunks + z) * p * n + spot
        if KEPT:
            tl.store(stored + place, S.to(stored.dtype.element_ty), inside)
        through = tl.load(steps + 3 * plane + z * SIZE + SIZE - 1)
        if BACK and KEPT:
            met = tl.sum(S * held, 1) * through
            tl.store(inner + ((head * chunks + z) * TILES + part) * P + tl.arange(0, P), met)
            held = tl.load(other + place - p * n, inside & (z > 0), 0.0)  # for the next round, which waits less
        S = _add_chunk(S * through, v, v_t, k, k_t, steps + z * SIZE, plane, i, j, z * SIZE, t, p, n, SIZE, BACK)
    tl.store(last + head * p * n + spot, S, inside)


@triton.jit
def _add_chunk(
    S, v, v_t: tl.constexpr, k, k_t: tl.constexpr, steps, plane, i, j, start, t, p: tl.constexpr, n: tl.constexpr,
    SIZE: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """S + sum over a chunk of weight v k^T, the weight being `until dt` of a state and `since` of its adjoint."""
    at = tl.arange(0, SIZE)
    weight = tl.load(steps + (3 * plane if BACK else 4 * plane) + at)
    if not BACK:
        weight *= tl.load(steps + at)
    there = start + at < t
    v = tl.load(v + start * v_t + at[None, :] * v_t + i, there[None, :] & (i < p), 0.0)
    k = tl.load(k + start * k_t + at[:, None] * k_t + j, there[:, None] & (j < n), 0.0)
    return tl.dot((v * weight[None, :]).to(k.dtype), k, S, input_precision="tf32x3")
