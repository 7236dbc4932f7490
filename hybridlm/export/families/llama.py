"""Llama: attention over everything with rotary positions, then SwiGLU, in every layer. Served by everything."""

from __future__ import annotations

from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import GATED, QKVO, no_qk_norm, norm, rope, rope_theta, whole_heads
from hybridlm.export.family import Family, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import Half, allowed, mixed, mixer_halves, mlp_halves, needed, outer, pairs, plain, unpaired
from hybridlm.export.weights import Weight, renamed


class Llama(Family):
    """Touvron et al. 2023 (arXiv:2302.13971), with the grouped keys of Llama 2."""

    name, model_type, architecture = "llama", "llama", "LlamaForCausalLM"
    served_by = ("vLLM", "SGLang", "llama.cpp", "transformers")

    def misfits(self, stack: Stack) -> list[str]:
        if said := not_decoder(stack, "attention"):
            return said
        mixers = mixer_halves(stack)
        return [
            *not_rotary(mixers),
            *needed(mixers, lambda c: stack.spec.d_model % c.heads == 0, "heads: it has to divide d_model there"),
            *mixed(mixers),
            *mixed(mlp_halves(stack)),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        return {**said_of_decoder(stack, max_length), "attention_bias": False, "mlp_bias": False}

    def weights(self, stack: Stack) -> list[Weight]:
        return decoder_weights(stack)

    def spec(self, fields: Fields) -> ModelSpec:
        fields.must("attention_bias", False)
        fields.must("mlp_bias", False)
        heads = {**read_heads(fields), "type": "attention"}
        return decoder(fields, f"A{fields.whole('num_hidden_layers', high=MAX_LAYERS)}", {"A": {"mixer": heads}})


# ------------------------------------------------------------------------------------------ of Llama, and its relatives
def not_decoder(stack: Stack, *mixers: str) -> list[str]:
    """What is not one of these mixers and SwiGLU in every layer."""
    if said := outer(stack) + plain(stack):
        return said
    wrong = allowed(mixer_halves(stack), mixers, "mixer") + allowed(mlp_halves(stack), ["swiglu"], "MLP")
    return wrong + unpaired(stack)


def not_rotary(mixers: list[Half]) -> list[str]:
    """Where heads have no rotary positions, or something else besides."""
    return [
        *needed(mixers, lambda c: c.rope, "rope: false; every layer has rotary positions there"),
        *no_qk_norm(mixers),
        *whole_heads(mixers),
    ]


def said_of_decoder(stack: Stack, max_length: int) -> dict[str, Any]:
    """config.json of a stack whose layers are all alike."""
    layers = pairs(stack)
    heads, mlp = (half.config for half in layers[0])
    return {
        "num_hidden_layers": len(layers),
        "intermediate_size": mlp.width,
        "num_attention_heads": heads.heads,
        "num_key_value_heads": heads.kv_heads,
        "head_dim": heads.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": max_length,
        "rms_norm_eps": stack.spec.norm_eps,
        **rope(heads.rope_theta),
    }


def decoder_weights(stack: Stack) -> list[Weight]:
    """Every tensor of theirs."""
    found = ends(stack, embed="model.embed_tokens.weight", norm="model.norm.weight")
    for i, (mixer, mlp) in enumerate(pairs(stack)):
        found += layer_weights(f"model.layers.{i}.", mixer, mlp)
    return found


def read_heads(fields: Fields, kv_heads: int | None = None) -> dict[str, Any]:
    """Rotary heads. kv_heads: what the family means where the config does not say; where it says null, all heads."""
    heads = fields.take("num_attention_heads", kind=int)
    silent = heads if kv_heads is None or fields.null("num_key_value_heads") else kv_heads
    return {
        "heads": heads,
        "kv_heads": fields.take("num_key_value_heads", silent, int),
        "head_dim": fields.take("head_dim", None, int),
        "rope": True,
        "rope_theta": rope_theta(fields),
    }


def layer_weights(theirs: str, mixer: Half, mlp: Half) -> list[Weight]:
    """A layer of attention and SwiGLU, as Llama and its relatives name it."""
    return [
        norm(f"{theirs}input_layernorm", mixer),
        *renamed(f"{theirs}self_attn.", mixer.prefix, QKVO),
        norm(f"{theirs}post_attention_layernorm", mlp),
        *renamed(f"{theirs}mlp.", mlp.prefix, GATED),
    ]


def decoder(fields: Fields, pattern: str, blocks: dict[str, Any], eps: float = 1e-6, tied: bool = False) -> ModelSpec:
    """The spec of a stack whose layers end with SwiGLU. eps, tied: what the family means where the config is silent.

    ExportError: everything in the config that does not fit.
    """
    fields.must("hidden_act", "silu", "swish")
    given = {
        "d_model": fields.take("hidden_size", kind=int),
        "vocab_size": fields.take("vocab_size", kind=int),
        "pattern": pattern,
        "blocks": blocks,
        "mlp": {"type": "swiglu", "width": fields.take("intermediate_size", kind=int)},
        "norm_eps": fields.take("rms_norm_eps", eps, float),
        "tie_embeddings": fields.take("tie_word_embeddings", tied, bool),
    }
    fields.done()
    return ModelSpec.from_dict(given)


FAMILY = Llama()
