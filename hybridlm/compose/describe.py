"""Everything that `hybridlm describe` says of a model, as plain numbers and words.

`describe(cost, contexts)` gives one mapping, which is what `--json` prints and what the tables are made from. Its keys
are stable:

    format                     1; a larger number when a key changes its meaning
    pattern                    canonical text
    d_model, vocab_size, layers, tie_embeddings, dtype, batch; vocab_size is null where there are no tokens
    embed, head                what goes in and what comes out, as a spec says it
    parameters
        total                  what model.parameters() holds; tied and shared weights once
        active                 of those, what one token uses: less than total where tokens choose experts
        embedding, head, final_norm
        mixers, mlps, norms    of all layers
        places                 low-rank corrections of shared weights, and the ways to the next mixer
        attention              of those mixers that keep keys and values
    attention
        layers, mixers         how many hold or are attention; side by side, one layer has several mixers
        of_layers, of_mixers, of_parameters     the same as shares of the stack, of its mixers, of all parameters
        positions, why         "RoPE", "NoPE", "RoPE and NoPE" or null, and the reason
    kinds                      one entry for layers that are alike, in order of appearance
        block                  its text in the pattern
        count, layers          how many, and their indices from 0
        mixers, mlp, shared    registry names; the label of shared weights, or null
        options                what it does besides, as a spec says it: {norms, input, output, low_rank}; absent without
        parameters             of all `count` together
        at                     {context: costs} as below, of all `count` together
    embed_at, head_at          {context: costs} of the input layer and of the output matrix
    at                         {context: costs} of the whole model
        training_flops         a token, forward and backward: {matmul, scan, fft, total}
        decoding_flops         of the token that ends the context: {matmul, scan, fft, total}
        state_bytes            of `batch` rows in `dtype`: {kv, ssm, total}
        all_attention_bytes    (of the whole model) of the twin with full attention in the place of every mixer
    export                     added by the command
        as                     families of others that hold the model exactly, by how widely they are served
        misfits                {family: what it cannot say}, of the others; empty of what is no language model
        nearest                of these the one with the fewest misfits, or null

A context is written in decimal, as JSON keys are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hybridlm.compose.cost import BACKWARD, LayerCost, ModelCost, keeps_keys
from hybridlm.compose.memory import dtype_name
from hybridlm.compose.options import Options
from hybridlm.compose.plan import LayerPlan
from hybridlm.layers.cost import Cost, Flops, StateBytes

FORMAT = 1


def describe(cost: ModelCost, contexts: Sequence[int], *, batch: int = 1, dtype: torch.dtype = torch.float32) -> dict:
    """The mapping of the module's text, for states of `batch` rows in `dtype`."""
    spec = cost.stack.spec
    return {
        "format": FORMAT,
        "pattern": spec.pattern,
        "d_model": spec.d_model,
        "vocab_size": spec.vocab_size,
        "layers": len(cost.layers),
        "tie_embeddings": spec.tie_embeddings,
        "embed": spec.embed,
        "head": spec.head,
        "dtype": dtype_name(dtype),
        "batch": batch,
        "parameters": _parameters(cost),
        "attention": _attention(cost),
        "kinds": [_kind(cost, layer, count, contexts, batch, dtype) for layer, count in cost.kinds],
        "embed_at": {str(context): _costs(cost.embedding, context) for context in contexts},
        "head_at": {str(context): _costs(cost.head, context) for context in contexts},
        "at": {str(context): _model_costs(cost, context, batch, dtype) for context in contexts},
    }


def _parameters(cost: ModelCost) -> dict[str, int]:
    owners = [layer for layer in cost.layers if layer.first]
    return {
        "total": cost.parameters,
        "active": cost.active,
        "embedding": cost.embedding.parameters,
        "head": cost.head.parameters,
        "final_norm": cost.norm,
        "mixers": sum(mixer.parameters for layer in owners for mixer in layer.mixers),
        "mlps": sum(layer.mlp.parameters for layer in owners),
        "norms": sum(layer.norms for layer in owners),
        "places": sum(layer.place.parameters for layer in cost.layers),
        "attention": _attention_parameters(cost),
    }


