"""Configs of published size: what a preset is written as is read as the preset, and so are the configs of two more."""

import json
from pathlib import Path
from typing import Any

import pytest

from hybridlm.compose.plan import Stack, plan
from hybridlm.compose.spec import ModelSpec
from hybridlm.export.family import family, source
from hybridlm.export.fields import Fields
from hybridlm.export.halves import WITHOUT_EFFECT, halves

PRESETS = {
    "falcon-h1-7b": "falcon_h1",
    "jamba-v0.1": "jamba",
    "llama-2-7b": "llama",
    "mamba-2.8b": "mamba",
    "mamba2-2.7b": "mamba2",
    "nemotron-h-8b": "nemotron_h",
}
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "bamba-9b": (
        "bamba",
        {
            "attn_layer_indices": [9, 18, 27],
            "attn_rotary_emb": 64,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_n_heads": 128,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "vocab_size": 128256,
        },
    ),
    "zamba2-2.7b": (
        "zamba2",
        {
            "hidden_size": 2560,
            "hybrid_layer_ids": [6, 12, 18, 24, 30, 36, 42, 47, 51],
            "intermediate_size": 10240,
            "mamba_d_state": 64,
            "mamba_headdim": 64,
            "n_mamba_heads": 80,
            "num_attention_heads": 32,
            "num_hidden_layers": 54,
            "num_mem_blocks": 2,
            "time_step_limit": None,
            "vocab_size": 32000,
        },
    ),
}


def preset(name: str) -> Stack:
    return plan(ModelSpec.read(Path("configs/models") / f"{name}.yaml"))


def computed(stack: Stack) -> list[tuple]:
    """What each half computes, labels in the order of their first places."""
    labels = list(dict.fromkeys(layer.label for layer in stack.layers if layer.label))
    found: list[tuple] = [(labels.index(layer.label) if layer.label else None, layer.options) for layer in stack.layers]
    for half in halves(stack):
        said = {name: value for name, value in half.part.to_dict().items() if name not in WITHOUT_EFFECT}
        found.append((half.index, json.dumps(said, sort_keys=True)))
    spec = stack.spec
    return [*found, (spec.d_model, spec.vocab_size, spec.norm_eps, spec.tie_embeddings)]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_read_as_it_was_written(name):
    stack, target = preset(name), family(PRESETS[name])
    assert target.misfits(stack) == []
    spec = stack.spec
    config = {"hidden_size": spec.d_model, "vocab_size": spec.vocab_size, "tie_word_embeddings": spec.tie_embeddings}
    config |= target.config(stack, 4096)
    assert computed(plan(target.spec(Fields(config, "config.json")))) == computed(stack)


@pytest.mark.parametrize("name", READ)
def test_a_published_config_is_the_preset(name):
    kind, config = READ[name]
    assert computed(plan(source(kind).spec(Fields(config, "config.json")))) == computed(preset(name))
