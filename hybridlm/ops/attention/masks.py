"""Who sees whom, written out as a mask."""

import torch
from torch import Tensor


def causal_in_document(document: Tensor) -> Tensor:
    """document (b, t) -> mask (b, t, t): a token sees those before it in its own document, and itself."""
    steps = torch.arange(document.shape[1], device=document.device)
    return (steps <= steps[:, None]) & (document[:, :, None] == document[:, None, :])


def up_to(positions: Tensor, slots: int) -> Tensor:
    """positions (b, t) -> mask (b, t, slots): a token sees the slots up to that of its position."""
    return torch.arange(slots, device=positions.device) <= positions[:, :, None]
