"""The selective scan by the mamba_ssm package: the CUDA kernels of Gu and Dao, called directly.

They start from zero, know no documents, and give the last state but no gradient through it. That gradient is made
around them, exactly: n more tokens with step size 0 hold the state, and with C = e_1, ..., e_n they read it, so that
the state's gradient is that of n more outputs.
Everything is float32 in them: as bfloat16, which they also take, step sizes would lose their digits.
Gradients that are sums over channels or rows come in whatever order its threads do, and differ in their last bits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.backend import found, missing
from hybridlm.ops.flops import count
from hybridlm.ops.selective_scan.reference import work

MODULE = "selective_scan_cuda"
MOST_STATES = 256


def lacks(x: Tensor, A: Tensor, state: Tensor | None, document: Tensor | None, zoh: bool) -> str | None:
    """Why the package cannot take a call; None if it can."""
    if not x.is_cuda:
        return "mamba_ssm needs a GPU"
    if missing(MODULE, "bwd") is not None:
        return "mamba_ssm is not installed with its compiled scan"
    if state is not None or document is not None:
        return "mamba_ssm's scan starts from zero and knows no documents"
    if zoh:
        return "mamba_ssm's scan discretises by Euler's rule only"
    if x.dtype == torch.float64 or A.shape[1] > MOST_STATES:
        return f"mamba_ssm's scan takes at most {MOST_STATES} states, in at most 32 bits"
    if x.shape[1] == 1:
        return "mamba_ssm's scan is taken for more than one token"
    if torch.are_deterministic_algorithms_enabled() and torch.is_grad_enabled():
        return "mamba_ssm's scan sums gradients in any order"
    return "mamba_ssm counts in 32 bits, and these are too many numbers" if x.numel() >= 2**31 else None


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
    zoh: bool,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    y, h, _ = _scan(x, dt.to(wide), A.to(wide), B, C, None if D is None else D.to(wide))
    return y, h


@torch.library.custom_op("hybridlm::mamba_ssm_selective_scan", mutates_args=())
def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """y (b, t, d), the last state (b, d, n), and what the backward pass keeps of the states in between."""
    with torch.cuda.device_of(x):
        y, states = found(MODULE, "fwd")(*_time_last(x, dt, A, B, C), D, None, None, False)[:2]
    return x.new_empty(x.shape).copy_(y.transpose(1, 2)), states[:, :, -1, 1::2].contiguous(), states


@_scan.register_fake
def _(x, dt, A, B, C, D):
    b, t, d = x.shape
    chunks = -(-t // 2048)
    return x.new_empty(x.shape), A.new_empty(b, *A.shape), A.new_empty(b, d, chunks, 2 * A.shape[1])


def _time_last(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """x, dt (b, d, t), A (d, n), B, C (b, 1, n, t), in the dtype of A."""
    x, dt, B, C = (_turned(v, A.dtype) for v in (x, dt, B, C))
    return x, dt, A.contiguous(), B[:, None], C[:, None]


def _turned(v: Tensor, dtype: torch.dtype) -> Tensor:
    """(b, t, d) -> (b, d, t), in one copy at most."""
    return v.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format).contiguous()


@torch.library.custom_op("hybridlm::mamba_ssm_selective_scan_backward", mutates_args=())
def _scan_backward(
    dy: Tensor,
    dh: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, the last one empty if D is None."""
    t, inputs, dy = x.shape[1], _time_last(x, dt, A, B, C), _turned(dy, A.dtype)
    with torch.cuda.device_of(x):
        if dh is not None:
            inputs, dy = _with_readers(*inputs), torch.cat([dy, dh.to(A.dtype)], dim=2)
            states = found(MODULE, "fwd")(*inputs, D, None, None, False)[1]
        given = (*inputs, D, None, None, dy, states, None, None, False, False)
        dx, ddt, dA, dB, dC, dD = found(MODULE, "bwd")(*given)[:6]
    by_token = zip((dx, ddt, dB.squeeze(1), dC.squeeze(1)), (x, dt, B, C), strict=True)
    dx, ddt, dB, dC = (like.new_empty(like.shape).copy_(v[..., :t].transpose(1, 2)) for v, like in by_token)
    return dx, ddt, dA, dB, dC, A.new_empty(0) if D is None else dD


@_scan_backward.register_fake
def _(dy, dh, x, dt, A, B, C, D, states):
    return tuple(v.new_empty(v.shape) for v in (x, dt, A, B, C, A[:0, 0] if D is None else D))


def _with_readers(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """The same and n more tokens, the i-th of which holds the state and reads its i-th number."""
    n = A.shape[1]
    readers = torch.eye(n, dtype=C.dtype, device=C.device).expand(*C.shape[:2], n, n)
    x, dt, B = (F.pad(v, (0, n)) for v in (x, dt, B))
    return x, dt, A, B, torch.cat([C, readers], dim=3)


def _keep(ctx, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _pull_back(ctx, dy: Tensor | None, dh: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, *_, D, _ = saved = ctx.saved_tensors  # read once: a checkpoint's cannot be read again
    *grads, dD = _scan_backward(x.new_zeros(x.shape) if dy is None else dy, dh, *saved)
    return *grads, None if D is None else dD


_scan.register_autograd(_pull_back, setup_context=_keep)
count(_scan, work, kept=True)
count(_scan_backward, lambda dy, dh, *inputs: 2 * work(*inputs))
