"""Gradients of the selective scan in Triton.

States before, and adjoints after, every MARK tokens come from walks (triton_walk.py). Between them, all tiles at once:
for one state after the other, h is run forward through the tile and its adjoint G back, all in registers.

    h_t = exp(dt_t A) h_{t-1} + u_t B_t,  u_t = dt_t x_t        G_t = C_t dy_t + q_{t+1},  q_t = exp(dt_t A) G_t
    dB_t = sum_d u_t G_t,  dC_t = sum_d h_t dy_t,  du_t = sum_n B_t G_t,  d(dt_t A) = q_t h_{t-1}

Sums over channels, tokens and rows go by partial sums in a fixed order: the same call gives the same bits.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.selective_scan.triton_walk import Scan, _or, growth, loaded, walk, walk_back, written

MARK = 8  # tokens of a tile
WIDE = 64  # channels of a tile, held by one warp
TILES = 8  # tiles that a program takes one after the other
MARKED = 2**29  # bytes of states between tiles that are held at once: more channels are taken part by part


def gradients(
    scan: Scan, start: Tensor | None, dy: Tensor, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """start, dlast (b, n, d) -> dx, ddt (b, t, d), dA (n, d), dB, dC (b, t, n), dD (d), dstart (b, n, d)."""
    dx, ddt = written(scan.x), torch.empty(scan.x.shape, device=scan.x.device)
    dB, dC, rest = 0, 0, []
    for part in parts(scan):
        given = (None if v is None else v[..., part].contiguous() for v in (start, dlast))
        part_dB, part_dC, *more = _some(scan.channels(part), *given, dy[..., part], dx[..., part], ddt[..., part])
        dB, dC, rest = dB + part_dB, dC + part_dC, [*rest, more]
    dA, dD, dstart = (torch.cat(part, dim=-1) for part in zip(*rest, strict=True))
    return dx, ddt, dA, dB, dC, None if scan.D is None else dD, dstart


def parts(scan: Scan) -> list[slice]:
    """As many channels at a time as MARKED bytes of states allow, in multiples of WIDE."""
    b, t, d, n = scan.sizes
    size = max(1, MARKED // (4 * b * n * triton.cdiv(t, MARK) * WIDE)) * WIDE
    count = triton.cdiv(d, size)
    size = triton.cdiv(triton.cdiv(d, count), WIDE) * WIDE
    return [slice(first, min(first + size, d)) for first in range(0, d, size)]


def _some(scan: Scan, start, dlast, dy, dx, ddt) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (x, dt, A, B, C, D, begins), (b, t, d, n) = scan, scan.sizes
    tiles, blocks = triton.cdiv(t, MARK), triton.cdiv(d, WIDE)
    states = A.new_empty(b, tiles, n, d)
    adjoints = torch.empty_like(states)
    walk(scan, start, None, states, MARK)
    dstart = walk_back(scan, dy, dlast, adjoints, MARK)
    groups = triton.cdiv(tiles, TILES)
    B, C = by_state(B, tiles * MARK), by_state(C, tiles * MARK)
    dB, dC, dD = A.new_empty(blocks, *B.shape), A.new_empty(blocks, *B.shape), A.new_empty(b, groups, d)
    _gradient_kernel[(b * groups * blocks,)](
        x, *x.stride()[:2], dt, *dt.stride()[:2], dy, *dy.stride()[:2], A, B, C, _or(D, A), _or(begins, A),
        states, adjoints, dx, *dx.stride()[:2], ddt, *ddt.stride()[:2], dB, dC, dD,
        b, t, d, n, tiles, groups, MARK, WIDE, TILES, begins is not None, D is not None, num_warps=1,
    )  # fmt: skip
    dB, dC = (v.sum(0)[..., :t].transpose(1, 2) for v in (dB, dC))
    return dB, dC, adjoints.sum((0, 1)), dD.sum((0, 1)), dstart


def by_state(v: Tensor, tokens: int) -> Tensor:
    """(b, t, n) -> (b, n, tokens), filled up with zeros: a state's tokens lie side by side."""
    return F.pad(v.transpose(1, 2), (0, tokens - v.shape[1])).contiguous()


