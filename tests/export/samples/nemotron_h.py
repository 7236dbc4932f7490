"""Nemotron-H: sublayers in any order, heads of any width, experts with a bias."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside
from tests.export.samples.granite_hybrid import matrix


def experts(draw: Random, **fields) -> dict:
    """A mixture of MLPs of relu squared, chosen by sigmoids."""
    count = draw.choice([2, 3, 4])
    sizes = {"experts": count, "top_k": draw.randint(1, count - 1), "width": draw.choice([12, 21])}
    rest = {"normalize": draw.choice([True, False]), "scale": draw.choice([1.0, 2.5])}
    kind = {"type": "moe", "expert": "relu2", "score": "sigmoid"}
    return {**kind, **sizes, **rest, "shared_width": draw.choice([8, 19]), **fields}


def fit(draw: Random) -> Drawn:
    heads = draw.choice([1, 2, 4])
    sizes = {"kv_heads": draw.choice([n for n in (1, 2, 4) if heads % n == 0]), "head_dim": draw.choice([5, 8, 16])}
    mixers = {"M": matrix(draw), "A": {"type": "attention", "heads": heads, **sizes, "rope": False}}
    mlps = {"-": {"type": "relu2", "width": draw.choice([24, 37])}, "e": experts(draw)}
    layers = draw.choice(["M-A-", "A", "MMA--", "-MeA", "A-MeMe", "AAMM", "eAM", "MA-e-"])
    return Drawn(
        tuple(layers),
        {letter: mixers[letter] for letter in mixers if letter in layers},
        {letter: mlps[letter] for letter in mlps if letter in layers},
        outside(draw),
    )


def theirs(draw: Random) -> dict:
    layers = draw.choice(["M-M*-", "*-ME", "M*", "EM*E", "**-"])
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "hybrid_override_pattern": layers,
        "layer_norm_epsilon": draw.choice([1e-6, 1e-3]),
        "intermediate_size": draw.choice([24, 37]),
        "num_attention_heads": 4,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "head_dim": draw.choice([5, 16]),
        "mamba_num_heads": draw.choice([4, 12]),
        "mamba_head_dim": draw.choice([4, 7]),
        "n_groups": draw.choice([1, 2, 4]),
        "ssm_state_size": draw.choice([3, 8]),
        "conv_kernel": draw.choice([2, 4]),
        "chunk_size": 8,
        "time_step_min": draw.choice([1e-5, 1e-3]),
        "n_routed_experts": 4,
        "num_experts_per_tok": draw.choice([1, 3]),
        "moe_intermediate_size": 20,
        "moe_shared_expert_intermediate_size": 24,
        "norm_topk_prob": draw.choice([True, False]),
        "routed_scaling_factor": 2.5,
    }


def with_attention(drawn: Drawn, **fields) -> Drawn:
    """The model with an attention layer at its end."""
    attention = {"type": "attention", "heads": 4, "rope": False, **fields}
    return Drawn((*drawn.halves, "B"), {**drawn.mixers, "B": attention}, drawn.mlps, drawn.rest)


def with_mamba(drawn: Drawn, letter: str = "N", **fields) -> Drawn:
    """The model with a Mamba-2 layer at its end, of sizes that no other has."""
    mamba = {"type": "mamba2", "head_dim": 2, "d_state": 6, **fields}
    return Drawn((*drawn.halves, letter), {**drawn.mixers, letter: mamba}, drawn.mlps, drawn.rest)


def with_experts(drawn: Drawn, draw: Random, **fields) -> Drawn:
    """The model with experts at its end."""
    return Drawn((*drawn.halves, "x"), drawn.mixers, {**drawn.mlps, "x": experts(draw, **fields)}, drawn.rest)


SPOILED = {
    "rope: true": lambda drawn, draw: with_attention(drawn, rope=True),
    "qk_norm: true": lambda drawn, draw: with_attention(drawn, qk_norm=True),
    "attention.head_dim": lambda drawn, draw: with_attention(drawn, head_dim=6),
    "gated_norm: false": lambda drawn, draw: with_mamba(drawn, gated_norm=False),
    "mamba2.d_conv": lambda drawn, draw: with_mamba(with_mamba(drawn, "P", d_conv=5), d_conv=2),
    "no attention": lambda drawn, draw: Drawn(("M",), {"M": matrix(draw)}, {}, drawn.rest),
    "relu2.width": lambda drawn, draw: Drawn(
        (*drawn.halves, "v", "w"),
        drawn.mixers,
        {**drawn.mlps, "v": {"type": "relu2", "width": 20}, "w": {"type": "relu2", "width": 21}},
        drawn.rest,
    ),
    "MLP swiglu": lambda drawn, draw: Drawn(
        (*drawn.halves, "w"), drawn.mixers, {**drawn.mlps, "w": {"type": "swiglu", "width": 21}}, drawn.rest
    ),
    "mixer mamba;": lambda drawn, draw: Drawn(
        ("m", *drawn.halves), {**drawn.mixers, "m": {"type": "mamba", "d_state": 4}}, drawn.mlps, drawn.rest
    ),
    "mixer sliding_window": lambda drawn, draw: with_attention(drawn, type="sliding_window", window=6),
    "expert: only relu2": lambda drawn, draw: with_experts(drawn, draw, expert="swiglu"),
    "score: only sigmoid": lambda drawn, draw: with_experts(drawn, draw, score="softmax"),
    "shared_width: 0": lambda drawn, draw: with_experts(drawn, draw, shared_width=0),
    "shared_gate: true": lambda drawn, draw: with_experts(drawn, draw, shared_gate=True),
    "experts: 1": lambda drawn, draw: with_experts(drawn, draw, experts=1, top_k=1),
    "side by side": lambda drawn, draw: Drawn(
        ("<B|B>", *drawn.halves),
        {**drawn.mixers, "B": {"type": "attention", "heads": 4, "rope": False}},
        drawn.mlps,
        drawn.rest,
    ),
}
UNREAD = (
    ("norm_eps", 0.5),
    ("sliding_window", 8),
    ("tie_word_embeddings", True),
    ("time_step_min", 0.01),
    ("time_step_limit", [0.0, 0.1]),
    ("attention_bias", True),
    ("mlp_bias", True),
    ("use_bias", True),
    ("mamba_proj_bias", True),
    ("use_conv_bias", False),
    ("mlp_hidden_act", "silu"),
    ("mamba_hidden_act", "relu"),
    ("num_nextn_predict_layers", 1),
    ("hybrid_override_pattern", "M|*"),
    ("layers_block_type", ["mamba", "atention"]),
    ("num_hidden_layers", 17),
    ("num_hidden_layers", "2"),
    ("rms_norm_eps", 0.5),
    ("attention_head_dim", 128),
    ("rope_scaling", {"type": "yarn", "factor": 4.0}),
    ("mamba_num_heads", 0),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
