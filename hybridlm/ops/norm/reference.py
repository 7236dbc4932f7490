"""Normalisation in plain PyTorch."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from hybridlm.ops.spread import spread


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = _widen(x)
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (x * spread(weight, x)).to(weight.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = _widen(x)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps).to(weight.dtype)


def gated_rms_norm(y: Tensor, z: Tensor, weight: Tensor, eps: float, groups: int, dtype: torch.dtype) -> Tensor:
    y = rearrange(_widen(y) * F.silu(_widen(z)), "... (g d) -> ... g d", g=groups)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    y = rearrange(y, "... g d -> ... (g d)")
    return (y * spread(weight, y)).to(dtype)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, groups: int) -> Tensor:
    x = rearrange(_widen(x), "... (g d) -> ... g d", g=groups)
    x = F.layer_norm(x, x.shape[-1:], eps=eps)
    return (rearrange(x, "... g d -> ... (g d)") * weight + bias).to(weight.dtype)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    x = _widen(x)
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
