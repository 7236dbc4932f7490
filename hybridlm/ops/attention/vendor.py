"""Attention by PyTorch's fused kernels (flash, memory-efficient, cuDNN, or its own mathematics)."""

import torch.nn.functional as F
from torch import Tensor

from hybridlm.ops.attention.masks import causal_in_document


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    document: Tensor | None,
    scale: float | None,
) -> Tensor:
    if document is not None:
        mask, causal = causal_in_document(document), False
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
