"""The RMS norm where gradients are asked for, gated or not: forward the kernel of `triton`, backward one more.

With u = x silu(z), r = 1 / sqrt(mean(u^2) + eps) and g = dy w, group by group of the width:

    du = r g - u r^3 mean(g u),    dx = du silu(z),    dz = du x silu'(z),    dw = sum over rows of dy u r

A program goes down a stretch of rows, the next row on its way while this one is worked on, and sums dw on the way. Each
input is read once, r is computed again, and the order of every sum is the same every time.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.ops.backend import triton_lacks
from hybridlm.ops.flops import count
from hybridlm.ops.norm.triton import normalise
from hybridlm.ops.triton_sigmoid import sigmoid

WIDEST = 16384  # bytes of a row of a group, which is held in registers
WARPS = 4224  # of all programs, at most: twice what an H200 holds at a time; narrow rows want four times as many


def lacks(groups: int, x: Tensor, *others: Tensor) -> str | None:
    """Why these kernels cannot take a call; None if they can."""
    if x.shape[-1] // groups * x.element_size() > WIDEST:
        return f"our kernel takes groups of at most {WIDEST} bytes"
    if any(v.dtype == torch.float64 for v in (x, *others)):
        return "our kernel takes dtypes of at most 32 bits"
    if not torch.compiler.is_compiling() and any(is_wrapped(v) for v in (x, *others)):
        return "torch.func takes PyTorch's own operations"
    return triton_lacks(x)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _rms_norm(x.reshape(-1, x.shape[-1]), None, weight, eps, 1, weight.dtype).reshape(x.shape)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int, dtype: torch.dtype) -> Tensor:
    rows = (v.reshape(-1, v.shape[-1]) for v in (y, z))
    return _rms_norm(*rows, weight, eps, groups, dtype).reshape(y.shape)


@torch.library.custom_op("hybridlm::rms_norm_triton", mutates_args=())
def _rms_norm(x: Tensor, gate: Tensor | None, weight: Tensor, eps: float, groups: int, dtype: torch.dtype) -> Tensor:
    """x, gate (m, d), weight (d) -> (m, d)."""
    return normalise(x, gate, weight, None, eps, groups, False, dtype)


@_rms_norm.register_fake
def _(x, gate, weight, eps, groups, dtype):
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op("hybridlm::rms_norm_triton_backward", mutates_args=())
def _rms_norm_backward(
    dy: Tensor, x: Tensor, gate: Tensor | None, weight: Tensor, eps: float, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gate (empty without one) and weight."""
    (m, d), wide = x.shape, triton.next_power_of_2(x.shape[1] // groups)
    dy, x, gate = (v if v is None or v.stride(1) == 1 else v.contiguous() for v in (dy, x, gate))
    dx, dgate = x.new_empty(m, d), x.new_empty(0) if gate is None else gate.new_empty(m, d)
    warps = min(16, max(1, wide // 256))
    rows = max(1, m * warps * groups // (WARPS if warps >= 4 else 4 * WARPS))
    parts = x.new_empty(triton.cdiv(m, rows), d, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[(len(parts), groups)](
            dy, x, gate, weight.contiguous(), dx, dgate, parts, m, d // groups, eps, rows,
            dy.stride(0), x.stride(0), 0 if gate is None else gate.stride(0),
            BLOCK=wide, num_warps=warps, num_stages=1,
        )  # fmt: skip
    return dx, dgate, parts.sum(0).to(weight.dtype)


@_rms_norm_backward.register_fake
def _(dy, x, gate, weight, eps, groups):
    return (
        x.new_empty(x.shape),
        x.new_empty(0) if gate is None else gate.new_empty(x.shape),
        weight.new_empty(len(weight)),
    )


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:5]


def _pull_back(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, gate, weight = ctx.saved_tensors
    dx, dgate, dweight = _rms_norm_backward(dy, x, gate, weight, *ctx.rest)
    return dx, None if gate is None else dgate, dweight, None, None, None


_rms_norm.register_autograd(_pull_back, setup_context=_keep)
count(_rms_norm, lambda x, *others: 4 * math.prod(x), kept=True)  # two products each for the mean and for the result


# --------------------------------------------------------------------------------------------------------------- kernel
@triton.jit
def _row(dy, x, gate, row, m, dy_row, x_row, gate_row, at, inside):
    """A row as it lies in memory; without a gate its third part is not looked at."""
    live = inside & (row < m)
    g = tl.load(dy + row * dy_row + at, mask=live, other=0.0)
    v = tl.load(x + row * x_row + at, mask=live, other=0.0)
    z = v
    if gate is not None:
        z = tl.load(gate + row * gate_row + at, mask=live, other=0.0)
    return g, v, z


@triton.jit
def _add(a, b, other_a, other_b):
    return a + other_a, b + other_b


@triton.jit
def _backward(
    dy, x, gate, weight, dx, dgate, parts, m, d, eps, rows, dy_row, x_row, gate_row, BLOCK: tl.constexpr
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * rows
    i = tl.arange(0, BLOCK)
    inside = i < d
    at, width = tl.program_id(1) * d + i, tl.num_programs(1) * d
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    ahead = _row(dy, x, gate, start, m, dy_row, x_row, gate_row, at, inside)
    for row in range(start, min(start + rows, m)):
        g, v, z = ahead[0].to(tl.float32), ahead[1].to(tl.float32), ahead[2].to(tl.float32)
        ahead = _row(dy, x, gate, row + 1, m, dy_row, x_row, gate_row, at, inside)
        u, to_x, to_z = v, 1.0, 0.0
        if gate is not None:
            s = sigmoid(z)
            to_x = z * s
            u, to_z = v * to_x, v * (s + to_x - to_x * s)
        gu, gw = g * u, g * w
        square, product = tl.reduce((u * u, gw * u), 0, _add)
        r = tl.rsqrt(square / d + eps)
        dw += gu * r
        du = gw * r - u * (product / d * r * r * r)
        if gate is not None:
            tl.store(dgate + row * width + at, (du * to_z).to(dgate.dtype.element_ty), mask=inside)
        du = du * to_x
        tl.store(dx + row * width + at, du.to(dx.dtype.element_ty), mask=inside)
    tl.store(parts + tl.program_id(0).to(tl.int64) * width + at, dw, mask=inside)
