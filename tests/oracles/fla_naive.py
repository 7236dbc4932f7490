"""The naive references of flash-linear-attention, which are plain PyTorch, each loaded from its file alone.

The package itself imports Triton, which a CPU has not.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import distribution
from types import ModuleType


def naive(op: str) -> ModuleType:
    """fla/ops/OP/naive.py of the installed fla-core: naive("gla").naive_recurrent_gla."""
    path = distribution("fla-core").locate_file(f"fla/ops/{op}/naive.py")
    spec = importlib.util.spec_from_file_location(f"fla_naive_{op.replace('/', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
