"""One token of SSD after a state, in the state's own memory: what decoding with Mamba-2 asks for.

The state is read and written once, and nothing else counts: a program takes a few of the p rows of a head's state.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.triton_launch import queue, queued

FEW, MANY, LARGE = 512, 1024, 2**21  # entries of the state that a program takes, the second of large states


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor,
    document: None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    return ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state).unsqueeze(1), state


@torch.library.custom_op("hybridlm::ssd_step", mutates_args=("state",))
def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, state: Tensor) -> Tensor:
    """x (b, h, p), dt (b, h), A (h), B, C (b, g, n), D (h), state (b, h, p, n) -> y (b, h, p)."""
    y = x.new_empty(x.shape)
    with torch.cuda.device_of(x):
        launch(x, dt, A, B, C, D, state, y)
    return y


@ssd_step.register_fake
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
    b, h, p, n = state.shape
    width, entries = triton.next_power_of_2(n), entries or (FEW if state.numel() < LARGE else MANY)
    rows = max(1, min(triton.next_power_of_2(p), entries // width))
    A, D, B, C = (
        A.contiguous(),
        D if D is None else D.contiguous(),
        *(v if v.stride(2) == 1 else v.contiguous() for v in (B, C)),
    )
    _step[(triton.cdiv(p, rows), h, b)](
        x, dt, A, B, C, D, state, y, p, n, h // B.shape[1],
        *x.stride(), *dt.stride(), *B.stride(), *C.stride(),
        ROWS=rows, WIDTH=width, num_warps=warps, num_stages=1, **queued(x),
    )  # fmt: skip


@triton.jit
def _step(
    x, dt, A, B, C, D, state, y, p, n, heads_of_group,
    x_b, x_h, x_p, dt_b, dt_h, B_b, B_g, B_n, C_b, C_g, C_n,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, QUEUED: tl.constexpr,
):  # fmt: skip
    queue(QUEUED)
    row = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    group = head // heads_of_group
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, WIDTH)[None, :]
    whole = row * tl.num_programs(1) + head
    place = state + (whole * p + i) * n + j
    H = tl.load(place, mask=(i < p) & (j < n), other=0.0)
    step = tl.load(dt + row * dt_b + head * dt_h).to(tl.float32)
    decay = tl.exp(step * tl.load(A + head).to(tl.float32))
    u = tl.load(x + row * x_b + head * x_h + i * x_p, mask=i < p, other=0.0).to(tl.float32)
    key = tl.load(B + row * B_b + group * B_g + j * B_n, mask=j < n, other=0.0).to(tl.float32)
    query = tl.load(C + row * C_b + group * C_g + j * C_n, mask=j < n, other=0.0).to(tl.float32)
    H = H * decay + (u * step) * key
    tl.store(place, H, mask=(i < p) & (j < n))
    out = tl.sum(H * query, axis=1, keep_dims=True)
    if D is not None:
        out += u * tl.load(D + head).to(tl.float32)
    tl.store(y + whole * p + i, out.to(y.dtype.element_ty), mask=i < p)
