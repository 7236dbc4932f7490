"""What stands in an exported model for ops whose own code registers custom ops with PyTorch, or is slower than its."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.attention.masks import causal_in_document
from hybridlm.ops.rnn.recurrence import Memory, Weights, recur
from hybridlm.ops.rnn.reference import gru_step, lstm_step


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
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None],
        is_causal=causal,
        scale=scale,
        enable_gqa=bool(q.shape[2] != k.shape[2]),
    )
    return y.transpose(1, 2)


def lstm(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    """PyTorch's own loop over the tokens."""
    return recur(lstm_rows, x, weights, state, 2, lengths, document)


def lstm_rows(x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """x (b, t, d), a state for every row -> y (b, t, h), the state after the last token."""
    if x.shape[1] == 1:
        return lstm_step(x, state, weights)
    before = tuple(tensor[None] for tensor in state)
    y, h, c = torch.lstm(x, before, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return y, (h[0], c[0])


def gru(
    x: Tensor, weights: Weights, state: Memory | None, lengths: Tensor | None, document: Tensor | None
) -> tuple[Tensor, Memory]:
    """The same for a GRU."""
    return recur(gru_rows, x, weights, state, 1, lengths, document)


def gru_rows(x: Tensor, state: Memory, weights: Weights) -> tuple[Tensor, Memory]:
    """As `lstm_rows`."""
    if x.shape[1] == 1:
        return gru_step(x, state, weights)
    y, h = torch.gru(x, state[0][None], weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return y, (h[0],)


def split(x: Tensor, widths: int | list[int]) -> tuple[Tensor, ...]:
    """x.split(widths, dim=-1)."""
    return x.split(widths, dim=-1)
