"""Mamba alone: states, bottlenecks and convolutions of any size."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside
from tests.export.samples import mamba2


def selective(draw: Random, **fields) -> dict:
    """Mamba of any size."""
    sizes = {"d_state": draw.choice([3, 5, 16]), "d_conv": draw.choice([1, 2, 3, 4]), "expand": draw.choice([1, 2, 3])}
    return {"type": "mamba", **sizes, "dt_rank": draw.choice([1, 3, 7]), **fields}


def fit(draw: Random) -> Drawn:
    rest = {**outside(draw), "residual_in_fp32": draw.choice([True, False])}
    return Drawn(("m",) * draw.randint(1, 4), {"m": selective(draw)}, {}, rest)


def theirs(draw: Random) -> dict:
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": draw.randint(1, 3),
        "expand": draw.choice([1, 2]),
        "state_size": draw.choice([3, 16]),
        "conv_kernel": draw.choice([2, 3, 4]),
        "time_step_rank": draw.choice(["auto", 3]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-3]),
        "residual_in_fp32": draw.choice([True, False]),
        "tie_word_embeddings": draw.choice([True, False]),
    }


def other(drawn: Drawn, **fields) -> Drawn:
    """A further layer, that differs in a field."""
    mixers = {**drawn.mixers, "n": {**drawn.mixers["m"], **fields}}
    return Drawn((*drawn.halves, "n"), mixers, drawn.mlps, drawn.rest)


SPOILED = {
    "expand: it is a whole number": lambda drawn, draw: drawn.mixing("m", expand=1.5),
    "select": lambda drawn, draw: drawn.mixing("m", select=draw.choice([["dt"], ["B", "C"], []])),
    "discretization: zoh": lambda drawn, draw: drawn.mixing("m", discretization="zoh"),
    "gate: false": lambda drawn, draw: drawn.mixing("m", gate=False),
    "bcdt_norm: true": lambda drawn, draw: drawn.mixing("m", bcdt_norm=True),
    "mamba.d_state": lambda drawn, draw: other(drawn, d_state=6),
    "mamba.dt_rank": lambda drawn, draw: other(drawn, dt_rank=2),
    "mixer mamba2": lambda drawn, draw: Drawn(
        ("M", *drawn.halves), {**drawn.mixers, "M": {"type": "mamba2", "head_dim": 8}}, {}, drawn.rest
    ),
    "MLP swiglu": lambda drawn, draw: Drawn((*drawn.halves, "-"), drawn.mixers, mamba2.MLP, drawn.rest),
    "side by side": lambda drawn, draw: Drawn(
        ("<m|n>", *drawn.halves), {**drawn.mixers, "n": drawn.mixers["m"]}, {}, drawn.rest
    ),
}
UNREAD = (
    ("use_bias", True),
    ("use_conv_bias", False),
    ("hidden_act", "gelu"),
    ("rms_norm", False),
    ("intermediate_size", 17),
    ("time_step_rank", 2.5),
    ("ssm_cfg", {"layer": "Mamba2"}),
    ("mixer_rms_eps", 1e-6),
    ("layer_types", ["attention"]),
    ("expand", "2"),
    ("n_groups", 2),
    ("use_mamba_norms", True),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
