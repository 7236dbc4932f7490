"""Falcon-H1: attention beside Mamba-2 in every layer, then SwiGLU; with one of the two silent, a stack of both in turn.

A layer of one mixer alone is written with the other one's weights at zero: it adds zero, at the price of its size.
Their multipliers are written as 1, and what is read with others is multiplied out into the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.llama import decoder, not_rotary
from hybridlm.export.families.parts import (
    GATED,
    INITIAL,
    kv_heads,
    norm,
    read_chunk,
    rope,
    rope_theta,
    unlimited_steps,
)
from hybridlm.export.family import Family, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import (
    Half,
    allowed,
    layers,
    mixed,
    mixer_halves,
    mlp_halves,
    of_type,
    once,
    outer,
    plain,
    present,
    unpaired,
)
from hybridlm.export.weights import Shape, Weight, renamed

HEAD = 64  # width of the one silent head of a stack without attention
MULTIPLIERS = {
    **dict.fromkeys(("embedding_multiplier", "lm_head_multiplier", "key_multiplier"), 1.0),
    **dict.fromkeys(("attention_in_multiplier", "attention_out_multiplier"), 1.0),
    **dict.fromkeys(("ssm_in_multiplier", "ssm_out_multiplier"), 1.0),
    "mlp_multipliers": [1.0] * 2,  # of the gate, before its activation, and of what goes out
    "ssm_multipliers": [1.0] * 5,  # of z, x, B, C and dt
}
MOST = 1e12  # that weights are multiplied by, or divided
EMBED = "model.embed_tokens.weight"


class FalconH1(Family):
    """Zuo et al. 2025 (arXiv:2507.22448)."""

    name, model_type, architecture = "falcon_h1", "falcon_h1", "FalconH1ForCausalLM"
    served_by = ("vLLM", "SGLang", "llama.cpp", "transformers")

    def misfits(self, stack: Stack) -> list[str]:
        if said := outer(stack) + plain(stack, mixers=2):
            return said
        mixers, mlps = mixer_halves(stack), mlp_halves(stack)
        wrong = allowed(mixers, ["mamba2", "attention"], "mixer") + allowed(mlps, ["swiglu"], "MLP")
        if wrong := wrong + _beside(stack) + unpaired(stack):
            return wrong
        attention = of_type(mixers, "attention")
        return [
            *present(of_type(mixers, "mamba2"), "mamba2", "the family is for hybrids"),
            *not_rotary(attention),
            *mixed(mixers),
            *mixed(mlps),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        found = layers(stack)
        return {
            "num_hidden_layers": len(found),
            "intermediate_size": found[0][1].config.width,
            "hidden_act": "silu",
            "mlp_bias": False,
            "rms_norm_eps": stack.spec.norm_eps,
            "max_position_embeddings": max_length,
            **MULTIPLIERS,
            **_attention(stack),
            **_mamba2(stack),
        }

    def weights(self, stack: Stack) -> list[Weight]:
        found = ends(stack, embed=EMBED, norm="model.final_layernorm.weight")
        shapes = _shapes(stack)
        for i, (mixers, mlp) in enumerate(layers(stack)):
            theirs = f"model.layers.{i}."
            found += [norm(f"{theirs}input_layernorm", mixers[0]), norm(f"{theirs}pre_ff_layernorm", mlp)]
            found += _mixer(f"{theirs}mamba.", of_type(mixers, "mamba2"), shapes["mamba2"])
            found += _mixer(f"{theirs}self_attn.", of_type(mixers, "attention"), shapes["attention"])
            found += renamed(f"{theirs}feed_forward.", mlp.prefix, GATED)
        return found

    def found(self, stack: Stack, config: Mapping[str, Any], names: Collection[str]) -> list[Weight]:
        """With their multipliers in the weights. One matrix with two multipliers becomes two matrices."""
        weights = [_multiplied(weight, _said(config), stack) for weight in self.weights(stack)]
        if stack.spec.tie_embeddings or not config.get("tie_word_embeddings") or "lm_head.weight" in names:
            return weights
        return [replace(weight, theirs=EMBED) if weight.theirs == "lm_head.weight" else weight for weight in weights]

    def spec(self, fields: Fields) -> ModelSpec:
        said = {name: fields.take(name, ones, type(ones)) for name, ones in MULTIPLIERS.items()}
        for name, value in said.items():
            if not _usable(value, MULTIPLIERS[name]):
                fields.refuse(
                    f"{name}: {value!r}; only sizes of {1 / MOST:.0e} to {MOST:.0e} can be read, as many as there are"
                )
        fields.must("hidden_act", "silu", "swish")
        for name in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"):
            fields.must(name, False)
        fields.must("mamba_conv_bias", True)
        fields.must("mamba_use_mlp", True)
        fields.neutral("num_logits_to_keep", "mlp_expansion_factor", *INITIAL)
        d = fields.whole("hidden_size", 4096)
        blocks = {"M": {"mixer": _read_mamba2(fields, d)}, "A": {"mixer": _read_attention(fields, d)}}
        spec = decoder(fields, f"<M|A>{fields.whole('num_hidden_layers', 32, high=MAX_LAYERS)}", blocks, eps=1e-5)
        same = said["embedding_multiplier"] == said["lm_head_multiplier"]
        return replace(spec, tie_embeddings=spec.tie_embeddings and same)


# -------------------------------------------------------------------------------------------------------------- writing
def _beside(stack: Stack) -> list[str]:
    """Mixers side by side that are not one of each, added up."""
    said = []
    for layer in stack.layers:
        if len(layer.mixers) == 2 and {part.type for part in layer.mixers} != {"mamba2", "attention"}:
            said.append(f"{layer.name}: side by side there are one mamba2 and one attention there")
        if len(layer.mixers) == 2 and layer.combine != "sum":
            said.append(f"{layer.name}: combine: {layer.combine}; they are added up there")
    return once(said)


def _attention(stack: Stack) -> dict[str, Any]:
    """Of a stack without attention, one silent head."""
    found = of_type(mixer_halves(stack), "attention")
    heads = found[0].config if found else None
    return {
        "num_attention_heads": heads.heads if heads else 1,
        "num_key_value_heads": heads.kv_heads if heads else 1,
        "head_dim": heads.head_dim if heads else HEAD,
        "attention_bias": False,
        **rope(heads.rope_theta if heads else 10000.0),
    }


def _mamba2(stack: Stack) -> dict[str, Any]:
    """`mamba_expand` is said where it is a whole number; nobody computes with it beside mamba_d_ssm."""
    config, d = of_type(mixer_halves(stack), "mamba2")[0].config, stack.spec.d_model
    return {
        "mamba_d_ssm": config.inner(d),
        "mamba_n_heads": config.heads(d),
        "mamba_d_head": config.head_dim,
        "mamba_n_groups": config.n_groups,
        "mamba_d_state": config.d_state,
        "mamba_d_conv": config.d_conv,
        **({"mamba_expand": int(config.expand)} if config.expand == int(config.expand) else {}),
        "mamba_chunk_size": config.chunk,
        "mamba_conv_bias": True,
        "mamba_proj_bias": False,
        "projectors_bias": False,
        "mamba_rms_norm": config.gated_norm,
        "mamba_norm_before_gate": False,
    }


def _shapes(stack: Stack) -> dict[str, dict[str, Shape]]:
    """{registry name: {tensor: its shape}} of both mixers, whose tensors have the same names there."""
    d, found = stack.spec.d_model, {half.type: dict(half.part.shapes()) for half in mixer_halves(stack)}
    inward = {f"{name}_proj.weight": (HEAD, d) for name in "qkv"}
    return {"attention": {**inward, "o_proj.weight": (d, HEAD)}, **found}


def _mixer(theirs: str, own: list[Half], shapes: Mapping[str, Shape]) -> list[Weight]:
    """The mixer of a layer that has one, or one whose every weight is 0."""
    if own:
        return renamed(theirs, own[0].prefix, shapes)
    return [Weight(theirs + name, shape=shape) for name, shape in shapes.items()]


# -------------------------------------------------------------------------------------------------------------- reading
def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: ones if config.get(name) is None else config[name] for name, ones in MULTIPLIERS.items()}


def _usable(value: Any, ones: Any) -> bool:
    if isinstance(ones, list):
        return isinstance(value, list) and len(value) == len(ones) and all(_usable(one, 1.0) for one in value)
    return isinstance(value, int | float) and 1 / MOST <= abs(value) <= MOST


def _multiplied(weight: Weight, said: Mapping[str, Any], stack: Stack) -> Weight:
    """With what theirs is multiplied by, in use: ours is theirs times all of it."""
    enters, (gate, down) = said["attention_in_multiplier"], said["mlp_multipliers"]
    factor = {
        EMBED: said["embedding_multiplier"],
        "lm_head.weight": said["lm_head_multiplier"],
        "q_proj.weight": enters,
        "k_proj.weight": enters * said["key_multiplier"],
        "v_proj.weight": enters,
        "o_proj.weight": said["attention_out_multiplier"],
        "out_proj.weight": said["ssm_out_multiplier"],
        "gate_proj.weight": gate,
        "down_proj.weight": down,
    }
    name = weight.theirs if weight.theirs in factor else ".".join(weight.theirs.split(".")[-2:])
    if name != "in_proj.weight":
        return replace(weight, scale=1 / factor.get(name, 1.0))
    config, d = of_type(mixer_halves(stack), "mamba2")[0].config, stack.spec.d_model
    keys = config.n_groups * config.d_state
    rows = (config.inner(d), config.inner(d), keys, keys, config.heads(d))
    scales = [1 / (said["ssm_in_multiplier"] * factor) for factor in said["ssm_multipliers"]]
    return replace(weight, rows=tuple(zip(rows, scales, strict=True)))


def _read_attention(fields: Fields, d: int) -> dict[str, Any]:
    heads = fields.whole("num_attention_heads", 32)
    return {
        "type": "attention",
        "heads": heads,
        "kv_heads": kv_heads(fields, heads, 8),
        "head_dim": fields.whole("head_dim", d // heads),
        "rope": True,
        "rope_theta": rope_theta(fields),
    }


def _read_mamba2(fields: Fields, d: int) -> dict[str, Any]:
    normed, heads = fields.take("mamba_rms_norm", False, bool), fields.whole("mamba_n_heads", 128)
    if normed:
        fields.must("mamba_norm_before_gate", False, default=True, why="ours is behind the gate")
    fields.neutral("mamba_norm_before_gate")
    unlimited_steps(fields)
    expand = fields.whole("mamba_expand", 2)
    inner = fields.whole("mamba_d_ssm", expand * d if fields.null("mamba_d_ssm") else 1024)
    width = fields.take("mamba_d_head", "auto", (int, str))
    return {
        "type": "mamba2",
        "expand": inner / d,
        "head_dim": inner // heads if width == "auto" else width,
        "n_groups": fields.whole("mamba_n_groups", 1),
        "d_state": fields.whole("mamba_d_state", 256),
        "d_conv": fields.whole("mamba_d_conv", 4),
        "chunk": read_chunk(fields, "mamba_chunk_size"),
        "gated_norm": normed,
    }


FAMILY = FalconH1()
