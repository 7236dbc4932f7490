"""Granite with windows: any mix of both kinds of attention, with and without positions, of any base."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside
from tests.export.samples.mistral import WINDOWS


def fit(draw: Random) -> Drawn:
    heads = draw.choice([1, 2, 4])
    shared = {"heads": heads, "kv_heads": draw.choice([n for n in (1, 2, 4) if heads % n == 0])}
    window = draw.choice(WINDOWS)

    def mixer(**kind) -> dict:
        rope = {"rope": True, "rope_theta": draw.choice([50.0, 500.0, 10000.0])}
        return {**kind, **shared, **draw.choice([rope, {"rope": False}])}

    sliding = {"type": "sliding_window", "window": window}
    mixers = {
        "A": mixer(type="attention"), "B": mixer(type="attention"), "W": mixer(**sliding), "V": mixer(**sliding)
    }  # fmt: skip
    letters = [draw.choice("ABWV") for _ in range(draw.randint(1, 4))]
    used = {letter: mixer for letter, mixer in mixers.items() if letter in letters}
    mlp = {"type": "swiglu", "width": draw.choice([24, 37])}
    return Drawn(tuple("-".join(letters) + "-"), used, {"-": mlp}, outside(draw))


def theirs(draw: Random) -> dict:
    heads, depth = draw.choice([2, 4]), draw.randint(1, 5)
    sizes = {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": depth,
        "intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, 2]),
        "attention_multiplier": (D // heads) ** -0.5,
        "sliding_window": draw.choice(WINDOWS),
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([500.0, 1e6])},
        "tie_word_embeddings": draw.choice([True, False]),
    }
    if draw.random() < 0.7:
        sizes["layer_types"] = [draw.choice(["full_attention", "sliding_attention"]) for _ in range(depth)]
        sizes["layer_rope_theta"] = [draw.choice([0, 50.0, 1000]) for _ in range(depth)]
    return sizes


def other(drawn: Drawn, **fields) -> Drawn:
    """A further layer."""
    mixer = {**next(iter(drawn.mixers.values())), **fields}
    return Drawn((*drawn.halves, "X", "-"), {**drawn.mixers, "X": mixer}, drawn.mlps, drawn.rest)


def windows(drawn: Drawn) -> Drawn:
    """Two windows, of different sizes."""
    heads = {"type": "sliding_window", "heads": 2}
    mixers = {"U": {**heads, "window": 3}, "X": {**heads, "window": 4}}
    return Drawn(("U", "-", "X", "-"), mixers, drawn.mlps, drawn.rest)


SPOILED = {
    "sliding_window.window": lambda drawn, draw: windows(drawn),
    "window: 1;": lambda drawn, draw: Drawn(
        ("U", "-"), {"U": {"type": "sliding_window", "heads": 2, "window": 1}}, drawn.mlps, drawn.rest
    ),
    "head_dim: it is d_model / heads": lambda drawn, draw: other(drawn, heads=2, kv_heads=1, head_dim=10),
    "heads, kv_heads": lambda drawn, draw: other(drawn, heads=8, kv_heads=8),
    "rope_dim: whole heads": lambda drawn, draw: other(drawn, rope=True, rope_dim=2),
    "qk_norm: true": lambda drawn, draw: other(drawn, qk_norm=True),
    "swiglu.width": lambda drawn, draw: Drawn(
        (*drawn.halves, next(iter(drawn.mixers)), "w"),
        drawn.mixers,
        {**drawn.mlps, "w": {"type": "swiglu", "width": 21}},
        drawn.rest,
    ),
    "mixer mamba2": lambda drawn, draw: Drawn(
        ("M", "-", *drawn.halves), {**drawn.mixers, "M": {"type": "mamba2", "head_dim": 8}}, drawn.mlps, drawn.rest
    ),
    "no MLP follows": lambda drawn, draw: drawn.stacking(*drawn.halves, next(iter(drawn.mixers))),
    "an MLP without a mixer": lambda drawn, draw: drawn.stacking("-", *drawn.halves),
    "side by side": lambda drawn, draw: Drawn(
        ("<X|Y>", "-", *drawn.halves),
        {**drawn.mixers, "X": {"type": "attention", "heads": 2}, "Y": {"type": "attention", "heads": 2}},
        drawn.mlps,
        drawn.rest,
    ),
}
UNREAD = (
    ("embedding_multiplier", 12.0),
    ("residual_multiplier", 0.22),
    ("logits_scaling", 8.0),
    ("attention_multiplier", 0.015625),
    ("attention_multiplier", None),
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("layer_types", ["slidding_attention"]),
    ("layer_rope_theta", [500.0] * 40),
    ("layer_rope_theta", ["500"]),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("head_dim", 64),
    ("sliding_window", 2.5),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
