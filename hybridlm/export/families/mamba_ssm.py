"""mamba_ssm's own checkpoints: Mamba or Mamba-2, attention at some places, and a gated MLP everywhere or nowhere.

What its `save_pretrained` writes: a config.json without model_type, and pytorch_model.bin, which holds the output even
where it is tied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS, compact
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import MAMBA, mamba2_weights, unlimited_steps
from hybridlm.export.family import Source, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import Half, halves
from hybridlm.export.weights import Weight, renamed

EPS = 1e-5  # it knows no other
WIDTHS = 128  # an MLP's width is rounded up to a multiple


class MambaSSM(Source):
    """Gu and Dao's package, https://github.com/state-spaces/mamba."""

    name, model_type, architecture = "mamba_ssm", "", ""

    def wrote(self, config: Mapping[str, Any]) -> bool:
        return "model_type" not in config and {"d_model", "n_layer"} <= config.keys()

    def spec(self, fields: Fields) -> ModelSpec:
        d, depth = fields.whole("d_model", 2560), fields.whole("n_layer", 64, high=MAX_LAYERS)
        fields.neutral("fused_add_norm")
        rounded, width = fields.whole("pad_vocab_size_multiple", 8), fields.whole("d_intermediate", 0, low=0)
        letters = _letters(fields, depth)
        given = {
            "d_model": d,
            "vocab_size": _up(fields.whole("vocab_size", 50277), rounded),
            "pattern": compact(letters),
            "blocks": {letter: {"mixer": _MIXERS[letter](fields, d)} for letter in sorted(set(letters))},
            "mlp": {"type": "swiglu", "width": _up(width, WIDTHS)} if width else "none",
            "norm": "rmsnorm" if fields.take("rms_norm", True, bool) else "layernorm",
            "norm_eps": EPS,
            "tie_embeddings": fields.take("tie_embeddings", True, bool),
            "residual_in_fp32": fields.take("residual_in_fp32", True, bool),
        }
        fields.done()
        return ModelSpec.from_dict(given)

    def weights(self, stack: Stack) -> list[Weight]:
        outer = ends(stack, embed="backbone.embedding.weight", norm="backbone.norm_f.weight")
        if stack.spec.norm == "layernorm":
            outer.append(Weight("backbone.norm_f.bias", ("final_norm.bias",)))
        return outer + [weight for half in halves(stack) for weight in _half(stack, half)]

    def found(self, stack: Stack, config: Mapping[str, Any], names: Collection[str]) -> list[Weight]:
        """Attention reads by in_proj, or, as in the package that it comes from, by Wqkv."""
        other = {weight.theirs: weight.theirs.replace("in_proj", "Wqkv") for weight in self.weights(stack)}
        return [
            Weight(other[weight.theirs], weight.ours) if other[weight.theirs] in names else weight
            for weight in self.weights(stack)
        ]


def _up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


# ----------------------------------------------------------------------------------------------------------- its config
def _letters(fields: Fields, depth: int) -> str:
    """A letter for each layer: m and M for Mamba and Mamba-2, A for attention."""
    places = fields.take("attn_layer_idx", [], list)
    if wrong := [place for place in places if not (type(place) is int and 0 <= place < depth)]:
        fields.refuse(f"attn_layer_idx: {wrong[0]!r}; there are layers 0 to {depth - 1}")
    fields.take("attn_cfg", {}, dict)
    layer = fields.take("ssm_cfg", {}, dict).get("layer", "Mamba1")
    if layer not in ("Mamba1", "Mamba2"):
        fields.refuse(f"ssm_cfg.layer: {layer!r}; known: Mamba1, Mamba2")
    return "".join("A" if i in places else "M" if layer == "Mamba2" else "m" for i in range(depth))


