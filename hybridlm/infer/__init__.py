"""Inference: choosing tokens, generating with a state, and the `generate` command."""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "Decoder": "hybridlm.infer.decoder",
    "Sampler": "hybridlm.infer.sampling",
    "Stream": "hybridlm.infer.generate",
    "enlarge": "hybridlm.infer.generate",
    "release": "hybridlm.infer.graphs",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hybridlm.infer' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
