"""Mamba alone: one mixer a layer, and no MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.parts import MAMBA, norm, plain_selection, whole_expand
from hybridlm.export.family import Family, ends
from hybridlm.export.fields import Fields
from hybridlm.export.halves import Half, allowed, mixed, mixer_halves, mlp_halves, needed, outer, plain
from hybridlm.export.weights import Weight, renamed


class Mamba(Family):
    """Gu and Dao 2023 (arXiv:2312.00752), as transformers names it."""

    name, model_type, architecture = "mamba", "mamba", "MambaForCausalLM"
    served_by = ("vLLM", "SGLang", "llama.cpp", "transformers")

    def in_llama_cpp(self, stack: Stack) -> bool:
        return all(half.config.expand == 2 for half in mixer_halves(stack))

    def misfits(self, stack: Stack) -> list[str]:
        if said := mixers_alone(stack, "mamba"):
            return said
        mixers = mixer_halves(stack)
        return [
            *whole_expand(mixers),
            *plain_selection(mixers),
            *needed(mixers, lambda c: not c.bcdt_norm, "bcdt_norm: true; no layer has these norms there"),
            *mixed(mixers),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        rank = mixer_halves(stack)[0].config.dt_rank
        return {**said_of_mixers(stack, max_length), "time_step_rank": rank}

    def weights(self, stack: Stack) -> list[Weight]:
        return mixer_layers(stack, lambda theirs, half: renamed(theirs, half.prefix, MAMBA))

    def spec(self, fields: Fields) -> ModelSpec:
        plain_bias(fields)
        rank = fields.take("time_step_rank", "auto", (int, str))
        mixer: dict[str, Any] = {"type": "mamba", "dt_rank": None if rank == "auto" else rank}
        mixer |= {"d_state": fields.take("state_size", 16, int), "expand": fields.take("expand", 2, int)}
        return stacked(fields, "m", mixer, tied=True)


# ------------------------------------------------------------------------------------------------ of Mamba, and Mamba-2
def mixers_alone(stack: Stack, mixer: str) -> list[str]:
    """What is not this mixer in every layer, without an MLP."""
    if said := outer(stack, fp32=True) + plain(stack):
        return said
    return allowed(mixer_halves(stack), [mixer], "mixer") + allowed(mlp_halves(stack), [], "MLP")


def said_of_mixers(stack: Stack, max_length: int) -> dict[str, Any]:
    """What both configs have."""
    config, spec = mixer_halves(stack)[0].config, stack.spec
    return {
        "num_hidden_layers": len(mixer_halves(stack)),
        "state_size": config.d_state,
        "conv_kernel": config.d_conv,
        "expand": int(config.expand),
        "intermediate_size": config.inner(spec.d_model),
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "layer_norm_epsilon": spec.norm_eps,
        "residual_in_fp32": spec.residual_in_fp32,
        "max_position_embeddings": max_length,
    }


def mixer_layers(stack: Stack, mixer: Callable[[str, Half], list[Weight]]) -> list[Weight]:
    """Every tensor of theirs. mixer: (their prefix, half) -> its own."""
    found = ends(stack, embed="backbone.embeddings.weight", norm="backbone.norm_f.weight")
    for i, half in enumerate(mixer_halves(stack)):
        found += [norm(f"backbone.layers.{i}.norm", half), *mixer(f"backbone.layers.{i}.mixer.", half)]
    return found


def plain_bias(fields: Fields) -> None:
    """Biases, activation, and what only says how weights began."""
    fields.must("use_bias", False)
    fields.must("use_conv_bias", True)
    fields.must("hidden_act", "silu", "swish")
    fields.must("rms_norm", True)
    fields.must("ssm_cfg", {})
    fields.neutral("time_step_min", "time_step_max", "time_step_floor", "time_step_scale", "time_step_init_scheme")
    fields.neutral("rescale_prenorm_residual", "use_mambapy", "use_associative_scan")
    fields.neutral("d_model", "n_layer", "d_inner", "fused_add_norm", "pad_vocab_size_multiple")  # mamba_ssm's own


def stacked(fields: Fields, letter: str, mixer: dict[str, Any], tied: bool) -> ModelSpec:
    """The spec of a stack of this mixer. tied: what the family means where the config is silent.

    ExportError: everything in the config that does not fit.
    """
    d = fields.take("hidden_size", kind=int)
    fields.must("intermediate_size", mixer["expand"] * (d or 0))
    given = {
        "d_model": d,
        "vocab_size": fields.take("vocab_size", kind=int),
        "pattern": f"{letter}{fields.whole('num_hidden_layers', high=MAX_LAYERS)}",
        "blocks": {letter: {"mixer": {**mixer, "d_conv": fields.take("conv_kernel", 4, int)}, "mlp": "none"}},
        "mlp": "none",
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5, float),
        "tie_embeddings": fields.take("tie_word_embeddings", tied, bool),
        "residual_in_fp32": fields.take("residual_in_fp32", True, bool),
    }
    fields.done()
    return ModelSpec.from_dict(given)


FAMILY = Mamba()
