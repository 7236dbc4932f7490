"""Gradients of everything a subject holds, for a loss that weighs its outputs with fixed numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hybridlm.state import ModelState, map_layers
from hybridlm.testing.result import Result, holds, measured
from hybridlm.testing.subject import Subject


def weighted(s: Subject, y: Tensor) -> Tensor:
    """N(0, 1) of y's shape, float64: a loss sum(weights * y) treats no direction specially."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64).to(s.device)


def gradients(s: Subject, outputs: Callable[[], Tensor], weights: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """Of every parameter, and of the named inputs: d sum(weights * outputs()) / d it; zeros where it has no part."""
    leaves = dict(s.module.named_parameters()) | inputs
    loss = (outputs().double() * weights).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    pairs = zip(leaves.items(), found, strict=True)
    return {name: torch.zeros_like(leaf) if gradient is None else gradient for (name, leaf), gradient in pairs}


def filled(state: ModelState, tensors: list[Tensor]) -> ModelState:
    """A fork of the state that holds these tensors instead of its own, in order."""
    left = iter(tensors)
    layers = map_layers(state.layers, lambda leaf: type(leaf)(**{name: next(left) for name in leaf.tensors()}))
    return ModelState(layers, state.cursor.fork(), state.max_length, state.fingerprint)


def compare(case: str, got: dict[str, Tensor], want: dict[str, Tensor], limit: float) -> Iterator[Result]:
    """Gradients by name; one that is zero must be exactly so."""
    for name, reference in want.items():
        if reference.any():
            yield measured(f"{case}: {name}", got[name][None], reference[None], limit)
        else:
            yield holds(f"{case}: {name}", not got[name].any(), "a gradient where there is none")
