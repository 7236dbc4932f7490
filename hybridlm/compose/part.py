"""A mixer or an MLP with its numbers settled: what is built of it, which linear layers it has, what it costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hybridlm.errors import SpecError
from hybridlm.layers.cost import Cost, Flops
from hybridlm.layers.linear import Linear
from hybridlm.registry import Registry


@dataclass(frozen=True)
class Part:
    """A mixer or an MLP with its resolved config.

    reads, writes: width of its input and of its output. A mixer is made to write what it reads; where it shall write
                   less, its last projections are narrowed, which needs nothing of the mixer itself.
    said:          the fields of the config that the spec names; the others are defaults, and follow when these change.
    """

    type: str
    config: Any
    registry: Registry
    reads: int
    writes: int
    said: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def cls(self) -> type:
        """The class behind the name."""
        return self.registry.get(self.type)

    def to_dict(self) -> dict[str, Any]:
        """{type: ..., every field: ...}"""
        return {"type": self.type, **dataclasses.asdict(self.config)}

    def build(self, **options: Any) -> nn.Module:
        """The module."""
        module = self.cls(self.config, self.reads, **options)
        if self.writes != self.reads:
            _narrow(module, self.writes, self.reads)
        return module

    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Name and shape of each parameter."""
        return tuple((name, tuple(parameter.shape)) for name, parameter in _sketch(self).named_parameters())

    def readers(self) -> dict[str, nn.Linear]:
        """{path: a linear layer on the meta device} of all but those that write to the residual stream."""
        ends = {id(layer) for layer in writers(_sketch(self))}
        layers = {name: module for name, module in _sketch(self).named_modules() if isinstance(module, nn.Linear)}
        return {name: layer for name, layer in layers.items() if id(layer) not in ends}

    def cost(self) -> Cost:
        """What it says of itself, less what narrowing took off."""
        cost = self.cls.cost(self.config, self.reads)
        if self.writes == self.reads:
            return cost
        more = (self.reads - self.writes) / self.writes  # rows taken off for each that is left
        ends = [(layer.in_features, round(more * layer.out_features), layer.bias) for layer in writers(_sketch(self))]
        matrices = sum(width * rows for width, rows, _ in ends)
        biases = sum(rows for _, rows, bias in ends if bias is not None)
        return dataclasses.replace(
            cost,
            parameters=cost.parameters - matrices - biases,
            forward=lambda tokens, past: cost.forward(tokens, past) + Flops(matmul=-2 * tokens * matrices),
        )


@functools.lru_cache(maxsize=256)
def _sketch(part: Part) -> nn.Module:
    """The module, without memory."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return part.build()


def writers(module: nn.Module) -> list[nn.Module]:
    """The projections in it that write to the residual stream."""
    return [getattr(inner, name) for inner in module.modules() for name in getattr(inner, "residual_projections", ())]


def _narrow(mixer: nn.Module, writes: int, reads: int) -> None:
    """Let its last projections write `writes` of every `reads` rows (S4's has two for each channel)."""
    name = type(mixer).__name__
    if not mixer.residual_projections:
        raise SpecError(f"{name} names no residual_projections, so what it writes cannot be made narrower")
    for end in mixer.residual_projections:
        wide = getattr(mixer, end)
        if type(wide) not in (Linear, nn.Linear) or wide.out_features * writes % reads:
            raise SpecError(f"{name}.{end} is no linear layer of {reads} rows, so it cannot be made narrower")
        layer = Linear(wide.in_features, wide.out_features * writes // reads, bias=wide.bias is not None)
        setattr(mixer, end, layer.to(wide.weight))
