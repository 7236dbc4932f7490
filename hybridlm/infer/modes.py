"""How a model is while it writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hybridlm.compose.model import HybridLM


@contextmanager
def evaluating(model: HybridLM) -> Iterator[None]:
    """Dropout is off within; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def uncached_casts() -> Iterator[None]:
    """Within it autocast casts a weight whenever it is used, so that a replay sees what the weight is then."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
