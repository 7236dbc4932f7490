"""Jamba: attention and experts in every so many layers, from any first one on."""

from random import Random

from tests.export.common import WORDS, D, Drawn, Sample, outside


def selective(draw: Random, **fields) -> dict:
    """Mamba of any size, with the norms."""
    sizes = {"d_state": draw.choice([3, 5]), "d_conv": draw.choice([2, 4]), "dt_rank": draw.choice([1, 2, 5])}
    return {"type": "mamba", **sizes, "expand": draw.choice([1, 2, 3]), "bcdt_norm": True, **fields}


def experts(draw: Random, width: int, **fields) -> dict:
    count = draw.choice([2, 4])
    return {
        "type": "moe", "experts": count, "top_k": draw.randint(1, count), "width": width, "normalize": False, **fields
    }  # fmt: skip


def every(draw: Random, depth: int) -> list[bool]:
    """True in every so many layers."""
    period = draw.randint(1, depth)
    offset = draw.randrange(period)
    return [i % period == offset for i in range(depth)]


def fit(draw: Random) -> Drawn:
    depth, width, heads = draw.randint(2, 4), draw.choice([24, 37]), draw.choice([2, 4])
    kv_heads = draw.choice([n for n in (1, 2, 4) if heads % n == 0])
    mixers = {"m": selective(draw), "A": {"type": "attention", "heads": heads, "kv_heads": kv_heads, "rope": False}}
    mlps = {"-": {"type": "swiglu", "width": width}, "e": experts(draw, width)}
    attends = every(draw, depth)
    while all(attends) or not any(attends):
        attends = every(draw, depth)
    sparse = every(draw, depth) if draw.random() < 0.6 else [False] * depth
    halves = [("mA"[attends[i]], "-e"[sparse[i]]) for i in range(depth)]
    used = {letter for layer in halves for letter in layer}
    return Drawn(
        tuple(half for layer in halves for half in layer),
        mixers,
        {letter: mlp for letter, mlp in mlps.items() if letter in used},
        outside(draw),
    )


def theirs(draw: Random) -> dict:
    period, sparse = draw.randint(2, 3), draw.randint(1, 3)
    return {
        "vocab_size": WORDS,
        "hidden_size": D,
        "num_hidden_layers": draw.randint(period, 4),
        "intermediate_size": draw.choice([24, 36]),
        "num_attention_heads": 4,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "attn_layer_period": period,
        "attn_layer_offset": draw.randrange(period),
        "expert_layer_period": sparse,
        "expert_layer_offset": draw.randrange(sparse),
        "num_experts": draw.choice([1, 2, 4]),
        "num_experts_per_tok": draw.choice([1, 2]),
        "mamba_d_state": draw.choice([3, 8]),
        "mamba_d_conv": draw.choice([2, 4]),
        "mamba_expand": draw.choice([1, 2]),
        "mamba_dt_rank": draw.choice(["auto", 5]),
        "rms_norm_eps": draw.choice([1e-6, 1e-3]),
        "tie_word_embeddings": draw.choice([True, False]),
    }


def ending(drawn: Drawn, mixer: dict, mlp: dict | None = None) -> Drawn:
    """The model with another layer at its end."""
    mlps = {**drawn.mlps, "x": mlp or {"type": "swiglu", "width": 24}}
    return Drawn((*drawn.halves, "N", "x"), {**drawn.mixers, "N": mixer}, mlps, drawn.rest)


def _dense(drawn: Drawn, mixers: str) -> Drawn:
    """Layers of these mixers with SwiGLU."""
    mlps = {"-": {"type": "swiglu", "width": 24}}
    return Drawn(tuple("-".join(mixers) + "-"), drawn.mixers, mlps, drawn.rest)


SPOILED = {
    "bcdt_norm: true would fit": lambda drawn, draw: ending(drawn, selective(draw, bcdt_norm=False)),
    "expand: it is a whole number": lambda drawn, draw: ending(drawn, selective(draw, expand=1.5)),
    "discretization": lambda drawn, draw: ending(drawn, selective(draw, discretization="zoh")),
    "select": lambda drawn, draw: ending(drawn, selective(draw, select=["dt", "B"])),
    "gate: false": lambda drawn, draw: ending(drawn, selective(draw, gate=False)),
    "mamba.dt_rank": lambda drawn, draw: ending(drawn, selective(draw, dt_rank=3)),
    "rope: true": lambda drawn, draw: drawn.mixing("A", rope=True),
    "qk_norm: true": lambda drawn, draw: drawn.mixing("A", qk_norm=True),
    "head_dim: it is d_model / heads": lambda drawn, draw: drawn.mixing("A", head_dim=6),
    "attention in layers 1, 2, which": lambda drawn, draw: _dense(drawn, "mAAm"),
    "attention in layers 3, 5, which": lambda drawn, draw: _dense(drawn, "mmmAmA"),
    "no attention": lambda drawn, draw: _dense(drawn, "mm"),
    "no mamba in it": lambda drawn, draw: _dense(drawn, "AA"),
    "expert: only swiglu": lambda drawn, draw: ending(drawn, selective(draw), experts(draw, 24, expert="gelu")),
    "score: only softmax": lambda drawn, draw: ending(drawn, selective(draw), experts(draw, 24, score="sigmoid")),
    "normalize: true": lambda drawn, draw: ending(drawn, selective(draw), experts(draw, 24, normalize=True)),
    "scale: it is 1": lambda drawn, draw: ending(drawn, selective(draw), experts(draw, 24, scale=2.0)),
    "shared_width": lambda drawn, draw: ending(drawn, selective(draw), experts(draw, 24, shared_width=8)),
    "of one width there": lambda drawn, draw: ending(_dense(drawn, "mA"), selective(draw), experts(draw, 25)),
    "no MLP follows": lambda drawn, draw: drawn.stacking(*drawn.halves, "m"),
    "mixer mamba2": lambda drawn, draw: ending(drawn, {"type": "mamba2", "head_dim": 8}),
}
UNREAD = (
    ("hidden_act", "gelu"),
    ("mamba_conv_bias", False),
    ("mamba_proj_bias", True),
    ("attn_layer_offset", 9),
    ("attn_layer_period", 0),
    ("expert_layer_offset", 9),
    ("layers_block_type", ["mamba", "attention"]),
    ("num_local_experts", 7),
    ("sliding_window", 8),
    ("num_hidden_layers", "2"),
    ("num_hidden_layers", 0),
    ("mamba_inner_layernorms", False),
    ("mamba_dt_rank", 2.5),
    ("rope_theta", 500.0),
    ("tie_word_embeddings", "yes"),
)

SAMPLE = Sample(fit, SPOILED, theirs, UNREAD)
