"""State space duality by the mamba_ssm package: Dao and Gu's own kernels, called at the level of functions.

Its `seq_idx` means what `document` means here: it starts at 0, which is the number that goes on from the state before
the first token, and whatever passes a change of number is multiplied by an exact zero, forward and backward.
It is taken in bfloat16 only: it rounds the factors of float32 products to TF32, and keeps the states between chunks in
the dtype of C, where those of float16 overflow. The last state is kept in float32, but its gradient is not.
"""

import torch
from torch import Tensor

from hybridlm.ops.backend import found, missing
from hybridlm.ops.ssd.derivative import register

COMBINED = "mamba_ssm.ops.triton.ssd_combined"
CHUNK = 256  # the fastest of its chunks
WIDEST = 256


def lacks(x: Tensor, B: Tensor, C: Tensor) -> str | None:
    """Why the package cannot take these; None if it can."""
    if not x.is_cuda:
        return "mamba_ssm needs a GPU"
    if (why := missing(COMBINED, "_mamba_chunk_scan_combined_bwd")) is not None:
        return why
    if not x.dtype == B.dtype == C.dtype == torch.bfloat16:
        return "mamba_ssm is taken in bfloat16 only: in float32 it computes in TF32"
    if x.shape[1] == 1:
        return "mamba_ssm's chunk scan is taken for more than one token"
    if max(x.shape[-1], B.shape[-1]) > WIDEST:
        return f"mamba_ssm is taken for heads and states of at most {WIDEST}"
    return "mamba_ssm counts in 32 bits, and these are too many numbers" if _largest(x, B, C) >= 2**31 else None


def _largest(x: Tensor, B: Tensor, C: Tensor) -> int:
    """The longest way from the first number of a tensor to its last, among the inputs and what is kept of chunks."""
    b, t, h, p = x.shape
    states, scores = h * p * B.shape[-1], B.shape[2] * CHUNK * CHUNK
    return max(*(v.stride(0) * (b - 1) + v.stride(1) * t for v in (x, B, C)), b * -(-t // CHUNK) * max(states, scores))


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    D, state = (v if v is None else v.to(wide) for v in (D, state))
    document = None if document is None else document.to(torch.int32)
    return _ssd(x, dt.to(wide), A.to(wide), B, C, D, state, document)


@torch.library.custom_op("hybridlm::mamba_ssm_ssd", mutates_args=())
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
    scan = found(COMBINED, "_mamba_chunk_scan_combined_fwd")
    with torch.cuda.device_of(x):
        y, *_, H = scan(x, dt, A, B, C, CHUNK, D=D, initial_states=state, seq_idx=document)
    return y, H


@torch.library.custom_op("hybridlm::mamba_ssm_ssd_backward", mutates_args=())
def _ssd_backward(
    dy: Tensor,
    dH: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    document: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, state; empty for what is None."""
    scan = found(COMBINED, "_mamba_chunk_scan_combined_bwd")
    rest = {"D": D, "initial_states": state, "dfinal_states": dH, "seq_idx": document}
    with torch.cuda.device_of(x):  # the outputs, for which x stands in, matter to its gates only
        dx, ddt, dA, dB, dC, dD, _, _, dstate = scan(dy, x, dt, A, B, C, x, CHUNK, **rest)
    dD = A.new_empty(0) if D is None else dD
    dstate = A.new_empty(0) if state is None else dstate.to(state.dtype)
    return *(v.contiguous() for v in (dx, ddt, dA, dB, dC)), dD, dstate.contiguous()


@_ssd_backward.register_fake
def _(dy, dH, x, dt, A, B, C, D, state, document):
    inputs = (x, dt, A, B, C, A[:0] if D is None else D, A[:0] if state is None else state)
    return tuple(v.new_empty(v.shape) for v in inputs)


register(_ssd, _ssd_backward)
