"""Jamba: Mamba or attention without positions, an attention layer in every so many; SwiGLU or experts, likewise."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import ceil
from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS, compact
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import (
    GATED,
    MAMBA,
    QKVO,
    even_heads,
    kv_heads,
    no_positions,
    no_qk_norm,
    norm,
    plain_selection,
    whole_expand,
)
from hybridlm.export.family import Family, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import (
    Half,
    allowed,
    mixed,
    mixer_halves,
    mlp_halves,
    needed,
    of_type,
    once,
    outer,
    pairs,
    plain,
    present,
    unpaired,
)
from hybridlm.export.weights import Weight, entries, renamed

NORMS = ("dt_layernorm.weight", "b_layernorm.weight", "c_layernorm.weight")


class Jamba(Family):
    """Lieber et al. 2024 (arXiv:2403.19887)."""

    name, model_type, architecture = "jamba", "jamba", "JambaForCausalLM"
    served_by = ("vLLM", "transformers")  # llama.cpp asks for another kind of tokenizer than goes out from here

    def misfits(self, stack: Stack) -> list[str]:
        if said := outer(stack) + plain(stack):
            return said
        mixers, mlps = mixer_halves(stack), mlp_halves(stack)
        wrong = allowed(mixers, ["mamba", "attention"], "mixer") + allowed(mlps, ["swiglu", "moe"], "MLP")
        if wrong := wrong + unpaired(stack):
            return wrong
        return [
            *_mamba_misfits(of_type(mixers, "mamba")),
            *_attention_misfits(of_type(mixers, "attention"), stack.spec.d_model),
            *_experts_misfits(of_type(mlps, "moe")),
            *_orders(stack),
            *mixed(mixers),
            *mixed(mlps),
            *_widths(mlps),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        found, d = pairs(stack), stack.spec.d_model
        mamba, heads = (of_type(mixer_halves(stack), kind)[0].config for kind in ("mamba", "attention"))
        period, offset = _period(stack, "attention")
        return {
            "num_hidden_layers": len(found),
            "attn_layer_period": period,
            "attn_layer_offset": offset,
            "intermediate_size": found[0][1].config.width,
            "hidden_act": "silu",
            "rms_norm_eps": stack.spec.norm_eps,
            "max_position_embeddings": max_length,
            "num_attention_heads": heads.heads,
            "num_key_value_heads": heads.kv_heads,
            "mamba_d_state": mamba.d_state,
            "mamba_d_conv": mamba.d_conv,
            "mamba_expand": mamba.inner(d) // d,
            "mamba_dt_rank": mamba.dt_rank,
            "mamba_conv_bias": True,
            "mamba_proj_bias": False,
            **_experts(stack),
        }

    def weights(self, stack: Stack) -> list[Weight]:
        return _weights(stack)

    def found(self, stack: Stack, config: Mapping[str, Any], names: Collection[str]) -> list[Weight]:
        return _weights(stack, together=any(name.endswith("experts.gate_up_proj") for name in names))

    def spec(self, fields: Fields) -> ModelSpec:
        fields.must("hidden_act", "silu", "swish")
        fields.must("mamba_conv_bias", True)
        fields.must("mamba_proj_bias", False)
        fields.must("sliding_window", None)
        fields.must("mamba_inner_layernorms", True)  # of the first ones
        fields.neutral("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep")
        d, width = fields.whole("hidden_size", 4096), fields.whole("intermediate_size", 14336)
        count, top = fields.whole("num_experts", 16), fields.whole("num_experts_per_tok", 2)
        fields.must("num_local_experts", count)
        moe = {"type": "moe", "experts": count, "top_k": min(top, count), "width": width, "normalize": False}
        blocks = {"m": {"mixer": _read_mamba(fields, d)}, "A": {"mixer": _read_attention(fields, d)}}
        blocks |= {f"{name}-moe": {**block, "mlp": moe} for name, block in blocks.items()}
        given = {
            "d_model": d,
            "vocab_size": fields.whole("vocab_size", 65536),
            "pattern": _pattern(fields, count),
            "blocks": blocks,
            "mlp": {"type": "swiglu", "width": width},
            "norm_eps": fields.take("rms_norm_eps", 1e-6, float),
            "tie_embeddings": fields.take("tie_word_embeddings", False, bool),
        }
        fields.done()
        return ModelSpec.from_dict(given)


# ---------------------------------------------------------------------------------------------------- what does not fit
def _mamba_misfits(found: list[Half]) -> list[str]:
    return [
        *present(found, "mamba", "the family is for hybrids"),
        *needed(found, lambda c: c.bcdt_norm, "bcdt_norm: false; every layer has it there: bcdt_norm: true would fit"),
        *whole_expand(found),
        *plain_selection(found),
    ]


def _attention_misfits(found: list[Half], d: int) -> list[str]:
    return [
        *present(found, "attention", "transformers cannot cache a stack without"),
        *no_positions(found),
        *no_qk_norm(found),
        *even_heads(found, d),
    ]


def _experts_misfits(found: list[Half]) -> list[str]:
    return [
        *needed(found, lambda c: c.expert == "swiglu", "expert: only swiglu is known there"),
        *needed(found, lambda c: c.score == "softmax", "score: only softmax is known there"),
        *needed(found, lambda c: not c.normalize, "normalize: true; weights are not divided by their sum there"),
        *needed(found, lambda c: c.scale == 1, "scale: it is 1 there"),
        *needed(found, lambda c: not c.shared_width, "shared_width: no layer has a shared expert there"),
        *needed(found, lambda c: c.experts > 1, "experts: 1; that is an MLP there"),
    ]


def _orders(stack: Stack) -> list[str]:
    """Attention and experts that do not come at every so many layers."""
    said = []
    for kind in ("attention", "moe"):
        if _period(stack, kind) is None:
            places = ", ".join(str(i) for i in _places(stack, kind))
            said.append(f"pattern: {kind} in layers {places}, which is not periodic; there it is in every so many")
    return said


def _widths(mlps: Sequence[Half]) -> list[str]:
    """MLPs and experts of several widths, where one number is for both; `mixed` tells of those of one type."""
    widths = {half.type: half.config.width for half in mlps}
    said = ", ".join(f"{kind}.width: {width}" for kind, width in widths.items())
    return once([f"{said}; MLPs and experts are of one width there"] if len(set(widths.values())) > 1 else [])


# -------------------------------------------------------------------------------------------------------------- writing
def _places(stack: Stack, kind: str) -> list[int]:
    """The layers with such a mixer or MLP."""
    return [i for i, layer in enumerate(pairs(stack)) if kind in (half.type for half in layer)]


def _period(stack: Stack, kind: str) -> tuple[int, int] | None:
    """(period, offset) of the layers with such a mixer or MLP, the first below the second; None: there is none."""
    places, depth = _places(stack, kind), len(pairs(stack))
    if not places:
        return depth + 1, depth
    period, offset = places[1] - places[0] if len(places) > 1 else depth, places[0]
    return (period, offset) if offset < period and places == list(range(offset, depth, period)) else None


def _experts(stack: Stack) -> dict[str, Any]:
    found = of_type(mlp_halves(stack), "moe")
    period, offset = _period(stack, "moe")
    return {
        "num_experts": found[0].config.experts if found else 1,
        "num_experts_per_tok": found[0].config.top_k if found else 1,
        "expert_layer_period": period,
        "expert_layer_offset": offset,
    }


def _weights(stack: Stack, together: bool = False) -> list[Weight]:
    found = ends(stack, embed="model.embed_tokens.weight", norm="model.final_layernorm.weight")
    for i, (mixer, mlp) in enumerate(pairs(stack)):
        theirs, mamba = f"model.layers.{i}.", mixer.type == "mamba"
        found += [norm(f"{theirs}input_layernorm", mixer), norm(f"{theirs}pre_ff_layernorm", mlp)]
        inner, names = ("mamba.", (*MAMBA, *NORMS)) if mamba else ("self_attn.", QKVO)
        found += renamed(f"{theirs}{inner}", mixer.prefix, names)
        found += _mlp(f"{theirs}feed_forward.", mlp, together)
    return found


def _mlp(theirs: str, mlp: Half, together: bool) -> list[Weight]:
    """together: experts in two tensors, gates above what is gated, as transformers holds them."""
    if mlp.type == "swiglu":
        return renamed(theirs, mlp.prefix, GATED)
    ours, count = [f"{mlp.prefix}experts.{part}" for part in GATED], mlp.config.experts
    router = Weight(f"{theirs}router.weight", (f"{mlp.prefix}router.weight",))
    if together:
        gated = Weight(f"{theirs}experts.gate_up_proj", tuple(ours[:2]), dim=1)
        return [router, gated, Weight(f"{theirs}experts.down_proj", (ours[2],))]
    each = [entries(f"{theirs}experts.{{}}.{part}", name, count) for part, name in zip(GATED, ours, strict=True)]
    return [router, *(weight for part in each for weight in part)]


# -------------------------------------------------------------------------------------------------------------- reading
def _pattern(fields: Fields, experts: int) -> str:
    """The stack, a block for each layer: of two mixers and, where there are experts, two MLPs."""
    attention, sparse = _read_places(fields, "attn_layer", 8, 4), _read_places(fields, "expert_layer", 2, 1)
    layers = range(fields.whole("num_hidden_layers", 32, high=MAX_LAYERS))
    mixers = ["A" if i % attention[0] == attention[1] else "m" for i in layers]
    return compact([f"{mixers[i]}-moe" if experts > 1 and i % sparse[0] == sparse[1] else mixers[i] for i in layers])


def _read_places(fields: Fields, kind: str, period: int, offset: int) -> tuple[int, int]:
    """(period, offset) of a kind of layer."""
    period, offset = fields.whole(f"{kind}_period", period), fields.whole(f"{kind}_offset", offset, low=0)
    if offset >= period:
        fields.refuse(f"{kind}_offset: {offset} is not below {kind}_period: {period}")
    return period, offset


def _read_attention(fields: Fields, d: int) -> dict[str, Any]:
    heads = fields.whole("num_attention_heads", 32)
    kv, width = kv_heads(fields, heads, 8), fields.whole("head_dim", d // heads)
    return {"type": "attention", "heads": heads, "kv_heads": kv, "head_dim": width, "rope": False}


def _read_mamba(fields: Fields, d: int) -> dict[str, Any]:
    rank = fields.take("mamba_dt_rank", "auto", (int, str))
    return {
        "type": "mamba",
        "d_state": fields.whole("mamba_d_state", 16),
        "d_conv": fields.whole("mamba_d_conv", 4),
        "expand": fields.whole("mamba_expand", 2),
        "dt_rank": ceil(d / 16) if rank == "auto" else rank,
        "bcdt_norm": True,
    }


FAMILY = Jamba()
