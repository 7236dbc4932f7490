"""Mistral: attention over one window with rotary positions, then SwiGLU, in every layer."""

from __future__ import annotations

from typing import Any

from hybridlm.compose.pattern import MAX_LAYERS
from hybridlm.compose.plan import Stack
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.families.llama import (
    decoder,
    decoder_weights,
    not_decoder,
    not_rotary,
    read_heads,
    said_of_decoder,
)
from hybridlm.export.families.parts import cached_windows
from hybridlm.export.family import Family
from hybridlm.export.fields import Fields
from hybridlm.export.halves import mixed, mixer_halves, mlp_halves
from hybridlm.export.weights import Weight


class Mistral(Family):
    """Jiang et al. 2023 (arXiv:2310.06825). Its window is ours: token i sees j where i - window < j <= i."""

    name, model_type, architecture = "mistral", "mistral", "MistralForCausalLM"
    served_by = ("vLLM", "SGLang", "transformers")  # llama.cpp opens it, and lets every token see all before it

    def misfits(self, stack: Stack) -> list[str]:
        if said := not_decoder(stack, "sliding_window"):
            return said
        mixers = mixer_halves(stack)
        return [*not_rotary(mixers), *cached_windows(mixers), *mixed(mixers), *mixed(mlp_halves(stack))]

    def config(self, stack: Stack, max_length: int) -> dict[str, Any]:
        return {**said_of_decoder(stack, max_length), "sliding_window": mixer_halves(stack)[0].config.window}

    def weights(self, stack: Stack) -> list[Weight]:
        return decoder_weights(stack)

    def spec(self, fields: Fields) -> ModelSpec:
        mixer: dict[str, Any] = {**read_heads(fields, kv_heads=8), "type": "attention"}
        window = fields.take("sliding_window", 4096, int)
        if not fields.null("sliding_window"):
            mixer |= {"type": "sliding_window", "window": window}
        letter = "W" if "window" in mixer else "A"
        return decoder(
            fields, f"{letter}{fields.whole('num_hidden_layers', high=MAX_LAYERS)}", {letter: {"mixer": mixer}}
        )


FAMILY = Mistral()
