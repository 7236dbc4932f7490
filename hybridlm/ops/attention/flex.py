"""Causal attention inside documents and over a window by FlexAttention: Dong et al. 2024, arXiv:2412.05496.

What no query of a block sees is never computed, and no mask of t^2 is ever in memory: which blocks of BLOCK keys a
block of queries sees, wholly or in part, follows from the first and last token of each.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hybridlm.ops.backend import triton_missing

BLOCK = 128
NARROWEST = 16


def lacks(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why FlexAttention cannot take these; None if it can."""
    if not q.is_cuda:
        return "FlexAttention needs a GPU"
    if (why := triton_missing()) is not None:
        return why
    if q.dtype == torch.float64 or q.dtype != k.dtype or q.dtype != v.dtype:
        return "FlexAttention takes one dtype of at most 32 bits"
    if min(q.shape[-1], v.shape[-1]) < NARROWEST:
        return f"FlexAttention takes heads of width {NARROWEST} or more"
    return None


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, document: Tensor | None, size: int | None = None, scale: float | None = None
) -> Tensor:
    """Causal attention, inside each document if given, over the last `size` tokens if given."""
    if torch.compiler.is_compiling():
        return _packed(q, k, v, document, size, scale)
    from torch._dynamo import config as tracing
    from torch._functorch import config as graphs

    # The backward pass may run twice over one graph; past its limit the compiler would fall back to a dense reference.
    with graphs.patch(donated_buffer=False), tracing.patch(recompile_limit=64):
        return _compiled()(q, k, v, document, size, scale)


@cache
def _compiled():
    return torch.compile(_packed)  # by itself FlexAttention is a dense reference


def _packed(q: Tensor, k: Tensor, v: Tensor, document: Tensor | None, size: int | None, scale: float | None) -> Tensor:
    mask = block_mask(document, q.shape[1], size, q.device)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def block_mask(document: Tensor | None, t: int, size: int | None, device: torch.device) -> BlockMask:
    """document (b, t), non-decreasing. What FlexAttention computes: blocks seen in part, and those seen wholly."""
    some, whole = _blocks(document, t, size, device)
    numbers = (x for blocks in (some & ~whole, whole) for x in _listed(blocks[:, None]))
    sees = _rule(document, t if size is None else size)
    return BlockMask.from_kv_blocks(*numbers, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(t, t))


def _rule(document: Tensor | None, size: int) -> Callable:
    """Whether query i of row b sees key j: lambdas, which no check of shapes is wrapped around."""
    if document is None:
        return lambda b, h, i, j: (j <= i) & (j > i - size)
    return lambda b, h, i, j: (j <= i) & (j > i - size) & (document[b, i] == document[b, j])


def _blocks(document: Tensor | None, t: int, size: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """(b, blocks of queries, blocks of keys) twice: some query sees some key; every query sees every key."""
    first = torch.arange(0, t, BLOCK, device=device)
    last = (first + BLOCK - 1).clamp(max=t - 1)
    some, whole = first <= last[:, None], last < first[:, None]
    if size is not None:
        some, whole = some & (last > first[:, None] - size), whole & (first > last[:, None] - size)
    some, whole = some[None], whole[None]
    if document is not None:
        low, high = document[:, first], document[:, last]
        some, whole = some & (high[:, None, :] >= low[:, :, None]), whole & (low[:, None, :] == high[:, :, None])
    return some, whole


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(..., n, n) -> how many of each row are set, and which: these first, in order. int32."""
    order = blocks.logical_not().to(torch.int8).argsort(dim=-1, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.to(torch.int32)
