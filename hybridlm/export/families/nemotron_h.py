"""Nemotron-H: Mamba-2, attention without positions, MLPs of relu squared and mixtures of them, in any order."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import (
    QKVO,
    gated_norms,
    kv_heads,
    least_step,
    mamba2_weights,
    no_positions,
    no_qk_norm,
    norm,
    read_chunk,
    unlimited_steps,
)
from hybridlm.export.family import Family
from hybridlm.export.fields import Fields
from hybridlm.export.halves import (
    Half,
    allowed,
    halves,
    mixed,
    mixer_halves,
    mlp_halves,
    needed,
    of_type,
    outer,
    plain,
    present,
)
from hybridlm.export.weights import Weight, entries, renamed

SIGNS = {"mamba2": "M", "attention": "*", "relu2": "-", "moe": "E"}
TYPES = {"linear_attention": "M", "mamba": "M", "full_attention": "*", "attention": "*", "mlp": "-", "moe": "E"}
PREFIX = "backbone."  # of what is published; transformers, vLLM and llama.cpp know it


class NemotronH(Family):
    """Nemotron-H (arXiv:2504.03624) and Nemotron 3: every layer is one norm and what reads it."""

    name, model_type, architecture = "nemotron_h", "nemotron_h", "NemotronHForCausalLM"
    served_by = ("vLLM", "SGLang", "transformers")  # llama.cpp's converter takes layers of an MLP for Mamba

    def misfits(self, stack: Stack) -> list[str]:
        if said := outer(stack) + plain(stack):
            return said
        mixers, mlps = mixer_halves(stack), mlp_halves(stack)
        wrong = allowed(mixers, ["mamba2", "attention"], "mixer") + allowed(mlps, ["relu2", "moe"], "MLP")
        if wrong:
            return wrong
        attention, mamba, experts = of_type(mixers, "attention"), of_type(mixers, "mamba2"), of_type(mlps, "moe")
        return [
            *present(attention, "attention", "transformers cannot cache a stack without"),
            *no_positions(attention),
            *no_qk_norm(attention),
            *gated_norms(mamba),
            *needed(experts, lambda c: c.expert == "relu2", "expert: only relu2 is known there"),
            *needed(experts, lambda c: c.score == "sigmoid", "score: only sigmoid is known there"),
            *needed(experts, lambda c: c.shared_width > 0, "shared_width: 0; every layer has a shared expert there"),
            *needed(experts, lambda c: not c.shared_gate, "shared_gate: true; no layer has it there"),
            *needed(experts, lambda c: c.experts > 1, "experts: 1; there are at least 2 there"),
            *mixed(mixers),
            *mixed(mlps),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        found = halves(stack)
        dense = of_type(found, "relu2")
        return {
            "num_hidden_layers": len(found),  # for SGLang; transformers counts the pattern
            "hybrid_override_pattern": "".join(SIGNS[half.type] for half in found),
            "intermediate_size": dense[0].config.width if dense else stack.spec.d_model,
            "mlp_hidden_act": "relu2",
            "mlp_bias": False,
            "use_bias": False,
            "layer_norm_epsilon": stack.spec.norm_eps,
            "rms_norm_eps": stack.spec.norm_eps,  # its name elsewhere
            "residual_in_fp32": stack.spec.residual_in_fp32,
            "max_position_embeddings": max_length,
            "tie_word_embeddings": False,  # transformers never ties them; the output is written in any case
            **_attention(of_type(found, "attention")),
            **_mamba2(of_type(found, "mamba2"), stack.spec.d_model),
            **_experts(of_type(found, "moe")),
        }

    def weights(self, stack: Stack) -> list[Weight]:
        head = "embed.weight" if stack.spec.tie_embeddings else "lm_head.weight"
        found = [
            Weight(f"{PREFIX}embeddings.weight", ("embed.weight",)),
            Weight(f"{PREFIX}norm_f.weight", ("final_norm.weight",)),
            Weight("lm_head.weight", (head,)),
        ]
        for i, half in enumerate(halves(stack)):
            found += [norm(f"{PREFIX}layers.{i}.norm", half), *_inner(f"{PREFIX}layers.{i}.mixer.", half)]
        return found

    def found(self, stack: Stack, config: Mapping[str, Any], names: Collection[str]) -> list[Weight]:
        """Transformers calls `model.` what is published as `backbone.`, and keeps experts in one tensor."""
        weights = self.weights(stack)
        if any(name.startswith(PREFIX) for name in names):
            return weights
        return [Weight(_inside(weight), weight.ours) for weight in weights if not weight.index]

    def spec(self, fields: Fields) -> ModelSpec:
        for name in ("attention_bias", "mlp_bias", "use_bias", "mamba_proj_bias"):
            fields.must(name, False)
        fields.must("use_conv_bias", True)
        fields.must("mlp_hidden_act", "relu2")
        fields.must("mamba_hidden_act", "silu", "swish")
        fields.must("sliding_window", None, why="transformers ignores it, others use it")
        fields.must("tie_word_embeddings", False, why="transformers ignores it, others tie")
        fields.must("num_nextn_predict_layers", 0)
        fields.neutral(*_WITHOUT_EFFECT)
        return _stack(fields, _pattern(fields))


# -------------------------------------------------------------------------------------------------------------- writing
def _attention(found: list[Half]) -> dict[str, Any]:
    """Of a stack without attention, some heads: the config has to name them."""
    heads = found[0].config if found else None
    return {
        "num_attention_heads": heads.heads if heads else 1,
        "num_key_value_heads": heads.kv_heads if heads else 1,
        "head_dim": heads.head_dim if heads else 64,
        "attention_bias": False,
    }


def _mamba2(found: list[Half], d: int) -> dict[str, Any]:
    """`expand` is said where it is a whole number; nobody computes with it."""
    if not found:
        return {"mamba_num_heads": 1, "mamba_head_dim": 64, "n_groups": 1}
    config = found[0].config
    return {
        "mamba_num_heads": config.heads(d),
        "mamba_head_dim": config.head_dim,
        "n_groups": config.n_groups,
        "ssm_state_size": config.d_state,
        "conv_kernel": config.d_conv,
        **({"expand": int(config.expand)} if config.expand == int(config.expand) else {}),
        "chunk_size": config.chunk,
        "mamba_hidden_act": "silu",
        "mamba_proj_bias": False,
        "use_conv_bias": True,
        "time_step_min": 0.0,  # transformers bounds dt by it, but only in a prefill
    }


def _experts(found: list[Half]) -> dict[str, Any]:
    """Without mixtures no word of them: llama.cpp takes any for one."""
    if not found:
        return {}
    config = found[0].config
    return {
        "n_routed_experts": config.experts,
        "num_experts_per_tok": config.top_k,
        "moe_intermediate_size": config.width,
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": config.shared_width,
        "norm_topk_prob": config.normalize,
        "routed_scaling_factor": config.scale,
        "n_group": 1,
        "topk_group": 1,
    }


def _inner(theirs: str, half: Half) -> list[Weight]:
    if half.type == "mamba2":
        return mamba2_weights(theirs, half)
    if half.type == "attention":
        return renamed(theirs, half.prefix, QKVO)
    if half.type == "relu2":
        return renamed(theirs, half.prefix, ("up_proj.weight", "down_proj.weight"))
    found = [
        Weight(f"{theirs}gate.weight", (f"{half.prefix}router.weight",)),
        Weight(f"{theirs}gate.e_score_correction_bias", (f"{half.prefix}router.bias",)),
    ]
    for part in ("up_proj", "down_proj"):
        shared = (f"{half.prefix}shared.{part}.weight",)
        found.append(Weight(f"{theirs}shared_experts.{part}.weight", shared))
        experts = f"{half.prefix}experts.{part}.weight"
        found += entries(f"{theirs}experts.{{}}.{part}.weight", experts, half.config.experts)
    return found


def _inside(weight: Weight) -> str:
    """The name that a tensor has inside transformers; of the first expert, that of all experts together."""
    name = weight.theirs.replace(PREFIX, "model.", 1)
    return name if weight.index is None else name.replace(".experts.0.", ".experts.").removesuffix(".weight")


# -------------------------------------------------------------------------------------------------------------- reading
_WITHOUT_EFFECT = (
    *("use_mamba_kernels", "time_step_max", "time_step_floor", "time_step_rank", "rescale_prenorm_residual"),
    *("expand", "mamba_ssm_cache_dtype", "residual_in_fp32", "rope_theta", "moe_shared_expert_overlap"),
    *("mtp_layers_block_type", "mtp_hybrid_override_pattern", "n_shared_experts"),
)
_EXPERTS = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("norm_topk_prob", "routed_scaling_factor", "n_group", "topk_group", "moe_latent_size"),
)


def _pattern(fields: Fields) -> str:
    """The layers, a sign for each; however many ways they are said, it has to be the same."""
    said = {}
    for name in ("layers_block_type", "layer_types"):
        if kinds := fields.several(name, []):
            said[name] = "".join(TYPES.get(str(kind), "?") for kind in kinds)
    if text := fields.take("hybrid_override_pattern", None, str):
        said["hybrid_override_pattern"] = text
    if not said:
        fields.refuse("hybrid_override_pattern: missing, and the model cannot be read without it")
        return "M"
    for name, text in said.items():
        if unknown := sorted(set(text) - set(SIGNS.values())):
            fields.refuse(f"{name}: {unknown[0]!r} in {fields.config[name]!r}; known: {' '.join(SIGNS.values())}")
        if text != next(iter(said.values())):
            fields.refuse(f"{name}: not the same layers as {next(iter(said))}")
    text = next(iter(said.values()))
    depth = fields.take("num_hidden_layers", len(text), int)
    if depth != len(text):
        fields.refuse(f"num_hidden_layers: {depth}, and there are {len(text)} layers in {next(iter(said))}")
    return text


def _stack(fields: Fields, pattern: str) -> ModelSpec:
    eps = fields.take("layer_norm_epsilon", 1e-5, float)
    for name in ("rms_norm_eps", "norm_eps"):
        fields.must(name, eps)
    blocks = {
        "M": {"mixer": _read_mamba2(fields, fields.whole("hidden_size", 4096)), "mlp": "none"},
        "A": {"mixer": _read_attention(fields), "mlp": "none"},
        "E": {"mixer": "none", "mlp": _read_experts(fields)} if "E" in pattern else None,
    }
    if "E" not in pattern:
        fields.neutral(*_EXPERTS)
    given = {
        "d_model": fields.whole("hidden_size", 4096),
        "vocab_size": fields.whole("vocab_size", 131072),
        "pattern": pattern,
        "notation": "megatron",
        "blocks": {name: block for name, block in blocks.items() if block},
        "mlp": {"type": "relu2", "width": fields.whole("intermediate_size", 21504)},
        "norm_eps": eps,
    }
    fields.done()
    return ModelSpec.from_dict(given)


def _read_attention(fields: Fields) -> dict[str, Any]:
    heads, width = fields.whole("num_attention_heads", 32), fields.whole("head_dim", 128)
    fields.must("attention_head_dim", width)
    kv = kv_heads(fields, heads, 8)
    return {"type": "attention", "heads": heads, "kv_heads": kv, "head_dim": width, "rope": False}


def _read_mamba2(fields: Fields, d: int) -> dict[str, Any]:
    heads, width = fields.whole("mamba_num_heads", 128), fields.whole("mamba_head_dim", 64)
    unlimited_steps(fields)
    least_step(fields)
    return {
        "type": "mamba2",
        "expand": heads * width / d,
        "head_dim": width,
        "n_groups": fields.whole("n_groups", 8),
        "d_state": fields.whole("ssm_state_size", 128),
        "d_conv": fields.whole("conv_kernel", 4),
        "chunk": read_chunk(fields, "chunk_size"),
    }


def _read_experts(fields: Fields) -> dict[str, Any]:
    for name in ("n_group", "topk_group"):
        fields.must(name, 1)
    fields.must("moe_latent_size", None)
    return {
        "type": "moe",
        "expert": "relu2",
        "score": "sigmoid",
        "experts": fields.whole("n_routed_experts", 8),
        "top_k": fields.whole("num_experts_per_tok", 2),
        "width": fields.whole("moe_intermediate_size", 7688),
        "shared_width": fields.whole("moe_shared_expert_intermediate_size", 7688),
        "normalize": fields.take("norm_topk_prob", True, bool),
        "scale": fields.take("routed_scaling_factor", 1.0, float),
    }


FAMILY = NemotronH()
