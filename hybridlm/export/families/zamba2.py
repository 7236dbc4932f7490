"""Zamba2: Mamba-2 layers, and before some of them a few blocks of attention and GEGLU that share their weights.

What is shared reads the stream beside the embeddings, corrects its weights by a low rank at each place, and writes, by
a matrix of the place's own, to the input of the Mamba-2 layer behind it alone. It is read, and never written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import QKVO, kv_heads, least_step, mamba2_weights, norm, rope_theta, unlimited_steps
from hybridlm.export.family import Source, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import halves
from hybridlm.export.weights import Weight, renamed, scaled

KINDS = {"linear_attention": "M", "mamba": "M", "mamba2": "M", "hybrid": "H"}
USUAL = "M" + "MMMMMH" * 7 + "MMMMHMMMHMM"  # the layers of a config that does not say
GATED_EPS = 1e-5  # of the norm inside Mamba-2, whatever the config says
QUERIES = 2**-0.5  # their scores are divided by (head_dim / 2) ** 0.5, ours by head_dim ** 0.5


@dataclass(frozen=True)
class Place:
    """Where a shared block stands: the index of our block, their layer, its number among all places, its label."""

    index: int
    layer: int
    number: int
    label: str


class Zamba2(Source):
    """Glorioso et al. 2024 (arXiv:2411.15242)."""

    name, model_type, architecture = "zamba2", "zamba2", "Zamba2ForCausalLM"

    def weights(self, stack: Stack) -> list[Weight]:
        return self.found(stack, {}, ())

    def found(self, stack: Stack, config: Mapping[str, Any], names: Collection[str]) -> list[Weight]:
        """A shared block is stored in the first layer that has it, and may be stored again in each of the others."""
        found = ends(stack, embed="model.embed_tokens.weight", norm="model.final_layernorm.weight")
        places = _places(stack)
        hybrid = {place.layer for place in places}
        for layer, half in enumerate(half for half in halves(stack) if half.type == "mamba2"):
            theirs = f"model.layers.{layer}." + ("mamba_decoder." if layer in hybrid else "")
            found += [norm(f"{theirs}input_layernorm", half), *mamba2_weights(f"{theirs}mamba.", half)]
        for place in places:
            found.append(Weight(f"model.layers.{place.layer}.linear.weight", (f"blocks.{place.index}.proj.weight",)))
            like = [other for other in places if other.label == place.label]
            inner = f"model.layers.{place.layer}.shared_transformer."
            if place == like[0] or any(name.startswith(inner) for name in names):
                found += _shared(inner, f"shared.{place.label}.")
                found += [weight for other in like for weight in _adapters(inner, other, stack)]
        return found

    def spec(self, fields: Fields) -> ModelSpec:
        fields.must("tie_word_embeddings", True, why="without it transformers shares no block either, and others do")
        fields.must("rms_norm_eps", GATED_EPS, why="the norm inside Mamba-2 always has this one")
        fields.must("add_bias_linear", False)
        fields.must("use_conv_bias", True)
        fields.must("use_long_context", False)
        fields.must("use_shared_mlp_adapter", True)  # of the first ones, and of all since
        fields.must("hidden_act", "gelu")
        fields.neutral("use_mem_eff_path", "use_mamba_kernels", "chunk_size", "time_step_max", "time_step_floor")
        fields.neutral("num_query_groups", "kv_channels", "num_logits_to_keep")
        d = fields.whole("hidden_size", 2560)
        kinds, memories = _layers(fields), fields.whole("num_mem_blocks", 1)
        blocks = {"M": {"mixer": _read_mamba2(fields, d)}, "Z": _read_shared(fields, d)}
        given = {
            "d_model": d,
            "vocab_size": fields.whole("vocab_size", 32000),
            "pattern": _pattern(kinds, memories),
            "blocks": {name: block for name, block in blocks.items() if name == "M" or "H" in kinds},
            "mlp": "none",
            "norm_eps": GATED_EPS,
            "tie_embeddings": True,
        }
        fields.done()
        return ModelSpec.from_dict(given)


# -------------------------------------------------------------------------------------------------------------- weights
def _places(stack: Stack) -> list[Place]:
    found, layer = [], 0
    for index, plan in enumerate(stack.layers):
        if plan.label is None:
            layer += 1
        else:
            found.append(Place(index, layer, len(found), plan.label))
    return found


def _shared(theirs: str, ours: str) -> list[Weight]:
    heads = renamed(f"{theirs}self_attn.", f"{ours}mixer.", QKVO)
    both = (f"{ours}mlp.gate_proj.weight", f"{ours}mlp.up_proj.weight")
    return [
        Weight(f"{theirs}input_layernorm.weight", (f"{ours}norm.weight",)),
        *(scaled(weight, QUERIES) if "q_proj" in weight.theirs else weight for weight in heads),
        Weight(f"{theirs}pre_ff_layernorm.weight", (f"{ours}mlp_norm.weight",)),
        Weight(f"{theirs}feed_forward.gate_up_proj.weight", both),
        Weight(f"{theirs}feed_forward.down_proj.weight", (f"{ours}mlp.down_proj.weight",)),
    ]


def _adapters(theirs: str, place: Place, stack: Stack) -> list[Weight]:
    """The low-rank corrections of a place; those of gate and up have one A in common."""
    ours, ranks = f"blocks.{place.index}.low_rank.", stack.layers[place.index].options.low_rank
    at = f"{theirs}feed_forward.gate_up_proj_adapter_list.{place.number}."
    gated = [f"{ours}mlp.{name}_proj" for name in ("gate", "up")]
    found = [Weight(f"{at}0.weight", (f"{name}.A.weight",)) for name in gated]
    found.append(Weight(f"{at}1.weight", tuple(f"{name}.B.weight" for name in gated)))
    for name in "qkv" if ranks.mixer else "":
        at, part = f"{theirs}self_attn.linear_{name}_adapter_list.{place.number}.", f"{ours}mixer.{name}_proj"
        found.append(Weight(f"{at}0.weight", (f"{part}.A.weight",)))
        found.append(scaled(Weight(f"{at}1.weight", (f"{part}.B.weight",)), QUERIES if name == "q" else 1.0))
    return found


# -------------------------------------------------------------------------------------------------------------- reading
def _layers(fields: Fields) -> str:
    """The layers, a letter each: M, or H for one with a shared block before it."""
    said = fields.take("layers_block_type", None, list) or fields.take("layer_types", None, list)
    fields.must("layer_types", said)
    kinds = USUAL if said is None else "".join(KINDS.get(str(kind), "?") for kind in said)
    if "?" in kinds:
        fields.refuse(f"layers_block_type: {said[kinds.index('?')]!r}; known: {', '.join(KINDS)}")
    fields.must("hybrid_layer_ids", [i for i, kind in enumerate(kinds) if kind == "H"])
    fields.must("num_hidden_layers", len(kinds), why=f"there are {len(kinds)} in layers_block_type")
    return kinds


def _pattern(kinds: str, memories: int) -> str:
    """Shared blocks take turns, in the order of their places. A label is a letter, or more of it behind the 26th."""
    texts, count = [], 0
    for kind in kinds:
        if kind == "H":
            number = count % memories
            texts.append(f"Z@{ascii_lowercase[number % 26] * (1 + number // 26)}")
            count += 1
        texts.append("M")
    return " ".join(texts)


def _read_mamba2(fields: Fields, d: int) -> dict[str, Any]:
    expand, heads = fields.whole("mamba_expand", 2), fields.whole("n_mamba_heads", 8)
    fields.must("mamba_headdim", expand * d // heads)
    least_step(fields)
    unlimited_steps(fields)
    return {
        "type": "mamba2",
        "expand": expand,
        "head_dim": expand * d // heads,
        "n_groups": fields.whole("mamba_ngroups", 1),
        "d_state": fields.whole("mamba_d_state", 64),
        "d_conv": fields.whole("mamba_d_conv", 4),
    }


def _read_shared(fields: Fields, d: int) -> dict[str, Any]:
    heads, rank = fields.whole("num_attention_heads", 32), fields.whole("adapter_rank", 128)
    fields.must("attention_hidden_size", 2 * d)
    fields.must("attention_head_dim", 2 * d // heads)
    rotary, adapted = fields.take("use_mem_rope", False, bool), fields.take("use_shared_attention_adapter", False, bool)
    theta = rope_theta(fields)
    kv = kv_heads(fields, heads, heads)
    if adapted and kv != heads:
        fields.refuse(f"num_key_value_heads: {kv}; with use_shared_attention_adapter there are as many as heads")
    mixer = {"heads": heads, "kv_heads": kv, "head_dim": 2 * d // heads, "rope": rotary, "rope_theta": theta}
    return {
        "mixer": {"type": "attention", **mixer},
        "mlp": {"type": "geglu", "width": fields.whole("intermediate_size", 4 * d)},
        "input": "concat_embeddings",
        "output": "next_mixer",
        "low_rank": rank if adapted else {"mlp": rank},
    }


FAMILY = Zamba2()
