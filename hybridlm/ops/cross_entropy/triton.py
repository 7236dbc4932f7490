"""Softmax, cross entropy and its gradient in one kernel, in the memory of the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridlm.ops.cross_entropy.reference import IGNORED

BLOCK = 4096  # logits that a program holds at a time


@triton.jit
def _log_sum_exp(logits, v, BLOCK: tl.constexpr):
    """The largest logit of a row, and the sum of exp(logit - largest): every lane for itself, then all together."""
    most = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, v, BLOCK):
        place = start + tl.arange(0, BLOCK)
        s = tl.load(logits + place, mask=place < v, other=-float("inf")).to(tl.float32)
        new = tl.maximum(most, s)
        base = tl.where(new == -float("inf"), 0.0, new)
        total = total * tl.exp(most - base) + tl.exp(s - base)
        most = new
    top = tl.max(most, axis=0)
    return top, tl.sum(total * tl.exp(most - top), axis=0)


@triton.jit
def _rows(logits, targets, losses, v, IGNORED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * v
    target = tl.load(targets + row)
    counts = target != IGNORED
    most, total = _log_sum_exp(logits, v, BLOCK)
    picked = tl.load(logits + target, mask=counts, other=0.0).to(tl.float32)
    tl.store(losses + row, tl.where(counts, most + tl.log(total) - picked, 0.0))
    tl.debug_barrier()  # the target's logit has been read before it is written over
    for start in range(0, v, BLOCK):
        place = start + tl.arange(0, BLOCK)
        s = tl.load(logits + place, mask=place < v, other=-float("inf")).to(tl.float32)
        p = tl.exp(s - most) / total - tl.where(place == target, 1.0, 0.0)
        tl.store(logits + place, tl.where(counts, p, 0.0).to(logits.dtype.element_ty), mask=place < v)


def softmax_gradient_(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (m, v), contiguous: they become softmax(logits) - onehot(target), 0 where a target is -100.

    Returns the sum of the losses, float32. A row is read twice and written once.
    """
    (m, v), targets = logits.shape, targets.contiguous()
    losses = torch.empty(m, dtype=torch.float32, device=logits.device)
    block = min(BLOCK, triton.next_power_of_2(v))
    _rows[(m,)](logits, targets, losses, v, IGNORED, block, num_warps=8)
    return losses.sum()
