"""Walks along time in Triton: states from left to right, their adjoints from right to left.

Each thread holds the states of a few channels. Every MARK tokens a walk may leave what it holds, for the gradients.
Where channels and rows are too few for a GPU, time is cut into segments: each is walked from zero, what it leaves is
passed on from segment to segment, and each is walked again from what it should have started with.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.backend import INTERPRETING
from hybridlm.ops.selective_scan.triton_parts import (
    begun,
    faded,
    fading,
    leave,
    loaded,
    place,
    scaled,
    stored,
    summed,
    through_step,
)

LOG2E = 1.4426950408889634
STEP = 4  # tokens that are loaded at once
THREADS = 2**16  # threads that keep a GPU busy: fewer are made more by cutting time
SHORTEST = 64  # tokens of a segment


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


SHARE, WIDE, WARPS = 16, 64, 2  # states, channels and warps of a program: a thread has all of these states of a channel


def shares(n: int) -> tuple[int, int]:
    """(states of a program, programs that share those of a channel)."""
    return min(SHARE, max(2, triton.next_power_of_2(n))), triton.cdiv(n, SHARE)


def cut(scan: Scan, mark: int) -> tuple[int, int]:
    """(segments, tokens of each), in multiples of `mark`."""
    b, t, d, _ = scan.sizes
    threads = 32 * WARPS * b * triton.cdiv(d, WIDE)
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
    size, count = shares(n)
    alone, loops = (count, 1) if y is None else (1, count)  # y is a sum over states: one program takes them all
    ends = A.new_empty(b, segments, n, d)
    through = torch.empty_like(ends) if marks is None else ends
    _walk_kernel[(b * segments * triton.cdiv(d, WIDE) * alone,)](
        x, *x.stride()[:2], dt, *dt.stride()[:2], A, B, C, _or(D, A), _or(begins, A), _or(starts, A), _or(y, A),
        *((0, 0) if y is None else y.stride()[:2]), _or(marks, A), ends, through,
        t, d, n, 0, alone, segments, length, size, WIDE, STEP, mark,
        begins is not None, starts is not None, y is not None, marks is not None, D is not None, scan.fine, loops,
        num_warps=WARPS, maxnreg=128 if loops == 1 else 168,
    )  # fmt: skip
    return ends, through


def _walk_back(scan, dy, starts, marks, mark, segments, length) -> tuple[Tensor, Tensor]:
    (_, dt, A, _, C, _, begins), (b, t, d, n) = scan, scan.sizes
    size, count = shares(n)
    ends = A.new_empty(b, segments, n, d)
    through = torch.empty_like(ends) if marks is None else ends
    _walk_back_kernel[(b * segments * triton.cdiv(d, WIDE) * count,)](
        dy, *dy.stride()[:2], dt, *dt.stride()[:2], A, C, _or(begins, A), _or(starts, A), _or(marks, A), ends, through,
        t, d, n, 0, count, segments, length, size, WIDE, STEP, mark,
        begins is not None, starts is not None, marks is not None, scan.fine,
        num_warps=WARPS, maxnreg=128,
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
@triton.jit(do_not_specialize=["zero"])
def _walk_kernel(
    x, x_b, x_t, dt, dt_b, dt_t, A, B, C, D, begins, starts, y, y_b, y_t, marks, ends, through,
    t, d, n, zero, shares, segments, length, N: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
    MARK: tl.constexpr, PACKED: tl.constexpr, FROM: tl.constexpr, READ: tl.constexpr, MARKS: tl.constexpr,
    SKIP: tl.constexpr, FINE: tl.constexpr, LOOPS: tl.constexpr,
):  # fmt: skip
    share, col, row, segment, first, last = place(tl.program_id(0).to(tl.int64), d, segments, length, t, shares, WIDE)
    m, keep = share * N + tl.arange(0, N), col < d
    cell, both = m[:, None] * d + col[None, :] + zero, (m < n)[:, None] & keep[None, :]  # zero: no vectors of channels
    slot = (row * segments + segment) * n * d
    ends, skip = ends + slot, tl.zeros((WIDE,), tl.float32)
    a, h = tl.load(A + cell, both, 0.0), begun(starts + slot, ends, cell, m, n, d, keep, N, WIDE, FROM, LOOPS)
    if SKIP:
        skip = tl.load(D + col, keep, 0.0).to(tl.float32)
    x, dt = x + row * x_b + first * x_t + col, dt + row * dt_b + first * dt_t + col
    y, begins = y + row * y_b + first * y_t + col, begins + row * t + first
    B, C = B + (row * t + first) * n + m, C + (row * t + first) * n + m
    marks += (row * tl.cdiv(t, MARK) + first // MARK) * n * d
    total, broken = tl.zeros((WIDE,), tl.float32), segment < 0
    for start in range(0, last - first, STEP):
        left, mark = last - first - start, marks + (start // MARK) * n * d + cell
        steps, values = loaded(dt, dt_t, left, keep, STEP), loaded(x, x_t, left, keep, STEP)
        outs, marking = scaled(values, skip, STEP), start % MARK == 0 and MARKS
        if LOOPS == 1:
            if marking:
                tl.store(mark, h, both)
            h, outs = through_step(h, a, steps, values, outs, B, C, begins, n, m < n, left, STEP, PACKED, READ, FINE)
        else:
            for loop in range(LOOPS):
                some, at = m + loop * N < n, cell + loop * N * d
                a_loop, h_loop = (
                    tl.load(A + at, some[:, None] & keep, 0.0),
                    tl.load(ends + at, some[:, None] & keep, 0.0),
                )
                if marking:
                    tl.store(mark + loop * N * d, h_loop, some[:, None] & keep)
                h_loop, outs = through_step(
                    h_loop, a_loop, steps, values, outs, B + loop * N, C + loop * N, begins, n, some, left,
                    STEP, PACKED, READ, FINE,
                )  # fmt: skip
                tl.store(ends + at, h_loop, some[:, None] & keep)
        if READ:
            stored(y, y_t, outs, left, keep, STEP)
        if not MARKS:
            total, broken = summed(total, broken, steps, begins, left, STEP, PACKED)
        x, dt, y, B, C = x + STEP * x_t, dt + STEP * dt_t, y + STEP * y_t, B + STEP * n, C + STEP * n
        begins += STEP
    if LOOPS == 1:
        leave(ends, through + slot, cell, both, h, total, a, broken, PACKED, not MARKS)


@triton.jit(do_not_specialize=["zero"])
def _walk_back_kernel(
    dy, dy_b, dy_t, dt, dt_b, dt_t, A, C, begins, starts, marks, ends, through,
    t, d, n, zero, shares, segments, length, N: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr,
    MARK: tl.constexpr, PACKED: tl.constexpr, FROM: tl.constexpr, MARKS: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    share, col, row, segment, first, last = place(tl.program_id(0).to(tl.int64), d, segments, length, t, shares, WIDE)
    m, keep = share * N + tl.arange(0, N), col < d
    cell, both = m[:, None] * d + col[None, :] + zero, (m < n)[:, None] & keep[None, :]
    slot = (row * segments + segment) * n * d
    a = tl.load(A + cell, both, 0.0)
    q = tl.zeros((N, WIDE), tl.float32)  # dL/dh of the state before the token at hand
    if FROM:
        q = tl.load(starts + slot + cell, both, 0.0)
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
            q = q + tl.load(C + (start + i) * n, (m < n) & inside, 0.0)[:, None] * slopes[i][None, :]
            q = faded(q, fading(steps[i][None, :], a, begin, PACKED, FINE), FINE)
        if not MARKS:
            total, broken = summed(total, broken, steps, begins + start, last - start, STEP, PACKED)
        start -= STEP
    leave(ends + slot, through + slot, cell, both, q, total, a, broken, PACKED, not MARKS)


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
