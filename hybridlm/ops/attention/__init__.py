"""Softmax attention, over everything and over a window."""

from jaxtyping import Bool, Float
from torch import Tensor

from hybridlm.ops.attention import reference, vendor, window
from hybridlm.ops.backend import resolve


def attention(
    q: Float[Tensor, "b t h p"],
    k: Float[Tensor, "b s hk p"],
    v: Float[Tensor, "b s hk pv"],
    *,
    mask: Bool[Tensor, "b t s"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b t h pv"]:
    """softmax(scale q k^T) v. Vaswani et al. 2017, eq. 1; hk key heads serve h / hk queries each (Ainslie 2023).

    mask: True where a query sees a key; every query must see one. causal: query i sees keys 0..i (then t == s).
    One of the two, or neither. scale: 1 / sqrt(p) by default. Softmax in at least float32.
    """
    offers = {"vendor": vendor.attention, "reference": reference.attention}
    return resolve("attention", backend, offers)(q, k, v, mask, causal, scale)


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
    size = min(size, k.shape[1])
    if size == q.shape[1] and seen is None and document is None:
        return attention(q, k, v, causal=True, backend=backend)
    return window.window_attention(
        q, k, v, size, seen, document, lambda *qkvm: attention(*qkvm[:3], mask=qkvm[3], backend=backend)
    )
