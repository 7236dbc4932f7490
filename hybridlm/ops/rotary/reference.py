"""Rotary position embedding in plain PyTorch."""

import torch
from torch import Tensor


def rotary(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = positions[:, :, None, None].to(torch.float64) * frequency
    wide = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(wide), angle.sin().to(wide)
    left, right = x[..., :half].to(wide), x[..., half:].to(wide)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)
