"""Bamba's rotary positions: of half a head, where the config does not say."""

import pytest

from hybridlm.compose.plan import plan
from hybridlm.export.family import source
from hybridlm.export.fields import Fields

CONFIG = {"hidden_size": 32, "num_hidden_layers": 3, "attn_layer_indices": [1], "num_attention_heads": 4}
CONFIG |= {"num_key_value_heads": None, "intermediate_size": 24, "vocab_size": 97, "mamba_n_heads": 8}


@pytest.mark.parametrize(
    ("said", "rotated"),
    [
        ({}, 4),
        ({"attn_rotary_emb": 4, "partial_rotary_factor": 0.5}, 4),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 4),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, 2),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, None),
    ],
)
def test_what_is_rotated(said, rotated):
    layers = plan(source("bamba").spec(Fields({**CONFIG, **said}, "config.json"))).layers
    assert [layer.mixers[0].type for layer in layers] == ["mamba2", "attention", "mamba2"]
    heads = layers[1].mixers[0].config
    assert (heads.rope, heads.rope_dim, heads.kv_heads) == (True, rotated, 4)
