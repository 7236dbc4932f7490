"""Attention in plain PyTorch."""

import torch
from einops import einsum, rearrange
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
    wide = torch.promote_types(q.dtype, torch.float32)
    q = rearrange(q, "b t (hk r) p -> b t hk r p", hk=k.shape[2])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = einsum(q * scale, k, "b t hk r p, b s hk p -> b hk r t s").to(wide)
    if document is not None:
        mask = causal_in_document(document)
    elif causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()[None]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    weights = scores.softmax(dim=-1).to(v.dtype)
    return rearrange(einsum(weights, v, "b hk r t s, b s hk p -> b t hk r p"), "b t hk r p -> b t (hk r) p")
