"""State space duality in Triton: states between chunks first, then every chunk by itself.

1. A walk over the chunks of each head stores the state S before each one (triton_states.py).
2. y_i = sum_j L_ij (C_i . B_j) dt_j x_j + since_i S C_i + D x_i of all chunks at once, C B^T serving many heads.

Dao and Gu 2024, section 6. Nothing but its inputs is kept for the backward (triton_backward.py).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.backend import INTERPRETING, triton_lacks
from hybridlm.ops.ssd import triton_backward
from hybridlm.ops.ssd.triton_states import (
    Sizes,
    Tuning,
    decay_mask,
    place,
    rows_of,
    sizes,
    states,
    steps,
    tile,
    tuning,
    turned,
    visible,
)

DTYPES = (torch.bfloat16, torch.float32)


def lacks(x: Tensor, B: Tensor, C: Tensor) -> str | None:
    """Why the kernels cannot take this call; None if they can."""
    if x.dtype not in DTYPES or not x.dtype == B.dtype == C.dtype:
        return "x, B and C have to be of one dtype, bfloat16 or float32"
    if x.shape[3] > 128 or B.shape[3] > 256:
        return "heads are wider than 128 or states longer than 256"
    if INTERPRETING and x.dtype == torch.bfloat16:
        return "Triton's interpreter has no products in bfloat16"
    return triton_lacks(x)


def ssd(x, dt, A, B, C, D, state, document, chunk) -> tuple[Tensor, Tensor]:
    """`reference.ssd` with chunks of the kernels' own."""
    return _ssd(x, dt, A, B, C, D, state, document)


@torch.library.custom_op("hybridlm::ssd_triton", mutates_args=())
def _ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return forward(x, dt, A, B, C, D, state, document, tuning(x, B))


@_ssd.register_fake
def _(x, dt, A, B, C, D, state, document):
    last = x.new_empty(x.shape[0], *x.shape[2:], B.shape[3], dtype=torch.float32)
    return x.new_empty(x.shape), last


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy, dlast):
    x, dt, A, B, C, D, state, document = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dx, ddt, dA, dB, dC, dD, dstate = triton_backward.gradients(dy, dlast, x, dt, A, B, C, D, state, document)
    return dx, ddt, dA, dB, dC, None if D is None else dD, None if state is None else dstate, None


_ssd.register_autograd(_backward, setup_context=_keep)


def forward(x, dt, A, B, C, D, state, document, tuning: Tuning) -> tuple[Tensor, Tensor]:
    """y and the last state, cut as `tuning` says."""
    s = sizes(x, B, tuning.chunk)
    state = None if state is None else state.float().contiguous()
    cuts = steps(dt, A, document, s)
    before, last = states(x, B, cuts, state, s, tuning)
    return _outputs(x, B, C, D, document, cuts, before, s, tuning), last


def _outputs(x, B, C, D, document, steps, before, s: Sizes, tuning: Tuning) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    r, rows = s.h // s.g, min(tuning.rows, s.size)
    shares = triton.cdiv(r, tuning.heads)
    packed, skip = document is not None, D is not None
    warps, stages = tuning.outputs
    _outputs_kernel[(s.b * s.chunks * (s.size // rows) * s.g * shares,)](
        *rows_of(x), *rows_of(B), *rows_of(C), D if skip else x, document if packed else x,
        *(document.stride() if packed else (0, 0)), steps, before, y,
        s.t, s.h, s.p, s.n, s.g, s.chunks, steps[0].numel(),
        s.size, rows, *s.padded, tuning.heads, packed, skip, tuning.fine,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y


@triton.jit
def _outputs_kernel(
    x, x_b, x_t, x_h, B, B_b, B_t, B_g, C, C_b, C_t, C_g, D, document, document_b, document_t, steps, before, y,
    t, h, p, n, g, chunks, plane, SIZE: tl.constexpr, ROWS: tl.constexpr, P: tl.constexpr, N: tl.constexpr,
    HEADS: tl.constexpr, PACKED: tl.constexpr, SKIP: tl.constexpr, FINE: tl.constexpr,
):  # fmt: skip
    r = h // g
    row, z, block, group, _, first, end = place(chunks, g, r, SIZE // ROWS, HEADS)
    start = z * SIZE
    i, j, q, m = block * ROWS + tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, P), tl.arange(0, N)
    tokens = (t - start).to(tl.int32)
    query = tile(C + row * C_b + start * C_t + group * C_g, i, C_t, m, tokens, n)
    scores = tl.dot(
        query, turned(B + row * B_b + start * B_t + group * B_g, j, B_t, m, tokens, n), input_precision="ieee"
    )
    document += row * document_b + start * document_t
    sees = visible(document, document_t, i[:, None], j[None, :], tokens, PACKED)
    x += row * x_b + start * x_t
    y += (row * t + start) * h * p
    for head in range(first, end):
        cut = steps + (row * h + head) * chunks * SIZE + start
        S = turned(before + ((row * h + head) * chunks + z) * p * n, q, n, m, p, n)
        value = tile(x + head * x_h, j, x_t, q, tokens, p)
        mask = decay_mask(cut, plane, i[:, None], j[None, :], sees, FINE) * tl.load(cut + j)[None, :]
        out = tl.dot(query, S, input_precision="ieee") * tl.load(cut + 3 * plane + i)[:, None]
        out = tl.dot((scores * mask).to(value.dtype), value, out, input_precision="ieee")
        if SKIP:
            out += tl.load(D + head).to(tl.float32) * tile(x + head * x_h, i, x_t, q, tokens, p)
        inside = (i < tokens)[:, None] & (q < p)[None, :]
        tl.store(y + i[:, None] * h * p + head * p + q[None, :], out.to(y.dtype.element_ty), inside)
