"""Mamba-2 alone: one mixer a layer, and no MLP."""

from __future__ import annotations

from typing import Any

from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.mamba import mixer_layers, mixers_alone, plain_bias, said_of_mixers, stacked
from hybridlm.export.families.parts import gated_norms, mamba2_weights, read_chunk, unlimited_steps, whole_expand
from hybridlm.export.family import Family
from hybridlm.export.fields import Fields
from hybridlm.export.halves import mixed, mixer_halves
from hybridlm.export.weights import Weight


class Mamba2(Family):
    """Dao and Gu 2024 (arXiv:2405.21060), as transformers names it."""

    name, model_type, architecture = "mamba2", "mamba2", "Mamba2ForCausalLM"
    served_by = ("vLLM", "SGLang", "llama.cpp", "transformers")

    def in_llama_cpp(self, stack: Stack) -> bool:
        return all(half.config.expand == 2 for half in mixer_halves(stack))

    def misfits(self, stack: Stack) -> list[str]:
        if said := mixers_alone(stack, "mamba2"):
            return said
        mixers = mixer_halves(stack)
        return [
            *whole_expand(mixers),
            *gated_norms(mixers),
            *mixed(mixers),
        ]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        config = mixer_halves(stack)[0].config
        return {
            **said_of_mixers(stack, max_length),
            "num_heads": config.heads(stack.spec.d_model),
            "head_dim": config.head_dim,
            "n_groups": config.n_groups,
            "chunk_size": config.chunk,
        }

    def weights(self, stack: Stack) -> list[Weight]:
        return mixer_layers(stack, mamba2_weights)

    def spec(self, fields: Fields) -> ModelSpec:
        plain_bias(fields)
        unlimited_steps(fields)
        if fields.take("norm_before_gate", False, bool):
            fields.note(
                "norm_before_gate: true was not followed: transformers, which wrote it once, has the norm behind the "
                "gate whatever it says, and so has this model"
            )
        fields.neutral("time_step_rank")
        mixer = {
            "type": "mamba2",
            "d_state": fields.take("state_size", 128, int),
            "expand": fields.take("expand", 2, int),
            "head_dim": fields.take("head_dim", 64, int),
            "n_groups": fields.take("n_groups", 8, int),
            "chunk": read_chunk(fields, "chunk_size"),
        }
        heads, d = fields.take("num_heads", 128, int), fields.take("hidden_size", 4096, int)
        if heads * mixer["head_dim"] != mixer["expand"] * d:
            fields.refuse(
                f"num_heads: {heads}, of head_dim: {mixer['head_dim']}; together they are expand * hidden_size"
            )
        return stacked(fields, "M", mixer, tied=False)


FAMILY = Mamba2()
