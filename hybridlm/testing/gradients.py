"""Gradients of everything a subject holds, for a loss that weighs its outputs with fixed numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hybridlm.state import ModelState, map_layers
from hybridlm.testing.result import Result, distance, holds, measured
from hybridlm.testing.subject import Subject


def losses(s: Subject) -> int:
    """How many losses to look at: in bf16 and fp16 several, as the gradient of one may cancel and leave roundings."""
    return 1 if s.exact else 6


def weighted(y: Tensor, count: int = 1) -> Tensor:
    """N(0, 1), (count, *y's shape), float64: losses sum(weights * y), which treat no direction specially."""
    generator = torch.Generator().manual_seed(6)
    return torch.randn(count, *y.shape, generator=generator, dtype=torch.float64).to(y.device)


def gradients(s: Subject, outputs: Tensor, weights: Tensor, **inputs: Tensor) -> dict[str, Tensor]:
    """Of every parameter, and of the named inputs: d sum(w * outputs) / d it for every loss w, (losses, ...)."""
    leaves = dict(s.module.named_parameters()) | inputs
    values, y = list(leaves.values()), outputs.double()
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


def compare(case: str, s: Subject, run: Callable[[Subject, bool], dict[str, Tensor]], limit: float) -> Iterator[Result]:
    """run(subject, plain) gives gradients by name: those of s against those of its twin in float64, within 4 limits.

    A gradient may cancel almost to nothing (the scale of what is normalised next), and be mostly rounding in any
    implementation. Such a one may be twice as far off as plain PyTorch in the same dtype, which goes step by step; that
    of kernels, four times.
    """
    twin = s.twin(torch.float64, "reference")
    twin.scene = s.scene.double()
    got, wanted, plain = run(s, False), run(twin, False), {}
    for name, want in wanted.items():
        if not want.any():
            yield holds(f"{case}: {name}", not got[name].any(), "a gradient where there is none")
            continue
        result = measured(f"{case}: {name}", got[name][None], want[None], 4 * limit)
        if result.verdict == "failed":
            plain = plain or run(s.twin(backend="reference"), True)
            slack = (4 if s.kernels else 2) * distance(plain[name][None], want[None])[0]
            result = measured(f"{case}: {name}", got[name][None], want[None], max(4 * limit, slack))
        yield result
