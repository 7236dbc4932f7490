"""What several families have in common: attention heads, SwiGLU, Mamba and Mamba-2, in config.json and by name."""

from __future__ import annotations

from typing import Any

from hybridlm.export.fields import Fields
from hybridlm.export.halves import Half
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


# ----------------------------------------------------------------------------------------------------- rotary positions
def rope(theta: float) -> dict[str, Any]:
    """Rotary positions of a base, as transformers 5 and as others read them."""
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def rope_theta(fields: Fields, default: float = 10000.0) -> float:
    """The base of rotary positions. Anything but plain rotary positions over the whole head is noted as a misfit."""
    old = fields.take("rope_theta", default, float)
    scaling = fields.take("rope_scaling", None)
    said = fields.take("rope_parameters", None) or scaling or {}
    kind = said.get("rope_type", said.get("type", "default"))
    if kind != "default":
        fields.refuse(f"rope_parameters.rope_type: {kind!r}; only 'default' can be read")
    if said.get("partial_rotary_factor", 1.0) != 1.0 or fields.take("partial_rotary_factor", 1.0) != 1.0:
        fields.refuse("partial_rotary_factor: only whole heads can be rotated")
    known = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
    for name in said:
        if name not in known and kind == "default":
            fields.refuse(f"rope_parameters.{name}: {said[name]!r} is unknown")
    return float(said.get("rope_theta", old))
