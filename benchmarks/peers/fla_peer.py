"""flash-linear-attention: its ops take part in `ops`; none of its models mixes Mamba-2 with attention."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.architecture import Architecture
from benchmarks.peers import Peer
from hybridlm.ops import backend


def missing() -> str | None:
    """Why it cannot take part."""
    return backend.missing("fla.ops.simple_gla", "chunk_simple_gla")


def build(architecture: Architecture, weights: dict[str, Tensor], device: str, dtype: torch.dtype) -> Peer:
    """NotImplementedError: there is nothing to build."""
    raise NotImplementedError("fla has no model of Mamba-2 and attention; see the command ops for its kernels")
