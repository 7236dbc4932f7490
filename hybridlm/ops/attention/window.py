"""Attention over a window, in blocks: each block of queries meets the window before it and itself."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

MIN_BLOCK = 64


def block_size(tokens: int, size: int) -> int:
    """Queries a block: as many as the window is long, not fewer than MIN_BLOCK, not more than there are."""
    most = max(size, MIN_BLOCK)
    return most if tokens > most else tokens


def window_attention(
    attend: Callable, q: Tensor, k: Tensor, v: Tensor, size: int, seen: Tensor | None, document: Tensor | None
) -> Tensor:
    b, t, s = q.shape[0], q.shape[1], k.shape[1]
    c = block_size(t, size)
    n = 1 if c == t else -(-t // c)
    seen = torch.ones(b, s, dtype=torch.bool, device=q.device) if seen is None else seen
    front, back = size - (s - t), n * c - t  # so that the keys are those of `size` tokens, then of n whole blocks
    k, v, seen = (_extend(x, front, back) for x in (k, v, seen))
    i = torch.arange(c, device=q.device)[:, None] + size
    j = torch.arange(size + c, device=q.device)
    mask = ((j > i - size) & (j <= i)) & _blocks(seen, size, c)[:, :, None]
    if document is not None:
        document = _blocks(_extend(document, front, back), size, c)
        mask = mask & (document[:, :, size:, None] == document[:, :, None])
    mask = mask | (j == i)  # a query that is padding sees itself, so that its softmax is finite
    q = rearrange(F.pad(q, (0, 0, 0, 0, 0, back)), "b (n c) h p -> (b n) c h p", c=c)
    k, v = (rearrange(_blocks(x, size, c), "b n s h p -> (b n) s h p") for x in (k, v))
    y = attend(q, k, v, mask=rearrange(mask, "b n c s -> (b n) c s"))
    return rearrange(y, "(b n) c h p -> b (n c) h p", b=b)[:, :t]


def _extend(x: Tensor, front: int, back: int) -> Tensor:
    """x (b, s, ...) with `front` zeros before (or, where negative, entries cut off) and `back` after."""
    return F.pad(x, (0, 0) * (x.ndim - 2) + (front, back))


def _blocks(x: Tensor, size: int, c: int) -> Tensor:
    """(b, size + n c, ...) -> (b, n, size + c, ...): every c entries with the `size` before them."""
    return x[:, None] if x.shape[1] == size + c else x.unfold(1, size + c, c).movedim(-1, 2)
