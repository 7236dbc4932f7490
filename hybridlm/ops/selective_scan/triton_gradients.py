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

from hybridlm.ops.selective_scan.triton_parts import faded, fading, loaded, stored
from hybridlm.ops.selective_scan.triton_walk import Scan, _or, walk_back, walk_between, written

MARK = 8  # tokens of a tile
WIDE = 64  # channels of a tile, held by one warp
TILES = 8  # tiles that a program takes one after the other
SAVED = 256  # tokens between the states that the forward pass keeps
REGISTERS = 168  # of a thread: 12 warps then share a processor, and hide each other's waiting
MARKED = 2**29  # bytes of states between tiles that are held at once: time is taken part by part


def gradients(
    scan: Scan, saved: Tensor, dy: Tensor, dlast: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]:
    """saved (b, t / SAVED, n, d), dlast (b, n, d) -> dx, ddt (b, t, d), dA (n, d), dB, dC (b, t, n), dD (d), dstart."""
    dx, ddt = written(scan.x), torch.empty(scan.x.shape, device=scan.x.device)
    dB, dC, q = torch.empty_like(scan.B), torch.empty_like(scan.C), dlast
    dA, dD = torch.zeros_like(scan.A), scan.A.new_zeros(scan.A.shape[1])
    for part in reversed(parts(scan)):
        starts = saved[:, part.start // SAVED : triton.cdiv(part.stop, SAVED)].contiguous()
        given = dy[:, part], dx[:, part], ddt[:, part]
        dB[:, part], dC[:, part], part_dA, part_dD, q = _some(scan.tokens(part), starts, q, *given)
        dA, dD = dA + part_dA, dD + part_dD
    return dx, ddt, dA, dB, dC, None if scan.D is None else dD, q


def parts(scan: Scan) -> list[slice]:
    """As many tokens at a time as MARKED bytes of states allow, in multiples of SAVED."""
    b, t, d, n = scan.sizes
    most = max(1, MARKED * MARK // (4 * b * n * d * SAVED)) * SAVED
    size = triton.cdiv(triton.cdiv(t, triton.cdiv(t, most)), SAVED) * SAVED
    return [slice(first, min(first + size, t)) for first in range(0, t, size)]


def _some(scan: Scan, starts, dlast, dy, dx, ddt) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    (x, dt, A, B, C, D, begins), (b, t, d, n) = scan, scan.sizes
    tiles, blocks = triton.cdiv(t, MARK), triton.cdiv(d, WIDE)
    states = A.new_empty(b, tiles, n, d)
    adjoints = torch.empty_like(states)
    walk_between(scan, starts, SAVED, states, MARK)
    dstart = walk_back(scan, dy, dlast, adjoints, MARK)
    groups = triton.cdiv(tiles, TILES)
    B, C = by_state(B, tiles * MARK), by_state(C, tiles * MARK)
    dB, dC, dD = A.new_empty(blocks, *B.shape), A.new_empty(blocks, *B.shape), A.new_empty(b, groups, d)
    _gradient_kernel[(b * groups * blocks,)](
        x, *x.stride()[:2], dt, *dt.stride()[:2], dy, *dy.stride()[:2], A, B, C, _or(D, A), _or(begins, A),
        states, adjoints, dx, *dx.stride()[:2], ddt, *ddt.stride()[:2], dB, dC, dD,
        b, t, d, n, tiles, groups, MARK, WIDE, TILES, begins is not None, D is not None, scan.fine,
        num_warps=1, maxnreg=REGISTERS,
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
    FINE: tl.constexpr,
):  # fmt: skip
    pid, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(d, WIDE)
    block, group, row = pid % blocks, pid // blocks % groups, pid // blocks // groups
    col = block * WIDE + tl.arange(0, WIDE)
    keep, product, skip = col < d, tl.zeros((WIDE,), tl.float32), tl.zeros((WIDE,), tl.float32)
    if SKIP:
        skip = tl.load(D + col, keep, 0.0).to(tl.float32)
    x, dt, dy, begins = x + row * x_b + col, dt + row * dt_b + col, dy + row * dy_b + col, begins + row * t
    dx, ddt = dx + row * dx_b + col, ddt + row * ddt_b + col
    for tile in range(group * TILES, tl.minimum(group * TILES + TILES, tiles)):
        first, left = tile * MARK, t - tile * MARK
        steps, us = loaded(dt + first * dt_t, dt_t, left, keep, MARK), ()
        slopes, values = (
            loaded(dy + first * dy_t, dy_t, left, keep, MARK),
            loaded(x + first * x_t, x_t, left, keep, MARK),
        )
        for i in tl.static_range(MARK):
            us = us + (steps[i] * values[i],)  # noqa: RUF005
        at, cell = row * n * tiles * MARK + first, (row * tiles + tile) * n * d + col
        part = block * b * n * tiles * MARK + at
        du, dz = through_tile(
            steps, us, slopes, A + col, B + at, C + at, begins + first, states + cell, adjoints + cell,
            dB + part, dC + part, n, tiles * MARK, d, left, keep, MARK, PACKED, FINE,
        )  # fmt: skip
        values, dxs, ddts = loaded(x + first * x_t, x_t, left, keep, MARK), (), ()  # once more: registers are scarce
        for i in tl.static_range(MARK):
            dxs = dxs + (steps[i] * du[i] + skip * slopes[i],)  # noqa: RUF005
            ddts = ddts + (values[i] * du[i] + dz[i] * 0.6931471805599453,)  # noqa: RUF005
            product += values[i] * slopes[i]
        stored(dx + first * dx_t, dx_t, dxs, left, keep, MARK)
        stored(ddt + first * ddt_t, ddt_t, ddts, left, keep, MARK)
    tl.store(dD + (row * groups + group) * d + col, product, keep)


@triton.jit
def through_tile(
    steps, us, slopes, A, B, C, begins, states, adjoints, dB, dC, n, t, d, left, keep,
    MARK: tl.constexpr, PACKED: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """du and dz = sum_n d(dt A) A of a tile; dB, dC are written, and dA of the tile in place of its adjoints."""
    du, dz = nothing(steps[0], MARK), nothing(steps[0], MARK)
    next_a, next_h, next_q = tl.load(A, keep, 0.0), tl.load(states, keep, 0.0), tl.load(adjoints, keep, 0.0)
    for m in range(n):
        a, h, q = next_a, next_h, next_q
        more = keep & (m + 1 < n)  # what the next state starts from is under way while this one is worked on
        next_a = tl.load(A + (m + 1) * d, more, 0.0)
        next_h, next_q = tl.load(states + (m + 1) * d, more, 0.0), tl.load(adjoints + (m + 1) * d, more, 0.0)
        writes, reads = scalars(B + m * t, MARK), scalars(C + m * t, MARK)
        fades, before = (), ()
        for i in tl.static_range(MARK):
            begin = False
            if PACKED:
                begin = tl.load(begins + i, i < left, 0) != 0
            e = fading(steps[i], a, begin, PACKED, FINE)
            fades, before = fades + (e,), before + (h,)  # noqa: RUF005
            h = faded(h, e, FINE) + us[i] * writes[i]
            tl.store(dC + m * t + i, tl.sum(h * slopes[i], 0))
        dA, new_du, new_dz = tl.zeros_like(h), (), ()
        for i in tl.static_range(MARK - 1, -1, -1):
            g = q + reads[i] * slopes[i]
            q = faded(g, fades[i], FINE)
            tl.store(dB + m * t + i, tl.sum(us[i] * g, 0))
            rate = q * before[i]
            dA += rate * steps[i]
            new_du, new_dz = (du[i] + writes[i] * g,) + new_du, (dz[i] + rate * a,) + new_dz  # noqa: RUF005
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


@triton.jit
def scalars(pointer, COUNT: tl.constexpr):
    """COUNT numbers side by side, as a tuple."""
    values = ()
    for i in tl.static_range(COUNT):
        values = values + (tl.load(pointer + i),)  # noqa: RUF005
    return values
