"""The selective scan in Triton: one walk along time forward; walks and tiles backward.

Gu and Dao 2023, Algorithm 2, without the states of all tokens in memory: the backward pass computes them again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.backend import triton_lacks
from hybridlm.ops.flops import count
from hybridlm.ops.selective_scan.reference import work
from hybridlm.ops.selective_scan.triton_gradients import SAVED, gradients
from hybridlm.ops.selective_scan.triton_walk import LOG2E, Scan, walk, written

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST = 256  # states of a channel


def lacks(x: Tensor, dt: Tensor, A: Tensor, zoh: bool) -> str | None:
    """Why the kernels cannot take this call; None if they can."""
    if zoh:
        return "its kernels discretise by Euler's rule alone"
    if x.dtype not in DTYPES or dt.dtype not in DTYPES:
        return "its kernels compute in float32, and x or dt has another dtype"
    if A.shape[1] > MOST:
        return f"a channel has more than {MOST} states"
    return triton_lacks(x)


def selective_scan(x, dt, A, B, C, D, state, document, zoh) -> tuple[Tensor, Tensor]:
    """`reference.selective_scan` but for zero-order hold."""
    return _selective_scan(x, dt, A, B, C, D, state, document)[:2]


@torch.library.custom_op("hybridlm::selective_scan_triton", mutates_args=())
def _selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, state: Tensor | None, document: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y, the last state, and for the backward pass the states before every SAVED tokens, (b, n, d) each."""
    y, saved = written(x), x.new_empty(*_saved(x, A), dtype=torch.float32)
    with torch.cuda.device_of(x):
        last = walk(prepared(x, dt, A, B, C, D, document), folded(state), y, saved, SAVED)
    return y.to(x.dtype), last.transpose(1, 2).contiguous(), saved


def _saved(x: Tensor, A: Tensor) -> tuple[int, ...]:
    return x.shape[0], -(-x.shape[1] // SAVED), A.shape[1], A.shape[0]


@_selective_scan.register_fake
def _(x, dt, A, B, C, D, state, document):
    wide = {"dtype": torch.float32}
    return x.new_empty(x.shape), x.new_empty(len(x), *A.shape, **wide), x.new_empty(*_saved(x, A), **wide)


@torch.library.custom_op("hybridlm::selective_scan_triton_backward", mutates_args=())
def _backward(
    dy: Tensor | None, dlast: Tensor | None, saved: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, state: Tensor | None, document: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    scan = prepared(x, dt, A, B, C, D, document)
    dy = torch.zeros_like(x) if dy is None else rows(dy)
    with torch.cuda.device_of(x):
        dx, ddt, dA, dB, dC, dD, dstate = gradients(scan, saved, dy, folded(dlast))
    found = [dx.to(x.dtype), ddt.to(dt.dtype), dA.T.contiguous().to(A.dtype), dB.to(B.dtype), dC.to(C.dtype)]
    found += [] if D is None else [dD.to(D.dtype)]
    return found if state is None else [*found, dstate.transpose(1, 2).contiguous().to(state.dtype)]


@_backward.register_fake
def _(dy, dlast, saved, x, dt, A, B, C, D, state, document):
    return [v.new_empty(v.shape) for v in (x, dt, A, B, C, D, state) if v is not None]


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *inputs)


def _differentiate(ctx, dy: Tensor | None, dlast: Tensor | None, _) -> tuple[Tensor | None, ...]:
    saved, *inputs = ctx.saved_tensors
    found = iter(_backward(dy, dlast, saved, *inputs))
    return *(None if v is None else next(found) for v in inputs[:7]), None


_selective_scan.register_autograd(_differentiate, setup_context=_keep)
count(_selective_scan, work, kept=True)
count(_backward, lambda dy, dlast, saved, *inputs: 2 * work(*inputs))


def prepared(x, dt, A, B, C, D, document) -> Scan:
    """The inputs as the kernels read them."""
    begins = None if document is None else (document != F.pad(document[:, :-1], (1, 0))).to(torch.int8)
    B, C = B.float().contiguous(), C.float().contiguous()
    return Scan(rows(x), rows(dt), (A.float() * LOG2E).T.contiguous(), B, C, D, begins)


def rows(v: Tensor) -> Tensor:
    """v (b, t, d) with its channels side by side."""
    return v if v.stride(-1) == 1 else v.contiguous()


def folded(state: Tensor | None) -> Tensor | None:
    """(b, d, n) -> (b, n, d) float32, contiguous."""
    return None if state is None else state.float().transpose(1, 2).contiguous()
