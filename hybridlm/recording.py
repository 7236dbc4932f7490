"""Whether a call is recorded, to be replayed on other numbers: nothing may then depend on those that are at hand.

That is so under torch.compile, while a CUDA graph is captured, and within `recording`, where the steps run that warm a
graph up, on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_recording = _fresh = False


@contextmanager
def recording(*, fresh: bool = False) -> Iterator[None]:
    """Within the block no call looks at numbers. fresh: every replay begins with an empty state."""
    global _recording, _fresh  # context variables would be cleaner, but torch.compile cannot trace one
    before = _recording, _fresh
    _recording, _fresh = True, fresh
    try:
        yield
    finally:
        _recording, _fresh = before


def recorded(x: Tensor) -> bool:
    """Whether a call on x must not look at numbers."""
    if torch.compiler.is_compiling() or _recording:
        return True
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def symbolic(size: int) -> bool:
    """Whether a size stands for all sizes, as in a program that is exported: nothing may then depend on which it is."""
    return isinstance(size, torch.SymInt)


def fresh() -> bool:
    """Whether every replay of what is recorded begins with an empty state."""
    return _fresh