@triton.jit
def _gradient_kernel(
    x, x_b, x_t, dt, dt_b, dt_t, dy, dy_b, dy_t, A, B, C, D, begins, states, adjoints,
    dx, dx_b, dx_t, ddt, ddt_b, ddt_t, dB, dC, dD, b, t, d, n, tiles, groups,
    MARK: tl.constexpr, WIDE: tl.constexpr, TILES: tl.constexpr, PACKED: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    pid, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(d, WIDE)
    block, group, row = pid % blocks, pid // blocks % groups, pid // blocks // groups
    col = block * WIDE + tl.arange(0, WIDE)
    keep, product = col < d, tl.zeros((WIDE,), tl.float32)
    skip = tl.zeros((WIDE,), tl.float32)
    if SKIP:
        skip = tl.load(D + col, keep, 0.0).to(tl.float32)
    for tile in range(group * TILES, tl.minimum(group * TILES + TILES, tiles)):
        first = tile * MARK
        left = t - first
        steps = loaded(dt + row * dt_b + first * dt_t + col, dt_t, left, keep, MARK)
        values = loaded(x + row * x_b + first * x_t + col, x_t, left, keep, MARK)
        slopes = loaded(dy + row * dy_b + first * dy_t + col, dy_t, left, keep, MARK)
        at, cell = row * n * tiles * MARK + first, (row * tiles + tile) * n * d + col
        part = block * b * n * tiles * MARK + at
        du, dz = through_tile(
            steps, values, slopes, A + col, B + at, C + at, begins + row * t + first, states + cell, adjoints + cell,
            dB + part, dC + part, n, tiles * MARK, d, left, keep, MARK, PACKED,
        )  # fmt: skip
        for i in tl.static_range(MARK):
            inside = keep & (i < left)
            slope = steps[i] * du[i] + skip * slopes[i]
            tl.store(dx + row * dx_b + (first + i) * dx_t + col, slope.to(dx.dtype.element_ty), inside)
            slope = values[i] * du[i] + dz[i] * 0.6931471805599453
            tl.store(ddt + row * ddt_b + (first + i) * ddt_t + col, slope, inside)
            product += values[i] * slopes[i]
    tl.store(dD + (row * groups + group) * d + col, product, keep)


@triton.jit
def through_tile(
    steps, values, slopes, A, B, C, begins, states, adjoints, dB, dC, n, t, d, left, keep,
    MARK: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """du and dz = sum_n d(dt A) A of a tile; dB, dC are written, and dA of the tile in place of its adjoints."""
    du, dz = nothing(steps[0], MARK), nothing(steps[0], MARK)
    for m in range(n):
        a = tl.load(A + m * d, keep, 0.0)
        h, q = tl.load(states + m * d, keep, 0.0), tl.load(adjoints + m * d, keep, 0.0)
        dA, growths, before = tl.zeros_like(h), (), ()
        for i in tl.static_range(MARK):
            begin = False
            if PACKED:
                begin = tl.load(begins + i, i < left, 0) != 0
            e, write = growth(steps[i], a, begin, PACKED), tl.load(B + m * t + i)
            growths, before = growths + (e,), before + (h,)  # noqa: RUF005
            h = (h + e * h) + (steps[i] * values[i]) * write
            tl.store(dC + m * t + i, tl.sum(h * slopes[i], 0))
        new_du, new_dz = (), ()
        for i in tl.static_range(MARK - 1, -1, -1):
            write, read = tl.load(B + m * t + i), tl.load(C + m * t + i)
            g = q + read * slopes[i]
            q = g + growths[i] * g
            tl.store(dB + m * t + i, tl.sum((steps[i] * values[i]) * g, 0))
            rate = q * before[i]
            dA += rate * steps[i]
            new_du, new_dz = (du[i] + write * g,) + new_du, (dz[i] + rate * a,) + new_dz  # noqa: RUF005
        du, dz = new_du, new_dz
        tl.store(adjoints + m * d, dA, keep)
    return du, dz


@triton.jit
def nothing(like, COUNT: tl.constexpr):
    """COUNT zeros."""
    values = ()
    for _ in tl.static_range(COUNT):
        values = values + (tl.zeros_like(like),)  # noqa: RUF005
    return values
