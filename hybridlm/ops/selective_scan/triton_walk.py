"""Walks along time in Triton: states from left to right, their adjoints from right to left.

Each thread holds the states of a few channels. Every MARK tokens a walk may leave what it holds, for the gradients.
Where channels and rows are too few for a GPU, time is cut into segments: each is walked from zero, what it leaves is
passed on from segment to segment, and each is walked again from what it should have started with.

A decay is exp(dt A) = 1 + e with e = expm1(dt A), e = -1 where a document begins: near 1, exp in float32 would leave
little of 1 - exp(dt A), which is what a long memory is made of. Where x has less than float32 (FINE is off), exp2 as a
GPU has it is exact enough, and half the work.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from hybridlm.ops.backend import INTERPRETING

LOG2E = 1.4426950408889634
STEP = 4  # tokens that are loaded at once
THREADS = 2**16  # threads that keep a GPU busy: fewer are made more by cutting time
SHORTEST = 64  # tokens of a segment

INTERPRETED = tl.constexpr(INTERPRETING)


class Scan(NamedTuple):
    """What a scan is made of: x, dt (b, t, d), A (n, d) log2(e) times A, B, C (b, t, n), D (d), begins (b, t) bytes.

    x, dt have strides of their own, 1 for channels; A is float32, as are B and C, which are contiguous.
    """

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    begins: Tensor | None

    def tokens(self, part: slice) -> "Scan":
        """The scan of some tokens."""
        small = (None if v is None else v[:, part].contiguous() for v in (self.B, self.C, self.begins))
        B, C, begins = small
        return self._replace(x=self.x[:, part], dt=self.dt[:, part], B=B, C=C, begins=begins)

    @property
    def fine(self) -> bool:
        """Whether decays are computed to the last digit."""
        return self.x.dtype == torch.float32

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """b, t, d, n."""
        return *self.x.shape, len(self.A)


def written(like: Tensor) -> Tensor:
    """Memory for what a kernel gives in the dtype of x; Triton's interpreter would cut bf16 off, where a GPU rounds."""
    return torch.empty(like.shape, dtype=torch.float32 if INTERPRETING else like.dtype, device=like.device)


