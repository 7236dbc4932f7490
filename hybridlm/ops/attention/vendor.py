"""Attention by fused kernels: cuDNN's, those of PyTorch, the flash-attn package's, FlexAttention."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hybridlm.ops.attention import flash, flex
from hybridlm.ops.attention.masks import causal_in_document
from hybridlm.ops.backend import from_hopper

ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
SHORT = 1024  # tokens up to which a mask of t^2 costs less than a kernel compiled for documents or windows


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    document: Tensor | None,
    scale: float | None,
) -> Tensor:
    if document is None:
        return _fused(q, k, v, mask, causal, scale)
    if flash.packed_lacks(q, k, v) is None:
        return flash.packed_attention(q, k, v, document, scale=scale)
    if q.shape[1] > SHORT and flex.lacks(q, k, v) is None:
        return flex.packed_attention(q, k, v, document, scale=scale)
    return _fused(q, k, v, causal_in_document(document), False, scale)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """PyTorch's own choice, but on Hopper and later cuDNN's kernel first, which is the fastest there.

    Not under a mask, where the backward pass of some of its versions gives NaN (pytorch#196678).
    """
    if not (q.is_cuda and from_hopper()):
        return _attend(q, k, v, mask, causal, scale)
    with sdpa_kernel(ORDER if mask is None else ORDER[1:], set_priority=True):
        return _attend(q, k, v, mask, causal, scale)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    if q.is_cuda and (mask is not None or q.dtype == torch.float32):
        k, v = (_a_head_each(x, q.shape[2]) for x in (k, v))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None],
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def _a_head_each(x: Tensor, heads: int) -> Tensor:
    """Keys or values (b, s, hk, p) -> (b, s, heads, p): the kernel for these calls knows no groups, and without it all
    t s scores would be in memory."""
    return x if x.shape[2] == heads else x.repeat_interleave(heads // x.shape[2], dim=2)


def window_lacks(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, document: Tensor | None) -> str | None:
    """Why no fused kernel takes a call over a window; None if one does."""
    if seen is not None:
        return "no fused kernel is told which keys exist"
    choose = flash.lacks if document is None else flash.packed_lacks
    if (why := choose(q, k, v)) is None and (document is None or q.shape[1] == k.shape[1]):
        return None
    if q.shape[1] != k.shape[1]:
        return f"{why}; FlexAttention is taken where nothing came before"
    if q.shape[1] <= SHORT:
        return f"{why}; FlexAttention is taken from {SHORT} tokens on"
    return flex.lacks(q, k, v)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, size: int, seen: Tensor | None, document: Tensor | None
) -> Tensor:
    if document is None and flash.lacks(q, k, v) is None:
        return flash.window_attention(q, k, v, size)
    if document is not None and flash.packed_lacks(q, k, v) is None:
        return flash.packed_attention(q, k, v, document, size)
    return flex.packed_attention(q, k, v, document, size)
