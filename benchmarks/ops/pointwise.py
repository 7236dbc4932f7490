"""Ops that move bytes: the short convolution, norms, and the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ops.case import Case, Sizes, Tensors, Way, ours
from hybridlm.ops import backend
from hybridlm.ops.causal_conv import causal_conv1d
from hybridlm.ops.cross_entropy import linear_cross_entropy
from hybridlm.ops.norm import gated_rms_norm, rms_norm

CHANNELS, ROWS, EPS = 32, 128, 1e-5
LOGITS = 2**25
"""At a time, in the loss: as many as a model takes."""


def conv_case(s: Sizes, length: int) -> Case:
    """The causal convolution of width 4 with SiLU, over d channels."""
    b = s.rows(length)

    def draw() -> Tensors:
        return {"x": s.normal(b, length, s.d), "weight": s.normal(s.d, 1, 4, scale=0.5), "bias": s.normal(s.d)}

    def cut(g: Tensors) -> Tensors:
        return {"x": g["x"][:1, :, :CHANNELS], "weight": g["weight"][:CHANNELS], "bias": g["bias"][:CHANNELS]}

    ways = ours(lambda g, name: causal_conv1d(**g, activation="silu", backend=name)[0])
    return Case(
        f"causal conv, L={length:,}", draw, ways | {"causal_conv1d": _theirs()}, cut,
        lambda g: causal_conv1d(**g, activation="silu", backend="reference")[0],
        lambda y: y[:1, :, :CHANNELS], "x", lambda g: g[:1, :, :CHANNELS], tokens=b * length,
    )  # fmt: skip


def _theirs() -> Way:
    """Channels last, as both of us hold them."""

    def run(g: Tensors) -> Tensor:
        fn = backend.found("causal_conv1d", "causal_conv1d_fn")
        return fn(g["x"].transpose(1, 2), g["weight"][:, 0], g["bias"], activation="silu").transpose(1, 2)

    return Way(run, missing=lambda: backend.missing("causal_conv1d", "causal_conv1d_fn"))


def norm_case(s: Sizes, length: int) -> Case:
    """RMSNorm over d_model."""
    b = s.rows(length)

    def draw() -> Tensors:
        return {"x": s.normal(b, length, s.model), "weight": s.normal(s.model)}

    def theirs(g: Tensors) -> Tensor:
        return backend.found("mamba_ssm.ops.triton.layer_norm", "rms_norm_fn")(g["x"], g["weight"], None, eps=EPS)

    ways = ours(lambda g, name: rms_norm(**g, eps=EPS, backend=name))
    ways["torch"] = Way(lambda g: F.rms_norm(g["x"], g["x"].shape[-1:], g["weight"], EPS))
    ways["mamba_ssm"] = Way(theirs, missing=lambda: backend.missing("mamba_ssm.ops.triton.layer_norm", "rms_norm_fn"))
    return Case(
        f"rms norm, L={length:,}", draw, ways, _first_rows, lambda g: rms_norm(**g, eps=EPS, backend="reference"),
        lambda y: y[:1, :ROWS], "x", lambda g: g[:1, :ROWS], tokens=b * length,
    )  # fmt: skip


def gated_norm_case(s: Sizes, length: int) -> Case:
    """RMSNorm(y silu(z)) over d."""
    b = s.rows(length)
    module, name = "mamba_ssm.ops.triton.layernorm_gated", "rmsnorm_fn"

    def draw() -> Tensors:
        return {"y": s.normal(b, length, s.d), "z": s.normal(b, length, s.d), "weight": s.normal(s.d)}

    def theirs(g: Tensors) -> Tensor:
        return backend.found(module, name)(g["y"], g["weight"], None, z=g["z"], eps=EPS, norm_before_gate=False)

    ways = ours(lambda g, name: gated_rms_norm(**g, eps=EPS, backend=name))
    ways["mamba_ssm"] = Way(theirs, missing=lambda: backend.missing(module, name))
    return Case(
        f"gated norm, L={length:,}", draw, ways, _first_rows,
        lambda g: gated_rms_norm(**g, eps=EPS, backend="reference"),
        lambda y: y[:1, :ROWS], "y", lambda g: g[:1, :ROWS], tokens=b * length,
    )  # fmt: skip


def _first_rows(g: Tensors) -> Tensors:
    return {name: tensor if name == "weight" else tensor[:1, :ROWS] for name, tensor in g.items()}


def loss_case(s: Sizes, length: int) -> Case:
    """Output layer and cross entropy of half as many tokens: PyTorch's own way holds all logits."""
    count = max(1, s.tokens // 2)

    def draw() -> Tensors:
        weight = s.normal(s.vocab, s.model, scale=s.model**-0.5)
        targets = torch.randint(s.vocab, (count,), device=s.device)
        return {"x": s.normal(count, s.model), "weight": weight, "targets": targets}

    def op(g: Tensors, name: str) -> Tensor:
        return linear_cross_entropy(g["x"], g["weight"], g["targets"], max(1, LOGITS // s.vocab), backend=name)

    def true(g: Tensors) -> Tensor:
        return linear_cross_entropy(g["x"], lambda x: F.linear(x, g["weight"]), g["targets"], backend="reference")

    ways = ours(op, ("auto",)) | {
        "torch": Way(lambda g: F.cross_entropy(F.linear(g["x"], g["weight"]).float(), g["targets"]))
    }
    module, name = "fla.modules.fused_linear_cross_entropy", "fused_linear_cross_entropy_loss"
    fused = lambda g: backend.found(module, name)(g["x"], g["targets"], g["weight"])  # noqa: E731
    ways["fla"] = Way(fused, missing=lambda: backend.missing(module, name))
    return Case(
        f"linear + cross entropy, {count:,} tokens", draw, ways, dict, true, lambda y: y,
        flops=2.0 * count * s.model * s.vocab, tokens=count,
    )  # fmt: skip