def geometry(n: int) -> tuple[int, int, int]:
    """(n filled up to a power of two, channels of a program, warps): 16 states a thread."""
    padded = max(2, triton.next_power_of_2(n))
    return padded, max(32, 64 * 16 // padded), 2 if padded <= 16 else padded // 16 * max(1, 32 // padded)


def cut(scan: Scan, mark: int) -> tuple[int, int]:
    """(segments, tokens of each), in multiples of `mark`."""
    b, t, d, n = scan.sizes
    _, wide, warps = geometry(n)
    threads = 32 * warps * b * triton.cdiv(d, wide)
    length = max(SHORTEST, triton.cdiv(t * threads, THREADS))
    length = triton.cdiv(min(length, t), mark) * mark
    return triton.cdiv(t, length), length


def walk(scan: Scan, start: Tensor | None, y: Tensor, marks: Tensor, mark: int) -> Tensor:
    """From the state before the first token, (b, n, d) or None for zero, to the one after the last.

    y (b, t, d) and marks (b, tiles, n, d), the states before every `mark` tokens, are written.
    """
    segments, length = cut(scan, mark)
    starts = start
    if segments > 1:
        starts = _pass_on(start, *_walk(scan, None, None, None, mark, segments, length), backwards=False)
    return _walk(scan, starts, y, marks, mark, segments, length)[0][:, -1]


def walk_between(scan: Scan, starts: Tensor, length: int, marks: Tensor, mark: int) -> None:
    """From states that are known every `length` tokens, (b, segments, n, d), to those every `mark`."""
    _walk(scan, starts, None, marks, mark, starts.shape[1], length)


def walk_back(scan: Scan, dy: Tensor, start: Tensor | None, marks: Tensor, mark: int) -> Tensor:
    """The adjoint of the state after the last token, (b, n, d) or None for zero, to that of the one before the first.

    marks (b, tiles, n, d): the adjoints of the states after every `mark` tokens, which are written.
    """
    segments, length = cut(scan, mark)
    starts = start
    if segments > 1:
        starts = _pass_on(start, *_walk_back(scan, dy, None, None, mark, segments, length), backwards=True)
    return _walk_back(scan, dy, starts, marks, mark, segments, length)[0][:, 0].contiguous()


def _walk(scan, starts, y, marks, mark, segments, length) -> tuple[Tensor, Tensor]:
    (x, dt, A, B, C, D, begins), (b, t, d, n) = scan, scan.sizes
    padded, wide, warps = geometry(n)
    ends = A.new_empty(b, segments, n, d)
    through = torch.empty_like(ends) if marks is None else ends
    _walk_kernel[(b * segments * triton.cdiv(d, wide),)](
        x, *x.stride()[:2], dt, *dt.stride()[:2], A, B, C, _or(D, A), _or(begins, A), _or(starts, A), _or(y, A),
        *((0, 0) if y is None else y.stride()[:2]), _or(marks, A), ends, through,
        t, d, n, 0, segments, length, padded, wide, STEP, mark,
        begins is not None, starts is not None, y is not None, marks is not None, D is not None, scan.fine,
        num_warps=warps,
    )  # fmt: skip
    return ends, through


def _walk_back(scan, dy, starts, marks, mark, segments, length) -> tuple[Tensor, Tensor]:
    (_, dt, A, _, C, _, begins), (b, t, d, n) = scan, scan.sizes
    padded, wide, warps = geometry(n)
    ends = A.new_empty(b, segments, n, d)
    through = torch.empty_like(ends) if marks is None else ends
    _walk_back_kernel[(b * segments * triton.cdiv(d, wide),)](
        dy, *dy.stride()[:2], dt, *dt.stride()[:2], A, C, _or(begins, A), _or(starts, A), _or(marks, A), ends, through,
        t, d, n, 0, segments, length, padded, wide, STEP, mark,
        begins is not None, starts is not None, marks is not None, scan.fine,
        num_warps=warps,
    )  # fmt: skip
    return ends, through


def _pass_on(start: Tensor | None, ends: Tensor, through: Tensor, backwards: bool) -> Tensor:
    """What every segment starts with: that of the one before it, through it, and what it leaves by itself."""
    starts, (b, segments, *plane) = torch.empty_like(ends), ends.shape
    size = plane[0] * plane[1]
    _pass_on_kernel[(b * triton.cdiv(size, 256),)](
        _or(start, ends), ends, through, starts, segments, size, 256, start is not None, backwards, num_warps=2
    )
    return starts


def _or(x: Tensor | None, instead: Tensor) -> Tensor:
    """A pointer that is there, for a kernel that will not read it."""
    return instead if x is None else x


# ------------------------------------------------------------------------------------------------------------- kernels
@triton.jit
def exp2(z):
    """2^z for z <= 0; on a GPU without the steps that numbers under 2^-126 would take."""
    if INTERPRETED:
        return tl.exp2(z)
    return libdevice.exp2(z)


@triton.jit
def fading(dt, A, begins, PACKED: tl.constexpr, FINE: tl.constexpr):
    """exp(dt A) of A log2(e), 0 where a document begins. FINE: less 1, and by its series near 0."""
    z = dt * A
    e = exp2(z)
    if FINE:
        near = 0.6931471805599453 + z * (0.2402265069591007 + z * (0.05550410866482158 + z * 0.009618129107628477))
        e = tl.where(z > -0.09, z * near, e - 1.0)
    if PACKED:
        e = tl.where(begins, -1.0 if FINE else 0.0, e)
    return e


@triton.jit
def faded(h, e, FINE: tl.constexpr):
    """What is left of h."""
    return h + e * h if FINE else e * h


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
def place(pid, d, segments, length, t, WIDE: tl.constexpr):
    """The channels, the row, the segment and its bounds that a program is for."""
    blocks = tl.cdiv(d, WIDE)
    block, segment, row = pid % blocks, pid // blocks % segments, pid // blocks // segments
    first = segment * length
    return block * WIDE + tl.arange(0, WIDE), row, segment, first, tl.minimum(first + length, t)


@triton.jit(do_not_specialize=["zero"])
def _walk_kernel(
    x, x_b, x_t, dt, dt_b, dt_t, A, B, C, D, begins, starts, y, y_b, y_t, marks, ends, through,
    t, d, n, zero, segments, length, N: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr, MARK: tl.constexpr,
    PACKED: tl.constexpr, FROM: tl.constexpr, READ: tl.constexpr, MARKS: tl.constexpr, SKIP: tl.constexpr,
    FINE: tl.constexpr,
):  # fmt: skip
    col, row, segment, first, last = place(tl.program_id(0).to(tl.int64), d, segments, length, t, WIDE)
    m = tl.arange(0, N)
    keep, some = col < d, m < n
    cell, both = m[:, None] * d + col[None, :] + zero, some[:, None] & keep[None, :]  # zero: no vectors of channels
    a = tl.load(A + cell, both, 0.0)
    h = tl.zeros((N, WIDE), tl.float32)
    if FROM:
        h = tl.load(starts + (row * segments + segment) * n * d + cell, both, 0.0)
    total, broken = tl.zeros((WIDE,), tl.float32), segment < 0
    if SKIP:
        skip = tl.load(D + col, keep, 0.0).to(tl.float32)
    x, dt, y = (
        x + row * x_b + first * x_t + col,
        dt + row * dt_b + first * dt_t + col,
        y + row * y_b + first * y_t + col,
    )
    B, C, begins = B + (row * t + first) * n + m, C + (row * t + first) * n + m, begins + row * t + first
    marks += (row * tl.cdiv(t, MARK) + first // MARK) * n * d
    for start in range(0, last - first, STEP):
        if MARKS and start % MARK == 0:
            tl.store(marks + (start // MARK) * n * d + cell, h, both)
        left = last - first - start
        steps, values = loaded(dt, dt_t, left, keep, STEP), loaded(x, x_t, left, keep, STEP)
        outs = ()
        for i in tl.static_range(STEP):
            begin = False
            if PACKED:
                begin = tl.load(begins + i, i < left, 0) != 0
                broken = broken | begin
            write = tl.load(B + i * n, some & (i < left), 0.0)
            e = fading(steps[i][None, :], a, begin, PACKED, FINE)
            h = faded(h, e, FINE) + (steps[i] * values[i])[None, :] * write[:, None]
            if not MARKS:
                total += steps[i]
            if READ:
                out = tl.sum(tl.load(C + i * n, some & (i < left), 0.0)[:, None] * h, 0)
                outs = outs + (out + skip * values[i] if SKIP else out,)  # noqa: RUF005
        if READ:
            stored(y, y_t, outs, left, keep, STEP)
        x, dt, y, B, C = x + STEP * x_t, dt + STEP * dt_t, y + STEP * y_t, B + STEP * n, C + STEP * n
        begins += STEP
    leave(ends, through, (row * segments + segment) * n * d + cell, both, h, total, a, broken, PACKED, not MARKS)


@triton.jit
def leave(ends, through, cell, both, h, total, a, broken, PACKED: tl.constexpr, LOCAL: tl.constexpr):
    """What a walk over a segment ends with; and if it was from zero, what would be left of what it started with."""
    tl.store(ends + cell, h, both)
    if LOCAL:
        fade = exp2(total[None, :] * a)
        if PACKED:
            fade = tl.where(broken, 0.0, fade)
        tl.store(through + cell, fade, both)


@triton.jit(do_not_specialize=["zero"])
def _walk_back_kernel(
    dy, dy_b, dy_t, dt, dt_b, dt_t, A, C, begins, starts, marks, ends, through,
    t, d, n, zero, segments, length, N: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr, MARK: tl.constexpr,
    PACKED: tl.constexpr, FROM: tl.constexpr, MARKS: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    col, row, segment, first, last = place(tl.program_id(0).to(tl.int64), d, segments, length, t, WIDE)
    m = tl.arange(0, N)
    keep, some = col < d, m < n
    cell, both = m[:, None] * d + col[None, :] + zero, some[:, None] & keep[None, :]
    a = tl.load(A + cell, both, 0.0)
    q = tl.zeros((N, WIDE), tl.float32)  # dL/dh of the state before the token at hand
    if FROM:
        q = tl.load(starts + (row * segments + segment) * n * d + cell, both, 0.0)
    total, broken = tl.zeros((WIDE,), tl.float32), segment < 0
    marks += row * tl.cdiv(t, MARK) * n * d
    start = first + (last - first - 1) // STEP * STEP
    dy, dt, C, begins = dy + row * dy_b + col, dt + row * dt_b + col, C + row * t * n + m, begins + row * t
    for _ in range(0, last - first, STEP):
        if MARKS and (start + STEP >= last or start % MARK == MARK - STEP):
            tl.store(marks + (start // MARK) * n * d + cell, q, both)
        steps = loaded(dt + start * dt_t, dt_t, last - start, keep, STEP)
        slopes = loaded(dy + start * dy_t, dy_t, last - start, keep, STEP)
        for i in tl.static_range(STEP - 1, -1, -1):
            inside = start + i < last
            begin = False
            if PACKED:
                begin = tl.load(begins + start + i, inside, 0) != 0
                broken = broken | begin
            read = tl.load(C + (start + i) * n, some & inside, 0.0)
            q = q + read[:, None] * slopes[i][None, :]
            q = faded(q, fading(steps[i][None, :], a, begin, PACKED, FINE), FINE)
            if not MARKS:
                total += steps[i]
        start -= STEP
    leave(ends, through, (row * segments + segment) * n * d + cell, both, q, total, a, broken, PACKED, not MARKS)


@triton.jit
def _pass_on_kernel(
    start, ends, through, starts, segments, size, WIDE: tl.constexpr, FROM: tl.constexpr, BACKWARDS: tl.constexpr
):
    pid, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(size, WIDE)
    row, cell = pid // blocks, pid % blocks * WIDE + tl.arange(0, WIDE)
    keep, h = cell < size, tl.zeros((WIDE,), tl.float32)
    if FROM:
        h = tl.load(start + row * size + cell, keep, 0.0)
    for s in range(segments):
        at = (row * segments + (segments - 1 - s if BACKWARDS else s)) * size + cell
        tl.store(starts + at, h, keep)
        h = tl.load(through + at, keep, 0.0) * h + tl.load(ends + at, keep, 0.0)
