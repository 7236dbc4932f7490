"""Bamba: Mamba-2 or attention, of whose heads half is rotated, and SwiGLU in every layer. It is read, never written."""

from __future__ import annotations

from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS, compact
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.granite_hybrid import read_mamba2
from hybridlm.export.families.llama import decoder
from hybridlm.export.families.parts import GATED, INITIAL, QKVO, kv_heads, mamba2_weights, norm, rope_share, rope_theta
from hybridlm.export.family import Source, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import pairs
from hybridlm.export.weights import Weight, renamed

ROTATED = 0.5  # of a head, where the config does not say


class Bamba(Source):
    """IBM, Princeton, CMU and UIUC 2024, from which Granite 4 comes."""

    name, model_type, architecture = "bamba", "bamba", "BambaForCausalLM"

    def weights(self, stack: Stack) -> list[Weight]:
        found = ends(stack, embed="model.embed_tokens.weight", norm="model.final_layernorm.weight")
        for i, (mixer, mlp) in enumerate(pairs(stack)):
            theirs = f"model.layers.{i}."
            found += [norm(f"{theirs}input_layernorm", mixer), norm(f"{theirs}pre_ff_layernorm", mlp)]
            if mixer.type == "mamba2":
                found += mamba2_weights(f"{theirs}mamba.", mixer)
            else:
                found += renamed(f"{theirs}self_attn.", mixer.prefix, QKVO)
            found += renamed(f"{theirs}feed_forward.", mlp.prefix, GATED)
        return found

    def spec(self, fields: Fields) -> ModelSpec:
        fields.must("hidden_act", "silu", "swish")
        fields.must("attention_bias", False)
        fields.must("mlp_bias", False)
        fields.neutral("z_loss_coefficient", "num_logits_to_keep", *INITIAL)
        d, depth = fields.whole("hidden_size", 4096), fields.whole("num_hidden_layers", 32, high=MAX_LAYERS)
        places = _places(fields, depth)
        blocks = {"M": {"mixer": read_mamba2(fields, d)}, "A": {"mixer": _read_attention(fields, d)}}
        pattern = compact(["A" if i in places else "M" for i in range(depth)])
        return decoder(fields, pattern, blocks, eps=1e-5)


def _places(fields: Fields, depth: int) -> list[int]:
    """The layers of attention."""
    found = fields.take("attn_layer_indices", [], list)
    if wrong := [i for i in found if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < depth]:
        fields.refuse(f"attn_layer_indices: {wrong[0]!r}; there are layers 0 to {depth - 1}")
    return found


def _read_attention(fields: Fields, d: int) -> dict[str, Any]:
    heads = fields.whole("num_attention_heads", 32)
    width = fields.whole("head_dim", d // heads)
    rotated = int(rope_share(fields, ROTATED) * width)
    if rotated % 2 or not rotated:
        fields.refuse(f"partial_rotary_factor: {rotated} of {width} channels; an even number of them can be rotated")
    fields.must("attn_rotary_emb", rotated, why="that much of head_dim is rotated")
    return {
        "type": "attention",
        "heads": heads,
        "kv_heads": kv_heads(fields, heads, 8),
        "head_dim": width,
        "rope": True,
        "rope_theta": rope_theta(fields, partial=True),
        "rope_dim": rotated,
    }


FAMILY = Bamba()
