"""One token of the selective scan after a state, in the state's own memory: what decoding with Mamba asks for."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

FEW, MANY, LARGE = 256, 1024, 2**18  # entries of the state that a program takes, the second of large states


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    document: None,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    return scan_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state).unsqueeze(1), state


@torch.library.custom_op("hybridlm::scan_step", mutates_args=("state",))
def scan_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor) -> Tensor:
    """x, dt (b, d), A (d, n), B, C (b, n), D (d), state (b, d, n) -> y (b, d)."""
    y = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        launch(x, dt, A, B, C, D, state, y)
    return y


@scan_step.register_fake
def _(x, dt, A, B, C, D, state):
    return x.new_empty(x.shape)


def launch(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    y: Tensor,
    entries: int | None = None,
    warps: int = 1,
) -> None:
    b, d, n = state.shape
    width, entries = triton.next_power_of_2(n), entries or (FEW if state.numel() < LARGE else MANY)
    rows = max(1, min(triton.next_power_of_2(d), entries // width))
    A, D = A.contiguous(), D if D is None else D.contiguous()
    _step[(triton.cdiv(d, rows), b)](
        x, dt, A, B, C, D, state, y, d, n, *x.stride(), *dt.stride(), *B.stride(), *C.stride(),
        ROWS=rows, WIDTH=width, num_warps=warps, num_stages=1, **queued(x),
    )  # fmt: skip


@triton.jit
def _step(
    x, dt, A, B, C, D, state, y, d, n, x_b, x_d, dt_b, dt_d, B_b, B_n, C_b, C_n,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    row = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, WIDTH)[None, :]
    inside = (i < d) & (j < n)
    place = state + (row * d + i) * n + j
    h = tl.load(place, mask=inside, other=0.0)
    rate = tl.load(A + i * n + j, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(x + row * x_b + i * x_d, mask=i < d, other=0.0).to(tl.float32)
    step = tl.load(dt + row * dt_b + i * dt_d, mask=i < d, other=0.0).to(tl.float32)
    key = tl.load(B + row * B_b + j * B_n, mask=j < n, other=0.0).to(tl.float32)
    query = tl.load(C + row * C_b + j * C_n, mask=j < n, other=0.0).to(tl.float32)
    h = h * tl.exp(step * rate) + (u * step) * key
    tl.store(place, h, mask=inside)
    out = tl.sum(h * query, axis=1, keep_dims=True)
    if D is not None:
        out += u * tl.load(D + i, mask=i < d, other=0.0).to(tl.float32)
    tl.store(y + row * d + i, out.to(y.dtype.element_ty), mask=i < d)
