"""Steps and rates in one kernel, which decoding is glad of: four operations on a few numbers are four launches."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

BLOCK = 256


def steps_and_rates(dt: Tensor, bias: Tensor | None, A_log: Tensor) -> tuple[Tensor, Tensor]:
    steps, rates = steps_rates(dt.reshape(-1, dt.shape[-1]), bias, A_log.reshape(-1))
    return steps.reshape(dt.shape), rates.reshape(A_log.shape)


@torch.library.custom_op("hybridlm::steps_rates", mutates_args=())
def steps_rates(dt: Tensor, bias: Tensor | None, A_log: Tensor) -> tuple[Tensor, Tensor]:
    """dt (m, h), bias (h), A_log (n) -> (m, h), (n), float32."""
    (m, h), n = dt.shape, len(A_log)
    steps, rates = dt.new_empty(m, h, dtype=torch.float32), dt.new_empty(n, dtype=torch.float32)
    bias = bias if bias is None else bias.contiguous()
    with torch.cuda.device_of(dt):
        _steps[(triton.cdiv(m * h, BLOCK) + triton.cdiv(n, BLOCK),)](
            dt, bias, A_log.contiguous(), steps, rates, m * h, h, n, *dt.stride(),
            BLOCK=BLOCK, num_warps=1, **queued(dt),
        )  # fmt: skip
    return steps, rates


@steps_rates.register_fake
def _(dt, bias, A_log):
    return dt.new_empty(dt.shape, dtype=torch.float32), dt.new_empty(A_log.shape, dtype=torch.float32)


@triton.jit
def _steps(dt, bias, A_log, steps, rates, total, h, n, dt_row, dt_column, BLOCK: tl.constexpr, QUEUED: tl.constexpr):
    """The first programs are for dt, the others for A."""
    queue(QUEUED)
    block, first = tl.program_id(0).to(tl.int64), tl.cdiv(total, BLOCK)
    if block < first:
        at = block * BLOCK + tl.arange(0, BLOCK)
        inside = at < total
        x = tl.load(dt + at // h * dt_row + at % h * dt_column, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            x += tl.load(bias + at % h, mask=inside, other=0.0).to(tl.float32)
        tl.store(steps + at, softplus(x), mask=inside)
    else:
        at = (block - first) * BLOCK + tl.arange(0, BLOCK)
        rate = tl.load(A_log + at, mask=at < n, other=0.0).to(tl.float32)
        tl.store(rates + at, -tl.exp(rate), mask=at < n)


@triton.jit
def softplus(x):
    """log(1 + e^x) = max(x, 0) + 2 artanh(s), s = e / (2 + e), e = e^-|x|: exact for small steps, which log is not."""
    e = tl.exp(-tl.abs(x))
    s = e / (2.0 + e)
    r = s * s  # at most 1/9
    series = 1 / 13 + r / 15
    for k in tl.static_range(6):
        series = 1 / (11 - 2 * k) + r * series
    return tl.maximum(x, 0.0) + 2.0 * s * series
