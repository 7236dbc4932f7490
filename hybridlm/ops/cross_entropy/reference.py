"""Linear layer and cross entropy in chunks, in plain PyTorch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridlm.ops.backend import forward_mode

IGNORED = -100


def linear_cross_entropy(x: Tensor, head: Callable, targets: Tensor, chunk: int) -> Tensor:
    """The sum over targets."""
    pieces = zip(x.split(chunk), targets.split(chunk), strict=True)
    losses = [_recomputed(part, head, target, several=x.shape[0] > chunk) for part, target in pieces]
    return sum(losses)


def _recomputed(x: Tensor, head: Callable, targets: Tensor, several: bool) -> Tensor:
    """One chunk's sum; with several chunks its logits are not kept but computed again in the backward pass."""
    if several and torch.is_grad_enabled() and not forward_mode():
        return checkpoint(_sum, x, head, targets, use_reentrant=False)
    return _sum(x, head, targets)


def _sum(x: Tensor, head: Callable, targets: Tensor) -> Tensor:
    logits = head(x)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
