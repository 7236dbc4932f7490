"""Attention over everything and over a window, ours, PyTorch's own kernels and flash-attn's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.ops.case import Case, Sizes, Tensors, Way, ours
from hybridlm.ops import backend
from hybridlm.ops.attention import attention, window_attention

QUERIES, HEADS = 256, 2
"""The last queries of row 0, and heads, that are compared."""


def attention_case(s: Sizes, length: int, window: int | None = None, chosen: bool = True) -> Case:
    """Causal attention, h / 2 heads of width p, as wide as SSD of h heads comes from.

    chosen: ours too, which takes one of PyTorch's.
    """
    b, h = s.rows(length), max(1, s.h // 2)
    size = min(window or length, length)

    def draw() -> Tensors:
        return {name: s.normal(b, length, h, s.p) for name in "qkv"}

    def cut(g: Tensors) -> Tensors:
        return {"q": g["q"][:1, -QUERIES:, :HEADS], "k": g["k"][:1, :, :HEADS], "v": g["v"][:1, :, :HEADS]}

    pairs = length * size - size * (size - 1) / 2 if window else length * (length + 1) / 2
    name = f"window {window:,}, L={length:,}" if window else f"attention, L={length:,}"
    return Case(
        name, draw, _ways(window, chosen), cut, lambda g: _true(g, size),
        lambda y: y[:1, -QUERIES:, :HEADS], "q", lambda g: g[:1, -QUERIES:, :HEADS],
        flops=4.0 * b * h * s.p * pairs, backward=3.5, tokens=b * length,
    )  # fmt: skip


def _true(g: Tensors, size: int) -> Tensor:
    """The last queries of a causal attention, softmax written out."""
    t, last = g["k"].shape[1], g["q"].shape[1]
    age = torch.arange(t - last, t, device=g["q"].device)[:, None] - torch.arange(t, device=g["q"].device)
    scores = torch.einsum("bqhp,bkhp->bhqk", g["q"], g["k"]) * g["q"].shape[-1] ** -0.5
    seen = scores.masked_fill((age < 0) | (age >= size), -torch.inf)
    return torch.einsum("bhqk,bkhp->bqhp", seen.softmax(-1), g["v"])


def _ways(window: int | None, chosen: bool) -> dict[str, Way]:
    if window:
        found = ours(lambda g, name: window_attention(**g, size=window, backend=name), ("auto", "reference"))
    else:
        found = ours(lambda g, name: attention(**g, causal=True, backend=name), ("auto", "reference"))
        found["torch cudnn"] = _sdpa(SDPBackend.CUDNN_ATTENTION)
        found["torch flash"] = _sdpa(SDPBackend.FLASH_ATTENTION)
    found = {name: way for name, way in found.items() if chosen or not way.ours}
    return found | {"flash_attn": _flash(window)}


def _sdpa(kernel: SDPBackend) -> Way:
    def run(g: Tensors) -> Tensor:
        with sdpa_kernel([kernel]):
            q, k, v = (g[name].transpose(1, 2) for name in "qkv")
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def missing() -> str | None:
        if torch.cuda.is_available() or kernel is SDPBackend.FLASH_ATTENTION:
            return None
        return "it needs a GPU"

    return Way(run, missing=missing)


def _flash(window: int | None) -> Way:
    sides = (-1, -1) if window is None else (window - 1, 0)

    def run(g: Tensors) -> Tensor:
        return backend.found("flash_attn", "flash_attn_func")(g["q"], g["k"], g["v"], causal=True, window_size=sides)

    return Way(run, missing=lambda: backend.missing("flash_attn", "flash_attn_func"))
