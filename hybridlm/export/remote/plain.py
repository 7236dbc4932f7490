"""What stands in an exported model for ops whose own code registers custom ops with PyTorch, or is slower than its."""

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.attention.masks import causal_in_document
from hybridlm.ops.rnn.recurrence import Memory, Weights, recur
from hybridlm.ops.rnn.reference import gru_loop, lstm_loop


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    document: Tensor | None,
    scale: float | None,
) -> Tensor:
    """PyTorch's own attention: q (b, t, h, p), k, v (b, s, hk, p), mask (b, t, s)."""
    if document is not None:
        mask, causal = causal_in_document(document), False
    if q.is_cuda and (mask is not None or q.dtype == torch.float32):  # its kernel for these calls knows no groups
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    y = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        attn_mask=None if mask is None else mask[:, None],
        is_causal=causal,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


def lstm(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    """PyTorch's own loop over the tokens."""
    return recur(partial(lstm_loop, nullcontext), x, weights, state, 2, lengths, document)


def gru(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    """The same for a GRU."""
    return recur(partial(gru_loop, nullcontext), x, weights, state, 1, lengths, document)


def split(x: Tensor, widths: int | list[int]) -> tuple[Tensor, ...]:
    """x.split(widths, dim=-1)."""
    return x.split(widths, dim=-1)
