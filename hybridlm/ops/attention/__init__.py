"""Softmax attention: over everything, over a window, and over a cache."""

from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hybridlm.ops.attention import cache, flash, reference, vendor, window
from hybridlm.ops.attention.masks import causal_in_document
from hybridlm.ops.backend import Offer, kernels, resolve, triton_asked
from hybridlm.ops.decoding import ROWS, kernel_lacks

__all__ = ["attention", "cached_attention", "causal_in_document", "window_attention"]


def attention(
    q: Float[Tensor, "b t h p"],
    k: Float[Tensor, "b s hk p"],
    v: Float[Tensor, "b s hk pv"],
    *,
    mask: Bool[Tensor, "b t s"] | None = None,
    causal: bool = False,
    document: Int[Tensor, "b t"] | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b t h pv"]:
    """softmax(scale q k^T) v. Vaswani et al. 2017, eq. 1; hk key heads serve h / hk queries each (Ainslie 2023).

    mask: True where a query sees a key; every query must see one. causal: query i sees keys 0..i (then t == s).
    One of the two, or neither. document: with causal, non-decreasing along t; a query sees keys of its own document
    only. scale: 1 / sqrt(p) by default. Softmax in at least float32.
    """
    q, k, v = (_as_autocast(x) for x in (q, k, v))
    offers = {"vendor": vendor.attention, "reference": reference.attention}
    return resolve("attention", backend, offers)(q, k, v, mask, causal, document, scale)


def window_attention(
    q: Float[Tensor, "b t h p"],
    k: Float[Tensor, "b s hk p"],
    v: Float[Tensor, "b s hk p"],
    *,
    size: int,
    seen: Bool[Tensor, "b s"] | None = None,
    document: Tensor | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b t h p"]:
    """Attention of t queries to the last `size` of the keys up to their own. Beltagy et al. 2020, section 3.1.

    The keys are those of the queries after s - t earlier ones: query i stands at key i + s - t.
    seen (b, s): keys that exist. document (b, s): a query sees keys of its own document only.
    Work is t * (size + block), never t^2 where the window is short.
    """
    q, k, v = (_as_autocast(x) for x in (q, k, v))
    size, attend = min(size, k.shape[1]), partial(attention, backend=backend)
    if size == q.shape[1] == k.shape[1] and seen is None:
        return attend(q, k, v, causal=True, document=document)
    offers = {
        "vendor": Offer(vendor.window_attention, lambda: vendor.window_lacks(q, k, v, seen, document)),
        "reference": partial(window.window_attention, attend),
    }
    return resolve("window_attention", backend, offers)(q, k, v, size, seen, document)


def cached_attention(
    q: Float[Tensor, "b t h p"],
    k: Float[Tensor, "b s hk p"],
    v: Float[Tensor, "b s hk pv"],
    positions: Int[Tensor, "b t"],
    *,
    extent: int,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b t h pv"]:
    """Attention of t queries to a cache of s slots: a query at position i sees slots 0..i, or all where i >= s.

    k, v: any dtype; read in that of q, and never changed. Slots that no query of a row sees hold what they hold.
    extent: host integer, no position is as large; slots past it are not read. scale: 1 / sqrt(p) by default.
    """
    q, step = _as_autocast(q), kernels("hybridlm.ops.attention.triton_decode")
    offers = {
        "triton": Offer(step and step.cached_attention, _step_lacks(q, k, v), triton_asked(q)),
        "vendor": Offer(flash.cached_attention, lambda: flash.cached_lacks(q, k, v)),
        "reference": partial(cache.cached_attention, partial(attention, backend=backend)),
    }
    return resolve("cached_attention", backend, offers)(q, k, v, positions, extent, scale)


def _step_lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why our kernel of decoding cannot take the call."""
    if (why := kernel_lacks(q, k, v)) is not None:
        return why
    if q.shape[1] != 1 or q.shape[0] > ROWS:
        return "the kernel of decoding takes one query a row, and at most 65,535 rows"
    if max(q.shape[-1], v.shape[-1]) > 256:
        return "the kernel of decoding takes heads of at most 256"
    return None if q.dtype == k.dtype == v.dtype else "the kernel of decoding needs q, k and v in one dtype"


def _as_autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast asks matrix products for, so that whoever computes them is asked for the same."""
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))
