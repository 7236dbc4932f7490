"""Granite with windows: full and sliding attention in any order, positions layer by layer, then SwiGLU."""

from __future__ import annotations

from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS, compact
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.llama import decoder, layer_weights, not_decoder
from hybridlm.export.families.parts import (
    cached_windows,
    even_heads,
    head_scale,
    no_qk_norm,
    rope,
    rope_theta,
    unscaled,
    whole_heads,
)
from hybridlm.export.family import Family, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import Half, mixed, mixer_halves, mlp_halves, once, pairs
from hybridlm.export.weights import Weight

KINDS = {"attention": "full_attention", "sliding_window": "sliding_attention"}
SILENT = -1e4
"""The sink of a head: one more logit, whose value is zero. This one takes nothing from the softmax."""


class GraniteSWA(Family):
    """IBM Granite with sliding windows and attention sinks, which are switched off here."""

    name, model_type, architecture = "granite_swa", "granite_swa", "GraniteSWAForCausalLM"
    served_by = ("vLLM", "transformers")

    def misfits(self, stack: Stack) -> list[str]:
        if said := not_decoder(stack, *KINDS):
            return said
        mixers = mixer_halves(stack)
        return [
            *even_heads(mixers, stack.spec.d_model),
            *no_qk_norm(mixers),
            *whole_heads(mixers),
            *cached_windows([half for half in mixers if half.type == "sliding_window"]),
            *_uneven(mixers),
            *mixed(mixers, but=("heads", "kv_heads", "head_dim", "rope", "rope_theta")),
            *mixed(mlp_halves(stack)),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        layers = pairs(stack)
        heads, mlp = (half.config for half in layers[0])
        windows = [mixer.config.window for mixer, _ in layers if mixer.type == "sliding_window"]
        bases = [mixer.config.rope_theta if mixer.config.rope else 0 for mixer, _ in layers]
        return {
            "num_hidden_layers": len(layers),
            "layer_types": [KINDS[mixer.type] for mixer, _ in layers],
            "sliding_window": windows[0] if windows else max_length,  # it has to be a number
            "layer_rope_theta": bases,
            "intermediate_size": mlp.width,
            "num_attention_heads": heads.heads,
            "num_key_value_heads": heads.kv_heads,
            "attention_multiplier": heads.head_dim**-0.5,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
            "attention_bias": False,
            "mlp_bias": False,
            "hidden_act": "silu",
            "max_position_embeddings": max_length,
            "rms_norm_eps": stack.spec.norm_eps,
            **rope(next((base for base in bases if base), 10000.0)),
        }

    def weights(self, stack: Stack) -> list[Weight]:
        found = ends(stack, embed="model.embed_tokens.weight", norm="model.norm.weight")
        for i, (mixer, mlp) in enumerate(pairs(stack)):
            sinks = Weight(f"model.layers.{i}.self_attn.sinks", shape=(mixer.config.heads,), value=SILENT)
            found += [*layer_weights(f"model.layers.{i}.", mixer, mlp), sinks]
        return found

    def spec(self, fields: Fields) -> ModelSpec:
        unscaled(fields)
        fields.must("attention_bias", False)
        fields.must("mlp_bias", False)
        heads = fields.take("num_attention_heads", kind=int)
        head_scale(fields, fields.take("hidden_size", kind=int), heads)
        shared = {"heads": heads, "kv_heads": fields.take("num_key_value_heads", heads, int)}
        shared["head_dim"] = fields.take("hidden_size", 0, int) // (heads or 1) or None
        pattern, blocks = _layers(fields, shared)
        return decoder(fields, pattern, blocks, eps=1e-5, tied=True)


def _uneven(mixers: list[Half]) -> list[str]:
    """Layers of both kinds have the same heads."""
    found = once(f"{half.config.heads} on {half.config.kv_heads}" for half in mixers)
    return [] if len(found) == 1 else [f"heads, kv_heads: {', '.join(found)}; every layer has the same ones there"]


def _layers(fields: Fields, shared: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Pattern and blocks: one of each kind and base of positions."""
    depth = fields.whole("num_hidden_layers", 24, high=MAX_LAYERS)
    every_fourth = [KINDS["sliding_window" if i % 4 else "attention"] for i in range(depth)]
    types = fields.several("layer_types", every_fourth)
    bases = fields.several("layer_rope_theta", [rope_theta(fields)] * len(types), (int, float))
    window = fields.take("sliding_window", 128, int)
    if unknown := [kind for kind in types if kind not in KINDS.values()]:
        fields.refuse(f"layer_types: {unknown[0]!r}; known: {', '.join(KINDS.values())}")
    if not len(types) == len(bases) == depth:
        fields.refuse(f"layer_types, layer_rope_theta: {len(types)} and {len(bases)}; num_hidden_layers: {depth}")
    names: dict[tuple[str, float], str] = {}
    blocks = {}
    for kind, base in zip(types, bases, strict=False):
        letter = "A" if kind == KINDS["attention"] else "W"
        alike = sum(name.startswith(letter) for name in names.values())
        name = names.setdefault((kind, base), f"{letter}{alike}" if alike else letter)
        mixer = {"type": "attention"} if letter == "A" else {"type": "sliding_window", "window": window}
        rotary = {"rope": True, "rope_theta": base} if base else {"rope": False}
        blocks[name] = {"mixer": {**mixer, **shared, **rotary}}
    return compact([names[pair] for pair in zip(types, bases, strict=False)]), blocks


FAMILY = GraniteSWA()
