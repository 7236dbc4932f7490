"""State space duality in Triton: chunks as attention, and a state that walks from chunk to chunk.

1. Where rows are long and few: segments of theirs, as rows (triton_segments.py).
2. What decays, in every chunk (triton_states.py).
3. Where rows and heads fill a GPU, one walk that gives y on its way (triton_scan.py). Elsewhere a walk that stores the
   state before each chunk, and y of all chunks at once, heads sharing C B^T (triton_read.py).

Dao and Gu 2024, section 6. Nothing but its inputs is kept for the backward (triton_backward.py).
"""

import torch
from torch import Tensor

from hybridlm.ops.backend import INTERPRETING, triton_lacks
from hybridlm.ops.ssd import triton_backward
from hybridlm.ops.ssd.derivative import register
from hybridlm.ops.ssd.triton_read import read
from hybridlm.ops.ssd.triton_scan import scan
from hybridlm.ops.ssd.triton_segments import entering, fold, fold_documents, unfold
from hybridlm.ops.ssd.triton_states import Tuning, sizes, states, steps, tuning

DTYPES = (torch.bfloat16, torch.float32)


def lacks(x: Tensor, B: Tensor, C: Tensor) -> str | None:
    """Why the kernels cannot take this call; None if they can."""
    if x.dtype not in DTYPES or not x.dtype == B.dtype == C.dtype:
        return "x, B and C have to be of one dtype, bfloat16 or float32"
    if x.shape[3] > 128 or B.shape[3] > 256:
        return "heads are wider than 128 or states longer than 256"
    if x.dtype == torch.float32 and B.shape[3] > 128:
        return "states in float32 are longer than 128"
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


register(_ssd, triton_backward.gradients)


def forward(x, dt, A, B, C, D, state, document, tuning: Tuning) -> tuple[Tensor, Tensor]:
    """y and the last state, cut as `tuning` says."""
    x, dt, B, C = (fold(v, tuning.segments) for v in (x, dt, B, C))
    document = fold_documents(document, tuning.segments)
    s = sizes(x, B, tuning.chunk)
    cuts = steps(dt, A, document, s)
    state = entering(x, B, cuts, None if state is None else state.float().contiguous(), s, tuning)
    if tuning.fused:
        y, last = scan(x, B, C, D, document, cuts, state, s, tuning)
    else:
        before, last = states(x, B, cuts, state, s, tuning)
        y = read(x, C, B, D, document, cuts, before, False, s, tuning)
    return unfold(y, tuning.segments), last[tuning.segments - 1 :: tuning.segments].contiguous()
