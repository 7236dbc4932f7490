"""Granite 4: Mamba-2 or attention, and SwiGLU in every layer. The best default for a hybrid of the two."""

from __future__ import annotations

from typing import Any

from hybridlm.compose.pattern import compact
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import (
    QKVO,
    even_heads,
    gated_norms,
    head_scale,
    mamba2_weights,
    no_qk_norm,
    norm,
    read_chunk,
    rope,
    rope_theta,
    unlimited_steps,
    unscaled,
    whole_expand,
    whole_heads,
)
from hybridlm.export.family import Family, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import (
    Half,
    allowed,
    mixed,
    mixer_halves,
    mlp_halves,
    of_type,
    outer,
    pairs,
    plain,
    present,
    unpaired,
)
from hybridlm.export.weights import Weight, renamed

KINDS = {"mamba2": "mamba", "attention": "attention"}  # the names that llama.cpp knows; transformers maps them on
LAYERS = {"mamba": "M", "linear_attention": "M", "attention": "A", "full_attention": "A"}


class GraniteHybrid(Family):
    """IBM Granite 4 (GraniteMoeHybrid) without experts: what remains of the MLP is its shared one."""

    name, model_type, architecture = "granite_hybrid", "granitemoehybrid", "GraniteMoeHybridForCausalLM"
    served_by = ("vLLM", "SGLang", "llama.cpp", "transformers")

    def in_llama_cpp(self, stack: Stack) -> bool:
        return not any(half.config.rope for half in of_type(mixer_halves(stack), "attention"))

    def misfits(self, stack: Stack) -> list[str]:
        if said := outer(stack) + plain(stack):
            return said
        mixers, mlps = mixer_halves(stack), mlp_halves(stack)
        wrong = allowed(mixers, KINDS, "mixer") + allowed(mlps, ["swiglu"], "MLP")
        if wrong := wrong + unpaired(stack):
            return wrong
        attention, mamba = of_type(mixers, "attention"), of_type(mixers, "mamba2")
        return [
            *present(mamba, "mamba2", "the family is for hybrids"),
            *present(attention, "attention", "transformers cannot cache a stack without"),
            *even_heads(attention, stack.spec.d_model),
            *no_qk_norm(attention),
            *whole_heads(attention),
            *gated_norms(mamba),
            *whole_expand(mamba),
            *mixed(mixers),
            *mixed(mlps),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        layers = pairs(stack)
        width = layers[0][1].config.width
        return {
            "num_hidden_layers": len(layers),
            "layer_types": [KINDS[mixer.type] for mixer, _ in layers],
            "hidden_act": "silu",
            "intermediate_size": width,
            "shared_intermediate_size": width,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "rms_norm_eps": stack.spec.norm_eps,
            "max_position_embeddings": max_length,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
            **_attention(stack),
            **_mamba2(stack),
        }

    def weights(self, stack: Stack) -> list[Weight]:
        found = ends(stack, embed="model.embed_tokens.weight", norm="model.norm.weight")
        for i, (mixer, mlp) in enumerate(pairs(stack)):
            found += _layer(f"model.layers.{i}.", mixer, mlp)
        return found

    def spec(self, fields: Fields) -> ModelSpec:
        unscaled(fields)
        fields.must("num_local_experts", 0, default=8)
        fields.must("hidden_act", "silu", "swish")
        fields.neutral("num_experts_per_tok", "intermediate_size")
        depth, kinds = fields.take("num_hidden_layers", kind=int), fields.several("layer_types", [])
        return _hybrid(fields, depth, kinds)


def _attention(stack: Stack) -> dict[str, Any]:
    heads = of_type(mixer_halves(stack), "attention")[0].config
    return {
        "num_attention_heads": heads.heads,
        "num_key_value_heads": heads.kv_heads,
        "attention_multiplier": heads.head_dim**-0.5,
        "position_embedding_type": "rope" if heads.rope else "nope",
        "attention_bias": False,
        **(rope(heads.rope_theta) if heads.rope else {}),
    }


def _mamba2(stack: Stack) -> dict[str, Any]:
    found = of_type(mixer_halves(stack), "mamba2")
    config, d = found[0].config, stack.spec.d_model
    return {
        "mamba_n_heads": config.heads(d),
        "mamba_d_head": config.head_dim,
        "mamba_n_groups": config.n_groups,
        "mamba_d_state": config.d_state,
        "mamba_d_conv": config.d_conv,
        "mamba_expand": int(config.expand),
        "mamba_chunk_size": config.chunk,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
    }


def _layer(theirs: str, mixer: Half, mlp: Half) -> list[Weight]:
    own = (
        mamba2_weights(f"{theirs}mamba.", mixer)
        if mixer.type == "mamba2"
        else renamed(f"{theirs}self_attn.", mixer.prefix, QKVO)
    )
    both = (f"{mlp.prefix}gate_proj.weight", f"{mlp.prefix}up_proj.weight")
    return [
        norm(f"{theirs}input_layernorm", mixer),
        *own,
        norm(f"{theirs}post_attention_layernorm", mlp),
        Weight(f"{theirs}shared_mlp.input_linear.weight", both),
        Weight(f"{theirs}shared_mlp.output_linear.weight", (f"{mlp.prefix}down_proj.weight",)),
    ]


# -------------------------------------------------------------------------------------------------------------- reading
def _hybrid(fields: Fields, depth: int | None, kinds: list[str]) -> ModelSpec:
    d, heads = fields.take("hidden_size", kind=int), fields.take("num_attention_heads", kind=int)
    if unknown := [kind for kind in kinds if kind not in LAYERS]:
        fields.refuse(f"layer_types: {unknown[0]!r}; known: {', '.join(LAYERS)}")
    if depth is not None and len(kinds) != depth:
        fields.refuse(f"layer_types: {len(kinds)} of them, and num_hidden_layers: {depth}")
    blocks = {"M": {"mixer": read_mamba2(fields, d)}, "A": {"mixer": _read_attention(fields, d, heads)}}
    given = {
        "d_model": d,
        "vocab_size": fields.take("vocab_size", kind=int),
        "pattern": compact([LAYERS.get(kind, "M") for kind in kinds]),
        "blocks": blocks,
        "mlp": {"type": "swiglu", "width": fields.take("shared_intermediate_size", 1024, int)},
        "norm_eps": fields.take("rms_norm_eps", 1e-6, float),
        "tie_embeddings": fields.take("tie_word_embeddings", False, bool),
    }
    fields.done()
    return ModelSpec.from_dict(given)


def _read_attention(fields: Fields, d: int | None, heads: int | None) -> dict[str, Any]:
    fields.must("attention_bias", False)
    rotary = fields.take("position_embedding_type", "nope") == "rope"
    fields.must("position_embedding_type", "rope", "nope", default="nope")
    theta = rope_theta(fields)
    head_scale(fields, d, heads)
    return {
        "type": "attention",
        "heads": heads,
        "kv_heads": fields.take("num_key_value_heads", heads, int),
        "head_dim": d // heads if d and heads else None,
        "rope": rotary,
        "rope_theta": theta,
    }


def read_mamba2(fields: Fields, d: int | None) -> dict[str, Any]:
    """The mamba2 mixer of a config whose fields begin with mamba_."""
    expand, heads = fields.take("mamba_expand", 2, (int, float)), fields.whole("mamba_n_heads", 128)
    fields.must("mamba_conv_bias", True)
    fields.must("mamba_proj_bias", False)
    unlimited_steps(fields)
    width = fields.take("mamba_d_head", "auto", (int, str))
    return {
        "type": "mamba2",
        "expand": expand,
        "head_dim": int(expand * (d or 0)) // heads if width == "auto" else width,
        "n_groups": fields.take("mamba_n_groups", 1, int),
        "d_state": fields.take("mamba_d_state", 256, int),
        "d_conv": fields.take("mamba_d_conv", 4, int),
        "chunk": read_chunk(fields, "mamba_chunk_size"),
    }


FAMILY = GraniteHybrid()
