"""What is the same at any time: the long convolution, and whole S4 and S4D layers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.ops.case import Case, Sizes, Tensors, Way, ours
from hybridlm.ops.long_conv import long_conv
from hybridlm.registry import mixers

CHANNELS = 16
STATES = 64


def long_conv_case(s: Sizes, length: int) -> Case:
    """A filter as long as the rows, d_model channels."""
    b = s.rows(length)

    def draw() -> Tensors:
        fade = torch.linspace(0, -8, length, device=s.device).exp()
        k = torch.randn(s.model, length, device=s.device) * fade
        return {"u": s.normal(b, length, s.model), "k": k, "D": torch.ones(s.model, device=s.device)}

    def cut(g: Tensors) -> Tensors:
        return {"u": g["u"][:1, :, :CHANNELS], "k": g["k"][:CHANNELS], "D": g["D"][:CHANNELS]}

    return Case(
        f"long conv, L={length:,}", draw, ours(lambda g, name: long_conv(**g, backend=name)), cut,
        lambda g: long_conv(**g, backend="reference"), lambda y: y[:1, :, :CHANNELS], "u",
        lambda g: g[:1, :, :CHANNELS], tokens=b * length, blocks=True,
    )  # fmt: skip


def layer_case(s: Sizes, length: int, name: str) -> Case:
    """A whole layer, N = 64, as it stands in a training step: float32 weights, under bf16 autocast on a GPU."""
    b, gpu = max(1, s.layer_tokens // length), s.device.startswith("cuda")
    made: dict[str, torch.nn.Module] = {}

    def layer(double: bool = False) -> torch.nn.Module:
        if "layer" not in made:
            cls = mixers.get(name)
            made["layer"] = cls(cls.Config(d_state=STATES), s.model).to(s.device)
        return copy.deepcopy(made["layer"]).double() if double else made["layer"]

    def run(g: Tensors) -> Tensor:
        with torch.autocast("cuda" if gpu else "cpu", torch.bfloat16, enabled=gpu):
            return layer()(g["x"])[0]

    def draw() -> Tensors:
        return {"x": s.normal(b, length, s.model, dtype=torch.float32)}

    way = Way(run, ours=True, weights=lambda: list(layer().parameters()))
    return Case(
        f"{name} layer, {b} x {length:,}", draw, {"hybridlm": way},
        lambda g: {"x": g["x"][:1]}, lambda g: layer(double=True)(g["x"])[0], lambda y: y[:1], "x", lambda g: g[:1],
        flops=2.0 * b * length * s.model * 2 * s.model, tokens=b * length, blocks=True,
    )  # fmt: skip
