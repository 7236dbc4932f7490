"""Bamba: attention in any layers, of whose heads half is rotated, or all, or as much as the config says."""

from random import Random

from tests.export.common import WORDS, D, Sample


def theirs(draw: Random) -> dict:
    heads, expand, width = draw.choice([2, 4]), draw.choice([1, 2]), draw.choice([4, 8])
    depth = draw.randint(1, 4)
    rotated = draw.choice([{}, {"partial_rotary_factor": 1.0}, {"partial_rotary_factor": 0.25}])
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": depth,
        "attn_layer_indices": sorted({depth - 1, *draw.sample(range(depth), draw.randint(0, depth))}),
        "intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([500.0, 1e6]), **rotated},
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "mamba_expand": expand,
        "mamba_d_head": width,
        "mamba_n_heads": expand * D // width,
        "mamba_n_groups": draw.choice([1, 2, 4]),
        "mamba_d_state": draw.choice([3, 8]),
        "mamba_d_conv": draw.choice([2, 3, 4]),
        "mamba_chunk_size": 8,
        "tie_word_embeddings": draw.choice([True, False]),
    }


UNREAD = (
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("mamba_conv_bias", False),
    ("mamba_proj_bias", True),
    ("time_step_limit", [0.0, 0.1]),
    ("attn_layer_indices", [0, 9]),
    ("attn_layer_indices", "all"),
    ("attn_rotary_emb", 6),
    ("partial_rotary_factor", 0.3),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.0}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.2}),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("sliding_window", 8),
    ("num_hidden_layers", "2"),
)

SAMPLE = Sample(None, {}, theirs, UNREAD)
