"""Mamba-2 alone: groups, states, heads and convolutions of any size."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside
from tests.export.samples.granite_hybrid import matrix


def fit(draw: Random) -> Drawn:
    rest = {**outside(draw), "residual_in_fp32": draw.choice([True, False])}
    return Drawn(("M",) * draw.randint(1, 4), {"M": matrix(draw)}, {}, rest)


def theirs(draw: Random) -> dict:
    expand, width = draw.choice([1, 2]), draw.choice([4, 8])
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": draw.randint(1, 3),
        "expand": expand,
        "head_dim": width,
        "num_heads": expand * D // width,
        "n_groups": draw.choice([1, 2, 4]),
        "state_size": draw.choice([3, 8]),
        "conv_kernel": draw.choice([2, 3, 4]),
        "chunk_size": draw.choice([8, 256]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-3]),
        "residual_in_fp32": draw.choice([True, False]),
        "tie_word_embeddings": draw.choice([True, False]),
    }


def other(drawn: Drawn, **fields) -> Drawn:
    """A further layer, that differs in a field."""
    mixers = {**drawn.mixers, "N": {**drawn.mixers["M"], **fields}}
    return Drawn((*drawn.halves, "N"), mixers, drawn.mlps, drawn.rest)


MLP = {"-": {"type": "swiglu", "width": 24}}
SPOILED = {
    "expand: it is a whole number": lambda drawn, draw: drawn.mixing("M", expand=1.5, head_dim=4, n_groups=1),
    "gated_norm: false": lambda drawn, draw: drawn.mixing("M", gated_norm=False),
    "mamba2.d_state": lambda drawn, draw: other(drawn, d_state=6),
    "mamba2.d_conv": lambda drawn, draw: other(drawn, d_conv=5),
    "mamba2.head_dim": lambda drawn, draw: other(drawn, head_dim=2, n_groups=1),
    "mixer mamba;": lambda drawn, draw: Drawn(
        ("m", *drawn.halves), {**drawn.mixers, "m": {"type": "mamba", "d_state": 4}}, {}, drawn.rest
    ),
    "mixer attention": lambda drawn, draw: Drawn(
        ("A", *drawn.halves), {**drawn.mixers, "A": {"type": "attention", "heads": 2}}, {}, drawn.rest
    ),
    "MLP swiglu": lambda drawn, draw: Drawn((*drawn.halves, "-"), drawn.mixers, MLP, drawn.rest),
    "side by side": lambda drawn, draw: Drawn(
        ("<M|N>", *drawn.halves), {**drawn.mixers, "N": drawn.mixers["M"]}, {}, drawn.rest
    ),
}
UNREAD = (
    ("use_bias", True),
    ("use_conv_bias", False),
    ("hidden_act", "gelu"),
    ("norm_before_gate", "yes"),
    ("rms_norm", False),
    ("time_step_limit", [0.0, 0.1]),
    ("time_step_limit", [0.001, {"__float__": "Infinity"}]),
    ("intermediate_size", 17),
    ("num_heads", 3),
    ("ssm_cfg", {"layer": "Mamba1"}),
    ("layer_types", ["attention"]),
    ("expand", "2"),
    ("state_size", True),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
