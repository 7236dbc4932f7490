"""Mistral: one window, larger or smaller than what is read; heads of any number and width."""

from random import Random

from tests.export.common import Drawn, Sample, outside
from tests.export.samples import llama

WINDOWS = [2, 5, 23, 24, 25, 40]  # a prompt of the proof has 24 tokens, and more where the window has


def fit(draw: Random) -> Drawn:
    window = {**llama.attention(draw, rope=True), "type": "sliding_window", "window": draw.choice(WINDOWS)}
    window["rope_theta"] = draw.choice([500.0, 10000.0])
    mlp = {"type": "swiglu", "width": draw.choice([24, 37])}
    return Drawn(("W", "-") * draw.randint(1, 4), {"W": window}, {"-": mlp}, outside(draw))


def theirs(draw: Random) -> dict:
    sizes = llama.theirs(draw)
    return {**sizes, "sliding_window": draw.choice([*WINDOWS, None])}


def other(drawn: Drawn, **fields) -> Drawn:
    """A second kind of layer, that differs in a field."""
    mixers = {**drawn.mixers, "V": {**drawn.mixers["W"], **fields}}
    return Drawn((*drawn.halves, "V", "-"), mixers, drawn.mlps, drawn.rest)


SPOILED = {
    "sliding_window.window": lambda drawn, draw: other(drawn, window=77),
    "sliding_window.rope_theta": lambda drawn, draw: other(drawn, rope_theta=77.0),
    "sliding_window.kv_heads": lambda drawn, draw: other(
        drawn, heads=4, kv_heads=4 // drawn.mixers["W"]["kv_heads"] % 4 or 2
    ),
    "rope: false": lambda drawn, draw: drawn.mixing("W", rope=False),
    "rope_dim: whole heads": lambda drawn, draw: drawn.mixing("W", rope_dim=2),
    "qk_norm: true": lambda drawn, draw: drawn.mixing("W", qk_norm=True),
    "mixer attention": lambda drawn, draw: Drawn(
        ("A", "-", *drawn.halves), {**drawn.mixers, "A": {"type": "attention", "heads": 2}}, drawn.mlps, drawn.rest
    ),
    "no MLP follows": lambda drawn, draw: drawn.stacking(*drawn.halves, "W"),
    "an MLP without a mixer": lambda drawn, draw: drawn.stacking(*drawn.halves, "-"),
    "side by side": lambda drawn, draw: Drawn(
        ("<W|V>", "-", *drawn.halves), {**drawn.mixers, "V": drawn.mixers["W"]}, drawn.mlps, drawn.rest
    ),
}
UNREAD = (
    ("hidden_act", "gelu"),
    ("rope_parameters", {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("partial_rotary_factor", 0.5),
    ("layer_types", ["full_attention"]),
    ("attention_bias", True),
    ("sliding_window", "all"),
    ("sliding_window", True),
    ("logits_scaling", 2.0),
    ("num_local_experts", 8),
    ("max_window_layers", 2),
    ("use_sliding_window", False),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
