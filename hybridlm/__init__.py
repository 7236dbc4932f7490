"""hybridlm: one line of layer pattern in; a fast, cacheable, trainable hybrid language model out."""

from __future__ import annotations

import importlib
from typing import Any

from hybridlm.errors import CheckpointError, DataError, PatternError, SpecError, StateError, UnsupportedError

__version__ = "0.1.0"

_LAZY = {
    "build": "hybridlm.compose.build",
    "compile": "hybridlm.compose.compiled",
    "load": "hybridlm.compose.build",
    "save": "hybridlm.compose.build",
    "HybridLM": "hybridlm.compose.model",
    "Output": "hybridlm.compose.model",
    "ModelSpec": "hybridlm.compose.spec",
    "ModelState": "hybridlm.state",
    "LayerState": "hybridlm.state",
    "load_state": "hybridlm.state",
    "Context": "hybridlm.context",
    "Mixer": "hybridlm.layers.mixer",
    "generate": "hybridlm.infer.generate",
    "Stream": "hybridlm.infer",
    "Sampler": "hybridlm.infer",
    "mixers": "hybridlm.registry",
    "mlps": "hybridlm.registry",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "PatternError",
    "SpecError",
    "StateError",
    "UnsupportedError",
    "__version__",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used (PEP 562), so that `import hybridlm` is quick."""
    if name not in _LAZY:
        raise AttributeError(f"module 'hybridlm' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
