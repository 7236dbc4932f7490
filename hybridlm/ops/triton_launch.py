"""Small kernels one after the other without the gap between them, which in decoding is most of their time.

On Hopper and later a kernel may be launched while the one before it still runs (programmatic dependent launch, CUDA
Programming Guide, section 4.5): its programs come to their places early, and wait there. A kernel that takes part says
`queue(QUEUED)` before it touches memory, and is launched with `**queued(x)`. Nothing is read or written ahead of its
time: what `queue` waits for is that the kernel before has ended and its writes are seen.
"""

from functools import cache

import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.backend import from_hopper


@triton.jit
def queue(QUEUED: tl.constexpr):
    """Wait for the kernel before this one to end; then let the one after it be launched."""
    if QUEUED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def queued(x: Tensor) -> dict[str, bool]:
    """Options of the launch of a kernel that calls `queue`."""
    return {"QUEUED": True, "launch_pdl": True} if x.is_cuda and _can() else {"QUEUED": False}


@cache
def _can() -> bool:
    """Whether the GPU and this Triton know of it."""
    return from_hopper() and hasattr(tl.extra.cuda, "gdc_wait")
