"""A linear layer for few rows: each program takes some rows of the weight, whole, and every row of x.

The weight's bytes are all that counts. A row or two of x are multiplied and summed by warps that each ask for all of
their weights at once, before the first product; more of them go to the matrix units, 16 at a time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

WIDEST = 2048  # of the inner width, what a program holds at a time


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return linear_rows(rows, weight, bias, wide).reshape(*x.shape[:-1], -1)


@torch.library.custom_op("hybridlm::linear_rows", mutates_args=())
def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool) -> Tensor:
    """x (m, i), weight (o, i) -> (m, o), in float32 if wide."""
    y = x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32 if wide else x.dtype)
    with torch.cuda.device_of(x):
        if x.shape[0] <= 2 or (x.shape[0] <= 4 and weight.shape[0] <= 2048):
            launch_vector(x, weight, bias, y)
        else:
            launch_matrix(x, weight, bias, y)
    return y


@linear_rows.register_fake
def _(x, weight, bias, wide):
    return x.new_empty(x.shape[0], weight.shape[0], dtype=torch.float32 if wide else x.dtype)


# ----------------------------------------------------------------------------------------------------- a row, or a few
def launch_vector(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, block: int = 2, warps: int = 1) -> None:
    (m, i), o = x.shape, weight.shape[0]
    inner = min(triton.next_power_of_2(i), WIDEST)
    _vector[(triton.cdiv(o, block),)](
        x, weight, bias, y, i, o, *x.stride(), weight.stride(0),
        ROWS=m, PADDED=triton.next_power_of_2(m), BLOCK=block, INNER=inner, num_warps=warps, num_stages=1, **queued(x),
    )  # fmt: skip


@triton.jit
def _vector(
    x, weight, bias, y, i, o, x_row, x_column, weight_row,
    ROWS: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, PADDED)[:, None].to(tl.int64)
    total = tl.zeros([PADDED, BLOCK], tl.float32)
    for start in range(0, i, INNER):
        place = start + tl.arange(0, INNER)[None, :]
        inside = place < i
        w = tl.load(weight + at[:, None] * weight_row + place, mask=(at[:, None] < o) & inside, other=0.0)
        w = w.to(tl.float32)
        for r in tl.static_range(ROWS):
            u = tl.load(x + r * x_row + place * x_column, mask=inside, other=0.0).to(tl.float32)
            total = tl.where(row == r, total + tl.sum(w * u, axis=1)[None, :], total)
    if bias is not None:
        total += tl.load(bias + at, mask=at < o, other=0.0).to(tl.float32)[None, :]
    tl.store(y + row * o + at[None, :], total.to(y.dtype.element_ty), mask=(row < ROWS) & (at[None, :] < o))


# ---------------------------------------------------------------------------------------------------------- more rows
def launch_matrix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    geometry: tuple[int, int, int, int] | None = None,
) -> None:
    """geometry: rows of the weight and columns at a time, warps, stages."""
    (m, i), o = x.shape, weight.shape[0]
    block, inner, warps, stages = geometry or ((16, 256, 2, 3) if o <= 8192 else (64, 128, 4, 4))
    inner = inner * 2 // x.element_size()
    _matrix[(triton.cdiv(o, block),)](
        x, weight, bias, y, m, i, o, *x.stride(), weight.stride(0),
        ROWS=max(16, triton.next_power_of_2(m)), BLOCK=block, INNER=inner,
        num_warps=warps, num_stages=stages, **queued(x),
    )  # fmt: skip


@triton.jit
def _matrix(
    x, weight, bias, y, m, i, o, x_row, x_column, weight_row,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    row = tl.arange(0, ROWS)[:, None].to(tl.int64)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, i, INNER):
        place = start + tl.arange(0, INNER)
        left, down = place[None, :], place[:, None]
        u = tl.load(x + row * x_row + left * x_column, mask=(row < m) & (left < i), other=0.0)
        w = tl.load(weight + at * weight_row + down, mask=(at < o) & (down < i), other=0.0)
        if u.dtype != w.dtype:
            u, w = u.to(tl.float32), w.to(tl.float32)
        total = tl.dot(u, w, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + at, mask=at < o, other=0.0).to(tl.float32)
    tl.store(y + row * o + at, total.to(y.dtype.element_ty), mask=(row < m) & (at < o))
