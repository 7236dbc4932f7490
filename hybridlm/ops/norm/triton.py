"""Normalisation: one kernel a call, a row or a group of one at a time. `triton_gradients` is its backward pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued
from hybridlm.ops.triton_sigmoid import sigmoid


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return normalise(x.reshape(-1, x.shape[-1]), None, weight, None, eps, 1, False, weight.dtype).reshape(x.shape)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return normalise(x.reshape(-1, x.shape[-1]), None, weight, bias, eps, 1, True, weight.dtype).reshape(x.shape)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int, dtype: torch.dtype) -> Tensor:
    rows = (v.reshape(-1, v.shape[-1]) for v in (y, z))
    return normalise(*rows, weight, None, eps, groups, False, dtype).reshape(y.shape)


@torch.library.custom_op("hybridlm::normalise", mutates_args=())
def normalise(
    x: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    groups: int,
    centre: bool,
    dtype: torch.dtype,
) -> Tensor:
    """x, gate (m, d), weight, bias (d) -> (m, d) of that dtype: x silu(gate), each group of d normalised."""
    (m, d), y = x.shape, x.new_empty(x.shape, dtype=dtype)
    bias = bias if bias is None else bias.contiguous()
    block = triton.next_power_of_2(d // groups)
    gate_strides = (0, 0) if gate is None else gate.stride()
    with torch.cuda.device_of(x):
        _normalise[(m, groups)](
            x, gate, weight.contiguous(), bias, y, d // groups, eps, *x.stride(), *gate_strides,
            BLOCK=block, CENTRE=centre, num_warps=min(8, max(1, block // 256)), num_stages=1, **queued(x),
        )  # fmt: skip
    return y


@normalise.register_fake
def _(x, gate, weight, bias, eps, groups, centre, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@triton.jit
def _normalise(
    x, gate, weight, bias, y, d, eps, x_row, x_column, gate_row, gate_column,
    BLOCK: tl.constexpr, CENTRE: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < d
    at = tl.program_id(1).to(tl.int64) * d + i
    v = tl.load(x + row * x_row + at * x_column, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    if gate is not None:
        g = tl.load(gate + row * gate_row + at * gate_column, mask=inside, other=0.0).to(tl.float32)
        v = v * g * sigmoid(g)
    if CENTRE:
        v = tl.where(inside, v - tl.sum(v, axis=0) / d, 0.0)
    v = v * tl.rsqrt(tl.sum(v * v, axis=0) / d + eps) * w
    if bias is not None:
        v += tl.load(bias + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * d * tl.num_programs(1) + at, v.to(y.dtype.element_ty), mask=inside)
