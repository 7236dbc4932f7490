"""Gradients of everything a subject holds, for a loss that weighs its outputs with fixed numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hybridlm.state import ModelState, map_layers
from hybridlm.testing.result import Result, holds, measured
from hybridlm.testing.subject import Subject


def losses(s: Subject) -> int:
    """How many losses to look at: in bf16 and fp16 several, as the gradient of one may cancel and leave roundings."""
    return 1 if s.exact else 6


def weighted(y: Tensor, count: int = 1) -> Tensor:
    """N(0, 1), (count, *y's shape), float64: losses sum(weights * y), which treat no direction specially."""
    generator = torch.Generator().manual_seed(6)
    return torch.randn(count, *y.shape, generator=generator, dtype=torch.float64).to(y.device)


def gradients(s: Subject, outputs: Callable[[], Tensor], weights: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """Of every parameter, and of the named inputs: d sum(w * outputs()) / d it for every loss w, (losses, ...)."""
    leaves = dict(s.module.named_parameters()) | inputs
    values, y = list(leaves.values()), outputs().double()
    found = [torch.autograd.grad((y * w).sum(), values, retain_graph=True, allow_unused=True) for w in weights]
    return {
        name: torch.stack([torch.zeros_like(leaf) if gradient is None else gradient for gradient in each])
        for (name, leaf), each in zip(leaves.items(), zip(*found, strict=True), strict=True)
    }


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