def _attention_parameters(cost: ModelCost) -> int:
    return sum(mixer.parameters for layer in cost.layers if layer.first for mixer in layer.mixers if keeps_keys(mixer))


def _attention(cost: ModelCost) -> dict[str, Any]:
    held = [[keeps_keys(mixer) for mixer in layer.mixers] for layer in cost.layers]
    layers, mixers = sum(map(any, held)), sum(map(sum, held))
    positions, why = _positions(cost)
    return {
        "layers": layers,
        "mixers": mixers,
        "of_layers": layers / len(cost.layers),
        "of_mixers": mixers / (sum(map(len, held)) or 1),
        "of_parameters": _attention_parameters(cost) / cost.parameters,
        "positions": positions,
        "why": why,
    }


def _positions(cost: ModelCost) -> tuple[str | None, str]:
    """Which positions attention uses, and why."""
    rotary = _ropes(cost.stack.layers)
    if not rotary:
        return None, "no mixer of the stack has positions"
    words = {True: "RoPE", False: "NoPE"}
    if len(set(rotary.values())) > 1:
        said = ", ".join(f"{words[rope]} in {block}" for block, rope in rotary.items())
        return "RoPE and NoPE", f"the spec says so: {said}"
    rope = next(iter(rotary.values()))
    mixers = [part for layer in cost.stack.layers for part in layer.mixers]
    recurrent = sorted({part.type for part in mixers if part.cls.knows_order(part.config)})
    if rope == bool(recurrent):
        return words[rope], "the spec says so"
    if rope:
        return words[rope], "no mixer of the stack is recurrent, so attention is told the order"
    return words[rope], f"the order of the past reaches attention through {' and '.join(recurrent)}"


def _ropes(layers: Sequence[LayerPlan]) -> dict[str, bool]:
    """{text of a place: whether its mixer rotates}, for mixers that have the choice."""
    return {
        layer.name: part.config.rope
        for layer in layers
        for part in layer.mixers
        if "rope" in part.config.__dataclass_fields__
    }


def _kind(cost: ModelCost, layer: LayerCost, count: int, contexts: Sequence[int], batch: int, dtype: Any) -> dict:
    options = layer.plan.options.said(Options())
    alike = [(i, other) for i, other in enumerate(cost.layers) if other.plan.name == layer.plan.name]
    return {
        "block": layer.plan.name,
        "count": count,
        "layers": [i for i, _ in alike],
        "mixers": [part.type for part in layer.plan.mixers],
        "mlp": layer.plan.mlp.type if layer.plan.mlp else None,
        "shared": layer.plan.label,
        **({"options": options} if options else {}),
        "parameters": sum(other.parameters for _, other in alike),
        "at": {
            str(context): _costs(layer, context, count, layer.state(context, dtype, batch * count))
            for context in contexts
        },
    }


def _costs(cost: Cost | LayerCost, context: int, count: int = 1, state: StateBytes | None = None) -> dict[str, dict]:
    state = state or StateBytes()
    return {
        "training_flops": _flops(cost.forward(context, 0) * (BACKWARD * count / context)),
        "decoding_flops": _flops(cost.forward(1, context - 1) * count),
        "state_bytes": {"kv": state.kv, "ssm": state.ssm, "total": state.total},
    }


def _model_costs(cost: ModelCost, context: int, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    twin = cost.all_attention(context, dtype, batch)
    return {**_costs(cost, context, 1, cost.state(context, dtype, batch)), "all_attention_bytes": twin.total}


def _flops(flops: Flops) -> dict[str, int]:
    return {kind: round(getattr(flops, kind)) for kind in ("matmul", "scan", "fft", "total")}