def _attention(fields: Fields, d: int) -> dict[str, Any]:
    said = fields.inside("attn_cfg")
    said.must("causal", True, default=False)
    said.must("qkv_proj_bias", False, default=True)
    said.must("out_proj_bias", False, default=True)
    for name in ("mlp_dim", "d_conv"):
        said.must(name, 0)
    said.take("num_heads")
    heads = said.whole("num_heads", 1)
    width = said.whole("head_dim", d // heads)
    rotary = said.take("rotary_emb_dim", 0, int)
    if rotary not in (0, width):
        said.refuse(f"rotary_emb_dim: {rotary}; only 0, no positions, or {width}, whole heads, can be read")
    said.must("rotary_emb_interleaved", False)
    theta = said.take("rotary_emb_base", 10000.0, float)
    scale = said.take("softmax_scale", None, float)
    if scale is not None and abs(scale * width**0.5 - 1) > 1e-6:
        said.refuse(f"softmax_scale: {scale}; only head_dim ** -0.5 can be read")
    sizes = {"heads": heads, "kv_heads": said.whole("num_heads_kv", heads), "head_dim": width}
    return {"type": "attention", **sizes, "rope": rotary > 0, "rope_theta": theta}


def _ssm(fields: Fields) -> Fields:
    """What both kinds of Mamba say."""
    said = fields.inside("ssm_cfg")
    said.must("bias", False)
    said.must("conv_bias", True)
    said.neutral("layer", "dt_min", "dt_max", "dt_init_floor")
    return said


def _mamba(fields: Fields, d: int) -> dict[str, Any]:
    said = _ssm(fields)
    said.neutral("dt_init", "dt_scale", "use_fast_path")
    rank = said.take("dt_rank", "auto", (int, str))
    return {
        "type": "mamba",
        "d_state": said.take("d_state", 16, int),
        "d_conv": said.take("d_conv", 4, int),
        "expand": said.take("expand", 2, (int, float)),
        "dt_rank": None if rank == "auto" else rank,
    }


def _mamba2(fields: Fields, d: int) -> dict[str, Any]:
    said = _ssm(fields)
    said.neutral("conv_init", "A_init_range", "chunk_size", "use_mem_eff_path", "sequence_parallel")
    expand = said.take("expand", 2, (int, float))
    said.must("D_has_hdim", False)
    normed = said.take("rmsnorm", True, bool)
    if normed:
        said.must("norm_before_gate", False, why="ours is behind the gate")
    said.neutral("norm_before_gate")
    said.must("d_ssm", None, expand * d, default=None)
    unlimited_steps(said, "dt_limit")
    return {
        "type": "mamba2",
        "d_state": said.take("d_state", 128, int),
        "d_conv": said.take("d_conv", 4, int),
        "expand": expand,
        "head_dim": said.take("headdim", 64, int),
        "n_groups": said.take("ngroups", 1, int),
        "gated_norm": normed,
    }


_MIXERS = {"A": _attention, "m": _mamba, "M": _mamba2}


# ---------------------------------------------------------------------------------------------------------- its weights
def _half(stack: Stack, half: Half) -> list[Weight]:
    """A norm, and what reads it."""
    layer, mixes = f"backbone.layers.{half.index}.", half.prefix.endswith("mixer.")
    kinds = ("weight", "bias") if stack.spec.norm == "layernorm" else ("weight",)
    norm = [Weight(f"{layer}{'norm' if mixes else 'norm2'}.{kind}", (f"{half.norm}{kind}",)) for kind in kinds]
    return norm + (_mixer(f"{layer}mixer.", half) if mixes else _mlp(f"{layer}mlp.", half))


def _mixer(theirs: str, half: Half) -> list[Weight]:
    if half.type == "mamba2":
        return mamba2_weights(theirs, half)
    if half.type == "mamba":
        return renamed(theirs, half.prefix, MAMBA)
    read = tuple(f"{half.prefix}{name}_proj.weight" for name in "qkv")
    return [
        Weight(f"{theirs}in_proj.weight", read),
        Weight(f"{theirs}out_proj.weight", (f"{half.prefix}o_proj.weight",)),
    ]


def _mlp(theirs: str, half: Half) -> list[Weight]:
    """Theirs has what is gated first, and then the gate."""
    read = (f"{half.prefix}up_proj.weight", f"{half.prefix}gate_proj.weight")
    return [Weight(f"{theirs}fc1.weight", read), Weight(f"{theirs}fc2.weight", (f"{half.prefix}down_proj.weight",))]


FAMILY = MambaSSM()
