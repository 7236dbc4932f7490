"""Zamba2: one shared block or several in turn, with and without adapters of their attention, with positions or none."""

from random import Random

from tests.export.common import WORDS, D, Sample


def theirs(draw: Random) -> dict:
    layers, adapted = draw.choice(["MHHMH", "HMH", "H", "MMHMHHH"]), draw.choice([True, False])
    heads = draw.choice([2, 4])
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": len(layers),
        "layers_block_type": [{"M": "mamba", "H": "hybrid"}[letter] for letter in layers],
        "num_mem_blocks": draw.choice([1, 2, 3]),
        "intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": heads,
        "num_key_value_heads": heads if adapted else draw.choice([1, 2]),
        "use_shared_attention_adapter": adapted,
        "adapter_rank": draw.choice([1, 3]),
        "use_mem_rope": draw.choice([True, False]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([500.0, 1e6])},
        "mamba_expand": draw.choice([1, 2]),
        "n_mamba_heads": draw.choice([4, 8]),
        "mamba_ngroups": draw.choice([1, 2, 4]),
        "mamba_d_state": draw.choice([3, 8]),
        "mamba_d_conv": draw.choice([2, 4]),
        "chunk_size": 8,
    }


UNREAD = (
    ("use_shared_mlp_adapter", False),
    ("time_step_limit", [0.0, 0.1]),
    ("tie_word_embeddings", False),
    ("rms_norm_eps", 1e-6),
    ("add_bias_linear", True),
    ("use_conv_bias", False),
    ("use_long_context", True),
    ("hidden_act", "silu"),
    ("time_step_min", 0.01),
    ("layers_block_type", ["mamba", "attention"]),
    ("hybrid_layer_ids", [17]),
    ("num_hidden_layers", 17),
    ("attention_head_dim", 5),
    ("attention_hidden_size", D),
    ("mamba_headdim", 5),
    ("num_key_value_heads", 0),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("sliding_window", 8),
    ("adapter_rank", "three"),
)

SAMPLE = Sample(None, {}, theirs, UNREAD)
