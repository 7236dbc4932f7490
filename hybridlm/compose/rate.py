"""Signals at another rate: the same continuous system, sampled with another step.

A mixer whose Config has a `time_scale` multiplies each dt by it in every call. Trained on 200 samples a second, given
100 with a scale of 2, it computes the same answers up to the error of the discretisation.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from hybridlm import checks
from hybridlm.compose.pattern import Block, parse
from hybridlm.compose.plan import Part, Stack, plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.errors import UnsupportedError
from hybridlm.registry import mixers

FIELD = "time_scale"


def at_time_scale(spec: ModelSpec, factor: float) -> ModelSpec:
    """A resolved spec with this time scale in every mixer.

    UnsupportedError names the layers that mix steps without a dt of their own; SpecError: no positive number.
    """
    factor = checks.real(FIELD, factor, 1e-6, 1e6)
    _require_steps(plan(spec))
    pattern = parse(spec.pattern, names=list(spec.blocks))
    blocks = {name: _scaled(block, factor) for name, block in spec.blocks.items()}
    return plan(dataclasses.replace(spec, pattern=str(pattern.map(_without_override)), blocks=blocks)).spec


def has_step(part: Part) -> bool:
    """Whether a mixer has a dt that can be scaled."""
    return FIELD in type(part.config).__dataclass_fields__


def _require_steps(stack: Stack) -> None:
    without: dict[str, list[int]] = {}
    for i, layer in enumerate(stack.layers):
        for part in layer.mixers:
            if not has_step(part):
                without.setdefault(part.type, []).append(i)
    if without:
        layers = "; ".join(f"{name} in {_listed(at)}" for name, at in without.items())
        fields = {line.name: line.part.Config.__dataclass_fields__ for line in mixers.listing() if line.part}
        can = [name for name, known in fields.items() if FIELD in known]
        raise UnsupportedError(
            f"{FIELD}: {layers}: these count tokens, not time, and cannot read a signal at another rate; of the mixers "
            f"here {', '.join(can) or 'none'} can"
        )


def _listed(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:8]))
    return f"layer{'s' * (len(layers) > 1)} {shown}{', ...' * (len(layers) > 8)}"


def _scaled(block: dict[str, Any], factor: float) -> dict[str, Any]:
    """A resolved block with the scale in its mixer; an MLP alone as it is."""
    return {**block, "mixer": {**block["mixer"], FIELD: factor}} if isinstance(block["mixer"], dict) else block


def _without_override(block: Block) -> Block:
    """The block without a time scale of this place alone."""
    return dataclasses.replace(block, override={key: value for key, value in block.override.items() if key != FIELD})
