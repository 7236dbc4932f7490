"""Grouped matrix products in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor as is_wrapped

from hybridlm.recording import recorded, symbolic


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    if _known(counts):
        groups = x.split(counts.tolist())
        parts = [F.linear(rows, matrix) for rows, matrix in zip(groups, weight, strict=True) if len(rows)]
        return torch.cat(parts) if parts else F.linear(x, weight[0])
    group = (torch.arange(x.shape[0], device=x.device)[:, None] >= counts.cumsum(0)).sum(dim=1)
    few = not symbolic(x.shape[0]) and x.shape[0] <= weight.shape[0]
    return (_gathered if few else _masked)(x, weight, group)


def _known(counts: Tensor) -> bool:
    """Whether there are numbers to look at."""
    return not (recorded(counts) or type(counts) is not Tensor or is_wrapped(counts) or counts.is_meta)


def _gathered(x: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """A copy of its matrix for every row."""
    return (weight[group] @ x[:, :, None]).squeeze(-1)


def _masked(x: Tensor, weight: Tensor, group: Tensor) -> Tensor:
    """Every matrix by every row, those of other groups being 0."""
    mine = (group == torch.arange(len(weight), device=x.device)[:, None])[:, :, None]
    return (torch.where(mine, x, x.new_zeros(())) @ weight.mT).sum(dim=0)
