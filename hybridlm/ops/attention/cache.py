"""Attention to a cache, as attention under a mask."""

from collections.abc import Callable

from torch import Tensor

from hybridlm.ops.attention.masks import up_to


def cached_attention(
    attend: Callable, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, extent: int, scale: float | None
) -> Tensor:
    k, v = (x[:, :extent].to(q.dtype) for x in (k, v))
    return attend(q, k, v, mask=up_to(positions, k.shape[1]), scale=scale)
