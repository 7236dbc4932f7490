"""Rotary position embedding in one kernel, for calls without gradients. Angles, cosines and sines in float64."""

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued


def rotary(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    return turn(x, positions, theta)


@torch.library.custom_op("hybridlm::turn", mutates_args=())
def turn(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x (b, t, h, p), positions (b, t) -> as x."""
    (b, t, h, p), y = x.shape, x.new_empty(x.shape)
    rate = -2 * math.log(theta) / p
    coarse = struct.unpack("f", struct.pack("f", rate))[0]  # Triton takes Python's floats in float32: two make a double
    with torch.cuda.device_of(x):
        _turn[(t, b)](
            x, positions, y, coarse, rate - coarse, t, h, p // 2, *x.stride(), *positions.stride(),
            HEADS=triton.next_power_of_2(h), HALF=triton.next_power_of_2(p // 2), num_warps=4, **queued(x),
        )  # fmt: skip
    return y


@turn.register_fake
def _(x, positions, theta):
    return x.new_empty(x.shape)


@triton.jit
def _turn(
    x, positions, y, rate, rest, t, h, half, x_b, x_t, x_h, x_p, positions_b, positions_t,
    HEADS: tl.constexpr, HALF: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    row, step = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64)
    head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = (head < h) & (i < half)
    position = tl.load(positions + row * positions_b + step * positions_t).to(tl.float64)
    exponent = i.to(tl.float64)
    angle = position * tl.exp(rate * exponent + rest * exponent)
    cos, sin = tl.cos(angle).to(tl.float32), tl.sin(angle).to(tl.float32)
    place = x + row * x_b + step * x_t + head * x_h + i * x_p
    left = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(place + half * x_p, mask=inside, other=0.0).to(tl.float32)
    place = y + ((row * t + step) * h + head) * (2 * half) + i
    tl.store(place, (left * cos - right * sin).to(y.dtype.element_ty), mask=inside)
    tl.store(place + half, (right * cos + left * sin).to(y.dtype.element_ty), mask=inside)
