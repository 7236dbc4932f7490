"""What each branch of a trained model contributes: the same model without it.

A branch is a mixer: an attention layer, a state space, one of several side by side. Its contribution to the residual
stream is zeroed, or replaced by its mean over all held-out tokens, which keeps what it adds whatever it reads
(Meyes et al. 2019, arXiv:1901.08644; Wang et al. 2022, arXiv:2211.00593, section 2.1).

    {"0.mamba2.zero": metrics, "0.mamba2.mean": metrics, "1.attention.zero": ...}     layer from 0, mixer, how
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hybridlm.ablate.measure import HeldOut, measure
from hybridlm.ablate.results import Metrics
from hybridlm.compose.model import HybridLM
from hybridlm.compose.plan import plan

Replace = Callable[[Tensor, Tensor | None], Tensor]
"""What a mixer gives (b, t, d), and which of its tokens are real (b, t; None: all) -> what takes its place."""


def knockouts(model: HybridLM, held_out: HeldOut) -> dict[str, Metrics]:
    """The held-out metrics without each branch in turn, by the names above; a second mixer of a kind is kind#2."""
    found: dict[str, Metrics] = {}
    for name, (layer, mixer) in branches(model).items():
        for how, replaced in (("zero", _nothing), ("mean", _always(_mean(model, layer, mixer, held_out)))):
            with _in_place_of(model, layer, mixer, replaced):
                found[f"{name}.{how}"] = measure(model, held_out)
    return found


def branches(model: HybridLM) -> dict[str, tuple[int, nn.Module]]:
    """{"layer.mixer": (layer, the mixer)} from the bottom up."""
    found: dict[str, tuple[int, nn.Module]] = {}
    for i, layer in enumerate(plan(model.spec).layers):
        kinds = [part.type for part in layer.mixers]
        for j, mixer in enumerate(model.blocks[i].mixers.values()):
            nth = kinds[: j + 1].count(kinds[j])
            found[f"{i}.{kinds[j]}" + (f"#{nth}" if nth > 1 else "")] = (i, mixer)
    return found


@contextmanager
def _in_place_of(model: HybridLM, layer: int, mixer: nn.Module, replaced: Replace) -> Iterator[None]:
    """Within the block, what a mixer gives is replaced, in its layer alone: shared weights act elsewhere as ever."""
    here = [False]

    def enter(*_: object) -> None:
        here[0] = True

    def leave(*_: object) -> None:
        here[0] = False

    def act(_mixer: nn.Module, given: tuple, output: tuple) -> tuple | None:
        y, state = output
        return (replaced(y, given[2].valid), state) if here[0] else None

    block = model.blocks[layer]
    hooks = [
        block.register_forward_pre_hook(enter),
        mixer.register_forward_hook(act),
        block.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _mean(model: HybridLM, layer: int, mixer: nn.Module, held_out: HeldOut) -> Tensor:
    """(d,) the mean of what a branch gives over all held-out tokens, pads left out."""
    total, count = torch.zeros((), dtype=torch.float64), 0

    def add(y: Tensor, valid: Tensor | None) -> Tensor:
        nonlocal total, count
        real = y.flatten(0, 1) if valid is None else y[valid]
        total, count = total + real.double().sum(dim=0).cpu(), count + len(real)
        return y

    with _in_place_of(model, layer, mixer, add):
        measure(model, held_out)
    return total / max(1, count)


def _always(mean: Tensor) -> Replace:
    return lambda y, valid: mean.to(y).expand_as(y)


def _nothing(y: Tensor, valid: Tensor | None) -> Tensor:
    return torch.zeros_like(y)
