"""Llama: heads of any width, grouped or not, every base of rotary positions."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside


def attention(draw: Random, **fields) -> dict:
    """Heads that need not fill the width of the stream."""
    heads = draw.choice([1, 2, 4])
    sizes = {"kv_heads": draw.choice([n for n in (1, 2, 4) if heads % n == 0]), "head_dim": draw.choice([4, 8, 10])}
    return {"type": "attention", "heads": heads, **sizes, **fields}


def fit(draw: Random) -> Drawn:
    heads = attention(draw, rope=True, rope_theta=draw.choice([500.0, 10000.0, 5e5]))
    mlp = {"type": "swiglu", "width": draw.choice([24, 37, 64])}
    return Drawn(("A", "-") * draw.randint(1, 4), {"A": heads}, {"-": mlp}, outside(draw))


def theirs(draw: Random) -> dict:
    heads = draw.choice([2, 4])
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": draw.randint(1, 3),
        "intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2, heads]),
        "head_dim": draw.choice([D // heads, 10]),
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([500.0, 1e6])},
        "tie_word_embeddings": draw.choice([True, False]),
    }


def other(drawn: Drawn, name: str, value) -> Drawn:
    """A second kind of attention layer, that differs in one field."""
    mixers = {**drawn.mixers, "B": {**drawn.mixers["A"], name: value}}
    return Drawn((*drawn.halves, "B", "-"), mixers, drawn.mlps, drawn.rest)


SPOILED = {
    "rope: false": lambda drawn, draw: drawn.mixing("A", rope=False),
    "rope_dim: whole heads": lambda drawn, draw: drawn.mixing("A", rope_dim=2),
    "qk_norm: true": lambda drawn, draw: drawn.mixing("A", qk_norm=True),
    "heads: it has to divide d_model": lambda drawn, draw: drawn.mixing("A", heads=3, kv_heads=1, head_dim=8),
    "attention.rope_theta": lambda drawn, draw: other(drawn, "rope_theta", 77.0),
    "attention.head_dim": lambda drawn, draw: other(drawn, "head_dim", 6),
    "attention.heads": lambda drawn, draw: other(drawn, "heads", 8),
    "swiglu.width": lambda drawn, draw: Drawn(
        (*drawn.halves, "A", "w"), drawn.mixers, {**drawn.mlps, "w": {"type": "swiglu", "width": 21}}, drawn.rest
    ),
    "mixer sliding_window": lambda drawn, draw: drawn.mixing("A", type="sliding_window", window=6),
    "mixer mamba2": lambda drawn, draw: Drawn(
        ("M", "-", *drawn.halves), {**drawn.mixers, "M": {"type": "mamba2", "head_dim": 8}}, drawn.mlps, drawn.rest
    ),
    "no MLP follows": lambda drawn, draw: drawn.stacking(*drawn.halves, "A"),
    "an MLP without a mixer": lambda drawn, draw: drawn.stacking(*drawn.halves, "-"),
    "side by side": lambda drawn, draw: Drawn(
        ("<A|B>", "-", *drawn.halves), {**drawn.mixers, "B": drawn.mixers["A"]}, drawn.mlps, drawn.rest
    ),
}
UNREAD = (
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("partial_rotary_factor", 0.5),
    ("sliding_window", 8),
    ("logits_scaling", 2.0),
    ("layer_types", ["full_atention"]),
    ("quantization_config", {"bits": 4}),
    ("num_hidden_layers", "2"),
    ("tie_word_embeddings", "yes"),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
