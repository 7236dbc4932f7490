"""Granite 4: Mamba-2 or attention, with SwiGLU in every layer; groups, states and convolutions of any size."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside


def matrix(draw: Random, **fields) -> dict:
    """Mamba-2 of any size."""
    expand, head_dim = draw.choice([1, 2, 3]), draw.choice([4, 8, 16])
    heads = expand * D // head_dim
    sizes = {"n_groups": draw.choice([n for n in (1, 2, 4) if heads % n == 0]), "d_state": draw.choice([3, 5, 8])}
    sizes |= {"d_conv": draw.choice([1, 2, 3, 4]), "chunk": draw.choice([2, 8, 64, 256])}
    return {"type": "mamba2", "expand": expand, "head_dim": head_dim, **sizes, **fields}


def fit(draw: Random) -> Drawn:
    heads = draw.choice([2, 4])
    kv_heads = draw.choice([n for n in (1, 2, 4) if heads % n == 0])
    attention = {"type": "attention", "heads": heads, "kv_heads": kv_heads, "rope": draw.choice([True, False])}
    if attention["rope"]:
        attention["rope_theta"] = draw.choice([500.0, 10000.0])
    letters = draw.choice(["MA", "AM", "MMA", "AMAM", "MAAM"])
    mixers = {"M": matrix(draw), "A": attention}
    used = {letter: mixers[letter] for letter in mixers if letter in letters}
    mlp = {"type": "swiglu", "width": draw.choice([24, 37])}
    return Drawn(tuple("-".join(letters) + "-"), used, {"-": mlp}, outside(draw))


def theirs(draw: Random) -> dict:
    heads, expand, width = draw.choice([2, 4]), draw.choice([1, 2]), draw.choice([4, 8])
    types = draw.choice(["MA", "AMM", "MAM"])
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": len(types),
        "layer_types": [{"M": "mamba", "A": "attention"}[letter] for letter in types],
        "num_local_experts": 0,
        "shared_intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2]),
        "attention_multiplier": (D // heads) ** -0.5,
        "position_embedding_type": draw.choice(["rope", "nope"]),
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
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


def both(drawn: Drawn, **heads) -> Drawn:
    """The model with an attention layer at its end."""
    attention = {"type": "attention", "heads": 4, "rope": False, **heads}
    return Drawn((*drawn.halves, "B", "-"), {**drawn.mixers, "B": attention}, drawn.mlps, drawn.rest)


def second(drawn: Drawn, **fields) -> Drawn:
    """The model with another kind of Mamba-2 layer at its end."""
    mamba = {"type": "mamba2", "head_dim": 8, "d_state": 6, **fields}
    return Drawn((*drawn.halves, "N", "-"), {**drawn.mixers, "N": mamba}, drawn.mlps, drawn.rest)


SPOILED = {
    "head_dim: it is d_model / heads": lambda drawn, draw: both(drawn, head_dim=6),
    "rope_dim: whole heads": lambda drawn, draw: both(drawn, rope=True, rope_dim=2),
    "qk_norm: true": lambda drawn, draw: both(drawn, qk_norm=True),
    "gated_norm: false": lambda drawn, draw: drawn.mixing("M", gated_norm=False),
    "expand: it is a whole number": lambda drawn, draw: drawn.mixing("M", expand=1.5, head_dim=4, n_groups=1),
    "mamba2.d_state": lambda drawn, draw: second(drawn),
    "mamba2.d_conv": lambda drawn, draw: second(drawn, d_conv=5),
    "attention.rope": lambda drawn, draw: both(
        drawn.mixing("A", type="attention", heads=4, rope=True).stacking(*drawn.halves, "A", "-")
    ),
    "no attention": lambda drawn, draw: Drawn(("M", "-"), {"M": matrix(draw)}, drawn.mlps, drawn.rest),
    "no mamba2": lambda drawn, draw: Drawn(
        ("A", "-"), {"A": {"type": "attention", "heads": 4}}, drawn.mlps, drawn.rest
    ),
    "mixer mamba;": lambda drawn, draw: Drawn(
        ("m", "-", *drawn.halves), {**drawn.mixers, "m": {"type": "mamba", "d_state": 4}}, drawn.mlps, drawn.rest
    ),
    "swiglu.width": lambda drawn, draw: Drawn(
        (*drawn.halves, "M", "w"), drawn.mixers, {**drawn.mlps, "w": {"type": "swiglu", "width": 21}}, drawn.rest
    ),
    "no MLP follows": lambda drawn, draw: drawn.stacking(*drawn.halves, "M"),
    "an MLP without a mixer": lambda drawn, draw: drawn.stacking("-", *drawn.halves),
}
UNREAD = (
    ("embedding_multiplier", 12.0),
    ("residual_multiplier", 0.22),
    ("logits_scaling", 8.0),
    ("attention_multiplier", 0.015625),
    ("num_local_experts", 8),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mamba_conv_bias", False),
    ("mamba_proj_bias", True),
    ("time_step_limit", [0.0, 0.1]),
    ("position_embedding_type", "alibi"),
    ("layer_types", ["mambo"]),
    ("sliding_window", 8),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("num_hidden_layers", 17),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
