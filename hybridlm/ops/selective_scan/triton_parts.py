"""What the kernels of the selective scan are put together from.

Where a decay exp(dt A) is near 1, float32 leaves little of 1 - exp(dt A), which is what a long memory is made of; where
it is near 0, 1 + expm1(dt A) leaves little of the decay. FINE takes each in its place, and one number holds both, as
dt A <= 0: e > 0 is the decay, e <= 0 is the decay less 1, e = -1 where nothing is left. Where x has less than float32
(FINE is off), e is the decay: exp2 as a GPU has it is exact enough, and half the work.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

from hybridlm.ops.backend import INTERPRETING

INTERPRETED = tl.constexpr(INTERPRETING)


@triton.jit
def exp2(z):
    """2^z for z <= 0; on a GPU without the steps that numbers under 2^-126 would take."""
    if INTERPRETED:
        return tl.exp2(z)
    return libdevice.exp2(z)


@triton.jit
def fading(dt, A, begins, PACKED: tl.constexpr, FINE: tl.constexpr):
    """e of dt A, of A log2(e), and of 0 where a document begins. FINE: by the series of expm1 near 1."""
    z = dt * A
    e = exp2(z)
    if FINE:
        near = 0.6931471805599453 + z * (0.2402265069591007 + z * (0.05550410866482158 + z * 0.009618129107628477))
        e = tl.where(z > -0.09, z * near, tl.where(e == 0.0, -1.0, e))
    if PACKED:
        e = tl.where(begins, -1.0 if FINE else 0.0, e)
    return e


@triton.jit
def faded(h, e, FINE: tl.constexpr):
    """What is left of h."""
    return e * h + tl.where(e > 0.0, 0.0, h) if FINE else e * h


@triton.jit
def loaded(pointer, stride, tokens, keep, STEP: tl.constexpr):
    """Channels of STEP tokens one after the other, as a tuple; zeros from `tokens` on."""
    values = ()
    for i in tl.static_range(STEP):
        values = values + (tl.load(pointer + i * stride, keep & (i < tokens), 0.0).to(tl.float32),)  # noqa: RUF005
    return values


@triton.jit
def stored(pointer, stride, values, tokens, keep, STEP: tl.constexpr):
    """The other way round."""
    for i in tl.static_range(STEP):
        tl.store(pointer + i * stride, values[i].to(pointer.dtype.element_ty), keep & (i < tokens))


@triton.jit
def place(pid, d, segments, length, t, shares, WIDE: tl.constexpr):
    """The share of the states, the channels, the row, and the segment with its bounds that a program is for."""
    blocks = tl.cdiv(d, WIDE)
    share, block, rest = pid % shares, pid // shares % blocks, pid // shares // blocks
    segment, row = rest % segments, rest // segments
    first = segment * length
    return share, block * WIDE + tl.arange(0, WIDE), row, segment, first, tl.minimum(first + length, t)


@triton.jit
def begun(
    starts, ends, cell, m, n, d, keep, N: tl.constexpr, WIDE: tl.constexpr, FROM: tl.constexpr, LOOPS: tl.constexpr
):
    """What a walk begins with; more of it than a program holds at once lies where the walk's end will."""
    h = tl.zeros((N, WIDE), tl.float32)
    for loop in tl.static_range(LOOPS):
        both = (m + loop * N < n)[:, None] & keep
        if FROM:
            h = tl.load(starts + cell + loop * N * d, both, 0.0)
        if LOOPS > 1:
            tl.store(ends + cell + loop * N * d, h, both)
    return h


@triton.jit
def scaled(values, by, STEP: tl.constexpr):
    """Each of STEP values times another."""
    found = ()
    for i in tl.static_range(STEP):
        found = found + (values[i] * by,)  # noqa: RUF005
    return found


@triton.jit
def summed(total, broken, steps, begins, tokens, STEP: tl.constexpr, PACKED: tl.constexpr):
    """total and STEP steps; and whether a document began in one."""
    for i in tl.static_range(STEP):
        total += steps[i]
        if PACKED:
            broken = broken | (tl.load(begins + i, i < tokens, 0) != 0)
    return total, broken


@triton.jit
def through_step(
    h, a, steps, values, outs, B, C, begins, n, some, tokens,
    STEP: tl.constexpr, PACKED: tl.constexpr, READ: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    """STEP tokens on; outs, a tuple of as many, and what is read of these states."""
    found = ()
    for i in tl.static_range(STEP):
        begin = False
        if PACKED:
            begin = tl.load(begins + i, i < tokens, 0) != 0
        write = tl.load(B + i * n, some & (i < tokens), 0.0)
        e = fading(steps[i][None, :], a, begin, PACKED, FINE)
        h = faded(h, e, FINE) + (steps[i] * values[i])[None, :] * write[:, None]
        out = outs[i]
        if READ:
            out += tl.sum(tl.load(C + i * n, some & (i < tokens), 0.0)[:, None] * h, 0)
        found = found + (out,)  # noqa: RUF005
    return h, found


@triton.jit
def leave(ends, through, cell, both, h, total, a, broken, PACKED: tl.constexpr, LOCAL: tl.constexpr):
    """What a walk over a segment ends with; and if it was from zero, what would be left of what it started with."""
    tl.store(ends + cell, h, both)
    if LOCAL:
        fade = exp2(total[None, :] * a)
        if PACKED:
            fade = tl.where(broken, 0.0, fade)
        tl.store(through + cell, fade, both)
