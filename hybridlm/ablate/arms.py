"""Arms: the baseline with changes by dotted path, as resolved specs with what each costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hybridlm.compose.cost import ModelCost, keeps_keys, model_cost
from hybridlm.compose.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What an arm costs, and how much of it is attention.

    params:                  entries of all parameters.
    flops_train:             FLOPs a token of forward and backward at the length of training.
    flops_infer:             FLOPs of the token that ends a document of `length` tokens.
    cache_bytes:             bytes of state of one row of `length` tokens in float32.
    length:                  of these two: what the match says, or the length of training.
    attention_of_layers:     layers that hold attention, as a share of all layers;
    attention_of_mixers:     mixers that keep keys and values, of all mixers;
    attention_of_parameters: their parameters, of all parameters.
    """

    params: int
    flops_train: float
    flops_infer: float
    cache_bytes: int
    length: int
    attention_of_layers: float
    attention_of_mixers: float
    attention_of_parameters: float


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One model of a study.

    name:        as the file gives it; of axes "ratio=3,placement=even".
    changes:     {dotted path: value}, what the file changes of the baseline.
    spec:        resolved: it says everything, matched widths too.
    coordinates: {axis: value}, numbers where the axis is numeric.
    cost:        what it costs.
    residual:    (its measure - the target) / target of the match; None without a match.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    spec: ModelSpec
    coordinates: Mapping[str, Any] = field(default_factory=dict)
    cost: ArmCost
    residual: float | None = None


def arm_cost(spec: ModelSpec, context: int, length: int) -> ArmCost:
    """The cost of a spec, trained on `context` tokens, asked at `length`. SpecError: as plan raises it."""
    cost = model_cost(spec)
    held = [[keeps_keys(mixer) for mixer in layer.mixers] for layer in cost.layers]
    return ArmCost(
        params=cost.parameters,
        flops_train=cost.training(context).total,
        flops_infer=cost.decoding(length).total,
        cache_bytes=cost.state(length).total,
        length=length,
        attention_of_layers=sum(map(any, held)) / len(held),
        attention_of_mixers=sum(map(sum, held)) / (sum(map(len, held)) or 1),
        attention_of_parameters=_attention(cost) / cost.parameters,
    )


def _attention(cost: ModelCost) -> int:
    return sum(layer.attention for layer in cost.layers)
