"""What several families have in common: names of weights, what does not fit, fields of config.json."""

from __future__ import annotations

from typing import Any

from hybridlm.export.fields import Fields
from hybridlm.export.halves import Half, needed
from hybridlm.export.weights import Weight, renamed

QKVO = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight")
GATED = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
MAMBA2 = ("dt_bias", "A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "out_proj.weight")
MAMBA = (
    *("A_log", "D", "in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight"),
    *("dt_proj.weight", "dt_proj.bias", "out_proj.weight"),
)


def norm(theirs: str, half: Half) -> Weight:
    """The norm before a half."""
    return Weight(f"{theirs}.weight", (f"{half.norm}weight",))


def mamba2_weights(theirs: str, half: Half) -> list[Weight]:
    """A Mamba-2 mixer under their prefix; its gated norm, if it has one, is called norm."""
    gated = ("norm.weight",) if half.config.gated_norm else ()
    return renamed(theirs, half.prefix, (*MAMBA2, *gated))


# ---------------------------------------------------------------------------------------------------- what does not fit
def cached_windows(mixers: list[Half]) -> list[str]:
    """Windows that transformers' cache cannot hold."""
    return needed(mixers, lambda c: c.window > 1, "window: 1; it is at least 2 there, for transformers' cache")


def no_qk_norm(attention: list[Half]) -> list[str]:
    """Queries and keys that have a norm."""
    return needed(attention, lambda c: not c.qk_norm, "qk_norm: true; no layer has it there")


def no_positions(attention: list[Half]) -> list[str]:
    """Rotary positions."""
    return needed(attention, lambda c: not c.rope, "rope: true; no layer has rotary positions there")


def even_heads(attention: list[Half], d_model: int) -> list[str]:
    """Heads that are not the stream cut into pieces."""
    return needed(attention, lambda c: c.head_dim * c.heads == d_model, "head_dim: it is d_model / heads there")


def whole_expand(mamba: list[Half]) -> list[str]:
    """Inner streams of both kinds of Mamba that are no whole multiple of the outer one."""
    return needed(mamba, lambda c: c.expand == int(c.expand), "expand: it is a whole number there")


def gated_norms(mamba2: list[Half]) -> list[str]:
    """Mamba-2 without the norm behind its gate."""
    return needed(mamba2, lambda c: c.gated_norm, "gated_norm: false; every layer has the norm there")


def plain_selection(mamba: list[Half]) -> list[str]:
    """Where Mamba is not that of the paper's code: what it selects, how it is discretized, its gate."""
    return [
        *needed(mamba, lambda c: set(c.select) == {"dt", "B", "C"}, "select: dt, B and C are all selected there"),
        *needed(mamba, lambda c: c.discretization == "euler", "discretization: zoh; it is euler there"),
        *needed(mamba, lambda c: c.gate, "gate: false; every layer has a gate there"),
    ]


def whole_heads(attention: list[Half]) -> list[str]:
    """Heads of which a part is rotated."""
    return needed(attention, lambda c: not c.rope or c.rope_dim is None, "rope_dim: whole heads are rotated there")


# -------------------------------------------------------------------------------------------------------------- reading
def unscaled(fields: Fields) -> None:
    """The multipliers of Granite, which have to be 1."""
    for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling"):
        fields.must(name, 1, 1.0)


def head_scale(fields: Fields, d_model: int | None, heads: int | None) -> None:
    """Granite's attention_multiplier, which has to be head_dim ** -0.5; it is 1 where the config does not say."""
    scale = fields.take("attention_multiplier", 1.0, float)
    if d_model and heads and abs(scale * (d_model // heads) ** 0.5 - 1) > 1e-6:
        fields.refuse(f"attention_multiplier: {scale}; only head_dim ** -0.5 can be read")


def read_chunk(fields: Fields, name: str) -> int:
    """Tokens of a chunk of Mamba-2, which decide how logits are rounded, and of our reference the speed."""
    return fields.whole(name, 64, low=2, high=4096)


def unlimited_steps(fields: Fields, name: str = "time_step_limit") -> None:
    """The limit on steps, which has to be none: [0, inf], however infinity is written in JSON."""
    given = fields.take(name, [0.0, float("inf")])
    infinite = (float("inf"), "Infinity", "inf", {"__float__": "Infinity"}, None)
    if not (isinstance(given, list) and len(given) == 2 and given[0] == 0 and given[1] in infinite):
        fields.refuse(f"{name}: {given!r}; only [0, infinity], no limit, can be read")


LEAST_STEP = 1e-3
"""Where models with time_step_min start training. Transformers bounds dt by it in a prefill, and neither in a step nor
elsewhere."""


def least_step(fields: Fields) -> None:
    """time_step_min, which has to be no more than where training starts: transformers bounds dt by it now and then."""
    least = fields.take("time_step_min", LEAST_STEP, float)
    if not 0 <= least <= LEAST_STEP:
        fields.refuse(f"time_step_min: {least}; transformers bounds dt by it in a prefill, and 0 to 0.001 is read")


INITIAL = ("time_step_min", "time_step_max", "time_step_floor", "time_step_rank", "use_mamba_kernels")
"""Fields of Mamba-2 that some configs carry along, and whose models compute with none of them."""


def kv_heads(fields: Fields, heads: int, default: int) -> int:
    """num_key_value_heads: null is as many as heads, and not what a config without it means."""
    return fields.whole("num_key_value_heads", heads if fields.null("num_key_value_heads") else default)


# ----------------------------------------------------------------------------------------------------- rotary positions
def rope(theta: float) -> dict[str, Any]:
    """Rotary positions of a base, as transformers 5 and as others read them."""
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def rope_share(fields: Fields, default: float) -> float:
    """Which part of a head is rotated, of a family that has a default of its own."""
    fields.must("partial_rotary_factor", default)
    said = fields.take("rope_scaling", {}, dict) or fields.take("rope_parameters", {}, dict)
    share = said.get("partial_rotary_factor", default)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        fields.refuse(f"rope_parameters.partial_rotary_factor: {share!r}; it has to be above 0, and 1 at most")
        return default
    return share


def rope_theta(fields: Fields, default: float = 10000.0, partial: bool = False) -> float:
    """The base of rotary positions. Anything but plain rotary positions over the whole head is noted as a misfit.

    partial: the whole head or a part of it, which `rope_share` reads.
    """
    theta = fields.take("rope_theta", default, float)
    if not partial and fields.take("partial_rotary_factor", 1.0) != 1.0:
        fields.refuse("partial_rotary_factor: only whole heads can be rotated")
    for name in ("rope_parameters", "rope_scaling"):
        said = dict(fields.take(name, {}, dict) or {})
        if partial:
            said.pop("partial_rotary_factor", None)
        _plain_rope(fields, name, said)
        theta = said.get("rope_theta", theta)
    return theta


def _plain_rope(fields: Fields, name: str, said: dict[str, Any]) -> None:
    """Note what a field says of positions, if it is anything but their base."""
    plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
    for word, value in said.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if word == "rope_theta" and not number:
            fields.refuse(f"{name}.rope_theta: {value!r} is no number")
        elif word != "rope_theta" and value != plain.get(word, _UNKNOWN):
            known = f"only {plain[word]!r} can be read" if word in plain else "is unknown, and may change the positions"
            fields.refuse(f"{name}.{word}: {value!r}; {known}")


_UNKNOWN = object()
