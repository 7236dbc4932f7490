"""Falcon-H1: both mixers side by side or one of them alone, with and without the norm, multipliers of all kinds."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside
from tests.export.samples.granite_hybrid import matrix


def fit(draw: Random) -> Drawn:
    heads = draw.choice([1, 2, 4, 5])
    sizes = {"kv_heads": draw.choice([n for n in (1, 2, 4, 5) if heads % n == 0]), "head_dim": draw.choice([6, 8, 16])}
    attention = {"type": "attention", "heads": heads, **sizes, "rope": True, "rope_theta": draw.choice([500.0, 1e6])}
    fields = {"gated_norm": draw.choice([True, False])}
    if draw.random() < 0.3:
        fields |= {"expand": 1.25, "head_dim": 8, "n_groups": 1}  # five heads
    mixers = {"M": matrix(draw, **fields), "A": attention}
    layers = draw.choice(
        [["<M|A>"] * 2, ["<A|M>"], ["M", "M", "A"], ["A", "<M|A>"], ["<M|A>", "M", "<A|M>"], ["A", "M"], ["M"]]
    )
    used = {letter: mixers[letter] for letter in mixers if any(letter in layer for layer in layers)}
    halves = [half for layer in layers for half in (layer, "-")]
    return Drawn(tuple(halves), used, {"-": {"type": "swiglu", "width": draw.choice([24, 37])}}, outside(draw))


def theirs(draw: Random) -> dict:
    heads, width = draw.choice([4, 6]), draw.choice([4, 8])
    multiplied = draw.random() < 0.7
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": draw.randint(1, 3),
        "intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": 4,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "head_dim": draw.choice([6, 8]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([500.0, 1e6])},
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "tie_word_embeddings": draw.choice([True, False]),
        "mamba_d_ssm": draw.choice([heads * width, None]) if heads * width == 2 * D else heads * width,
        "mamba_n_heads": heads,
        "mamba_d_head": width,
        "mamba_n_groups": draw.choice([1, 2]),
        "mamba_d_state": draw.choice([3, 8]),
        "mamba_d_conv": draw.choice([2, 4]),
        "mamba_chunk_size": 8,
        "mamba_rms_norm": draw.choice([True, False]),
        "mamba_norm_before_gate": False,
        **(multipliers(draw) if multiplied else {}),
    }


def multipliers(draw: Random) -> dict:
    """Of the sizes that published ones have."""
    outer = {"embedding_multiplier": 5.66, "lm_head_multiplier": draw.choice([0.04, 5.66])}
    heads = {"key_multiplier": 0.39, "attention_in_multiplier": 1.3, "attention_out_multiplier": 0.94}
    ssm = {"ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.24, "ssm_multipliers": [0.35, 0.25, 0.18, 0.5, 0.31]}
    return {**outer, **heads, **ssm, "mlp_multipliers": [0.88, 0.41]}


def beside(drawn: Drawn, half: str, **mixers) -> Drawn:
    """The model with another layer at its end."""
    return Drawn((*drawn.halves, half, "-"), {**drawn.mixers, **mixers}, drawn.mlps, drawn.rest)


def attention(**fields) -> dict:
    return {"type": "attention", "heads": 4, "rope": True, **fields}


SPOILED = {
    "rope: false": lambda drawn, draw: beside(drawn, "B", B=attention(rope=False)),
    "rope_dim: whole heads": lambda drawn, draw: beside(drawn, "B", B=attention(rope_dim=2)),
    "qk_norm: true": lambda drawn, draw: beside(drawn, "B", B=attention(qk_norm=True)),
    "attention.rope_theta": lambda drawn, draw: beside(
        beside(drawn, "B", B=attention(rope_theta=77.0)), "C", C=attention(rope_theta=78.0)
    ),
    "mamba2.gated_norm": lambda drawn, draw: beside(
        beside(drawn, "N", N=matrix(draw, gated_norm=False)), "O", O=matrix(draw, gated_norm=True)
    ),
    "mamba2.d_state": lambda drawn, draw: beside(drawn, "N", N=matrix(draw, d_state=7)),
    "combine: norm_mean": lambda drawn, draw: beside(
        drawn.saying(combine="norm_mean"), "<B|N>", B=attention(), N=matrix(draw)
    ),
    "one mamba2 and one attention": lambda drawn, draw: beside(drawn, "<B|B>", B=attention()),
    "3 mixers side by side": lambda drawn, draw: beside(drawn, "<B|N|B>", B=attention(), N=matrix(draw)),
    "no mamba2": lambda drawn, draw: Drawn(("B", "-"), {"B": attention()}, drawn.mlps, drawn.rest),
    "mixer mamba;": lambda drawn, draw: beside(drawn, "m", m={"type": "mamba", "d_state": 4}),
    "mixer sliding_window": lambda drawn, draw: beside(drawn, "W", W={"type": "sliding_window", "window": 6}),
    "swiglu.width": lambda drawn, draw: Drawn(
        (*drawn.halves, "M", "w"),
        {**drawn.mixers, "M": drawn.mixers.get("M", matrix(draw))},
        {**drawn.mlps, "w": {"type": "swiglu", "width": 21}},
        drawn.rest,
    ),
    "no MLP follows": lambda drawn, draw: Drawn(
        (*drawn.halves, "B"), {**drawn.mixers, "B": attention()}, drawn.mlps, drawn.rest
    ),
    "an MLP without a mixer": lambda drawn, draw: drawn.stacking("-", *drawn.halves),
}
UNREAD = (
    ("embedding_multiplier", 0.0),
    ("ssm_multipliers", [1.0] * 4),
    ("ssm_multipliers", 2.0),
    ("mlp_multipliers", [1.0, "one"]),
    ("key_multiplier", float("inf")),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("projectors_bias", True),
    ("mamba_proj_bias", True),
    ("mamba_conv_bias", False),
    ("mamba_use_mlp", False),
    ("time_step_limit", [0.0, 0.1]),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("sliding_window", 8),
    ("num_hidden_layers", "2"),
    ("mamba_n_heads", -1),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
