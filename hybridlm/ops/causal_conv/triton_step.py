"""One token of the short convolution after a state, in the state's own memory."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

ENTRIES = 512  # channels times taps that a program takes


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    lengths: Tensor | None,
    document: None,
    activation: str | None,
) -> tuple[Tensor, Tensor]:
    return conv_step(x[:, 0], weight[:, 0], bias, state, lengths, activation == "silu").unsqueeze(1), state


@torch.library.custom_op("hybridlm::conv_step", mutates_args=("state",))
def conv_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, lengths: Tensor | None, silu: bool
) -> Tensor:
    """x (b, c), weight (c, k), bias (c), state (b, c, k - 1), lengths (b) of 0 or 1 -> y (b, c)."""
    y = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        launch(x, weight, bias, state, lengths, silu, y)
    return y


@conv_step.register_fake
def _(x, weight, bias, state, lengths, silu):
    return x.new_empty(x.shape)


def launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    lengths: Tensor | None,
    silu: bool,
    y: Tensor,
    entries: int = ENTRIES,
    warps: int = 4,
) -> None:
    (b, c), k = x.shape, weight.shape[1]
    taps = triton.next_power_of_2(k)
    rows = max(1, entries // taps)
    _step[(triton.cdiv(c, rows), b)](
        x, weight.contiguous(), bias if bias is None else bias.contiguous(), state,
        lengths if lengths is None else lengths.contiguous(), y, c, k, *x.stride(),
        ROWS=rows, TAPS=taps, SILU=silu, num_warps=warps, num_stages=1, **queued(x),
    )  # fmt: skip


@triton.jit
def _step(
    x, weight, bias, state, lengths, y, c, k, x_b, x_c,
    ROWS: tl.constexpr, TAPS: tl.constexpr, SILU: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, TAPS)[None, :]
    before = (i < c) & (j < k - 1)
    place = state + (row * c + i) * (k - 1) + j
    moves = i < c
    if lengths is not None:
        moves = moves & (tl.load(lengths + row) > 0)  # a pad is a zero, and leaves the state as it is
    now = tl.load(x + row * x_b + i * x_c, mask=moves, other=0.0).to(tl.float32)
    seen = tl.where(j < k - 1, tl.load(place, mask=before, other=0.0).to(tl.float32), now)
    taps = tl.load(weight + i * k + j, mask=(i < c) & (j < k), other=0.0).to(tl.float32)
    out = tl.sum(seen * taps, axis=1, keep_dims=True)
    if bias is not None:
        out += tl.load(bias + i, mask=i < c, other=0.0).to(tl.float32)
    if SILU:
        out = out * tl.sigmoid(out)
    tl.debug_barrier()  # all of the state is read before another thread writes to it
    tl.store(place - 1, seen.to(state.dtype.element_ty), mask=moves & (j > 0) & (j < k))
    tl.store(y + row * c + i, out.to(y.dtype.element_ty), mask=i < c)
