"""Attention by the flash-attn package (version 2): Dao 2023, arXiv:2307.08691.

It is asked for bfloat16 and head widths up to 128 only, which every build of it has.
"""

import torch
from torch import Tensor

from hybridlm.ops.backend import found, missing

WIDEST = 128


def lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the package cannot take these; None if it can."""
    if not q.is_cuda:
        return "flash-attn needs a GPU"
    if (why := missing("flash_attn", "flash_attn_func")) is not None:
        return why
    if torch.bfloat16 != q.dtype or q.dtype != k.dtype or q.dtype != v.dtype:
        return "flash-attn is taken in bfloat16 only"
    if q.shape[-1] % 8 or q.shape[-1] > WIDEST or v.shape[-1] != q.shape[-1]:
        return f"flash-attn takes heads of one width, a multiple of 8 up to {WIDEST}"
    return None


# ----------------------------------------------------------------------------------------------------------- to a cache
def cached_lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the package cannot take a call to a cache; None if it can."""
    if q.shape[1] != 1:
        return "flash-attn is taken for one query a row"
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return "flash-attn has no gradient with a cache"
    return lacks(q, k, v)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, extent: int, scale: float | None) -> Tensor:
    lengths = positions[:, 0].clamp(max=k.shape[1] - 1).to(torch.int32) + 1
    return _cached(q, k, v, lengths, q.shape[-1] ** -0.5 if scale is None else scale)


@torch.library.custom_op("hybridlm::flash_attn_cached", mutates_args=())
def _cached(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    attend = found("flash_attn", "flash_attn_with_kvcache")
    return attend(q, k, v, cache_seqlens=lengths, softmax_scale=scale)


@_cached.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape)
