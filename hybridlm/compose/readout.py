"""What becomes of the stack's hidden vectors: pooled or not, logits or numbers, and the loss.

A `Readout` has no parameters. The output layer is the model's own (`lm_head`, `head`, or the tied embedding) and is
handed in as `project`, so that whatever hangs on it takes part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hybridlm.compose.spec import ModelSpec
from hybridlm.layers.recover import with_places
from hybridlm.ops.cross_entropy import IGNORED, linear_cross_entropy

LOGITS_AT_ONCE = 1 << 25  # how many logits the loss of a language model holds at a time
MORE_AT_ONCE = 1 << 28  # the same on a GPU, where larger products pay
FEWER_AT_ONCE = 1 << 21  # on a CPU, if none are computed again: what its cache holds, but TILE tokens at least
TILE = 128

Project = Callable[[Tensor], Tensor]


class Readout:
    """(hidden x (b, t, d), project, targets or None, valid or None, weight or None) -> (logits or None, loss or None).

    weight: (outputs, d), if project is the product with it and nothing else.
    measure: what the loss is, as a field of `Output`.
    """

    measure = "cross_entropy"

    def __init__(self, spec: ModelSpec):
        self.pool, self.outputs = spec.output.pool, spec.outputs

    def __call__(
        self, x: Tensor, project: Project, targets: Tensor | None, valid: Tensor | None, weight: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Logits, and with targets the loss."""
        x, valid = pooled(x, valid, self.pool)
        logits = project(x)
        return logits, None if targets is None else self.loss(logits, targets, valid)

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Scalar, of at least float32. valid: which targets stand for real tokens, or for rows that have one."""
        raise NotImplementedError


class LMReadout(Readout):
    """Logits of the next token; the loss is computed without ever holding all of them, and there are none then."""

    def __call__(
        self, x: Tensor, project: Project, targets: Tensor | None, valid: Tensor | None, weight: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if targets is None:
            return project(x), None
        x, targets = x.flatten(0, 1), _counted(targets, valid).flatten()
        chunk = _even(len(x), _tokens_at_once(x.is_cuda, weight is not None, self.outputs))
        return None, linear_cross_entropy(x, project if weight is None else weight, targets, chunk)


class ClassifyReadout(Readout):
    """Logits of the classes (b, classes), or (b, t, classes) without pooling."""

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Mean cross entropy in nats over the targets that are not -100."""
        logits, targets = logits.flatten(0, -2), _counted(targets, valid).flatten()
        return linear_cross_entropy(logits, lambda all_of_them: all_of_them, targets, chunk=len(targets))


class RegressReadout(Readout):
    """Numbers (b, outputs), or (b, t, outputs) without pooling."""

    measure = "squared_error"

    def loss(self, logits: Tensor, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Mean squared error over the numbers of targets that are not NaN; 0 if there are none."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        counts = ~targets.isnan() if valid is None else valid[..., None] & ~targets.isnan()
        apart = logits.to(dtype) - torch.where(counts, targets, 0).to(dtype)
        return torch.where(counts, apart, 0).square().sum() / counts.sum().clamp(min=1)


class RecoverReadout(ClassifyReadout):
    """Logits of the classes (b, t, classes), each from the last valid token's vector and a position among the valid."""

    def __call__(
        self, x: Tensor, project: Project, targets: Tensor | None, valid: Tensor | None, weight: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        steps = torch.ones(x.shape[:2], dtype=torch.int64, device=x.device) if valid is None else valid.long()
        last, _ = pooled(x, valid, "last")
        logits = project(with_places(last, steps.cumsum(dim=1) - 1))
        return logits, None if targets is None else self.loss(logits, targets, valid)


READOUTS = {"lm": LMReadout, "classify": ClassifyReadout, "regress": RegressReadout, "recover": RecoverReadout}


def readout_of(spec: ModelSpec) -> Readout:
    """The readout that the spec's head asks for."""
    return READOUTS[spec.output.type](spec)


def pooled(x: Tensor, valid: Tensor | None, pool: str) -> tuple[Tensor, Tensor | None]:
    """x (b, t, d) -> its mean over each row's valid tokens, its last valid token, or all of it; and what is valid then.

    A row without a valid token gives zeros and is not valid. x is zero at pads. valid: (b, t) bool, or None.
    """
    if pool == "none":
        return x, valid
    if valid is None:
        return (x.mean(dim=1) if pool == "mean" else x[:, -1]), None
    count = valid.sum(dim=1)
    if pool == "mean":
        wide = torch.promote_types(x.dtype, torch.float32)  # a sum of many may be beyond float16
        return (x.sum(dim=1, dtype=wide) / count.clamp(min=1)[:, None]).to(x.dtype), count > 0
    steps = torch.arange(x.shape[1], device=x.device)
    last = torch.where(valid, steps, 0).amax(dim=1)  # in a row of pads the first, where x is zero
    return x.gather(1, last[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1), count > 0


def _tokens_at_once(gpu: bool, bare: bool, outputs: int) -> int:
    """Of how many tokens the loss holds the logits. bare: the output layer is a weight and nothing else."""
    most = max(1, (MORE_AT_ONCE if gpu else LOGITS_AT_ONCE) // outputs)
    return most if gpu or not bare else min(most, max(TILE, FEWER_AT_ONCE // outputs))


def _even(rows: int, most: int) -> int:
    """Rows of a chunk: at most `most`, and chunks as even as can be, of whole tiles of a matrix product."""
    chunk = -(-rows // -(-rows // most))
    return min(most, -(-chunk // TILE) * TILE)


def _counted(targets: Tensor, valid: Tensor | None) -> Tensor:
    """Targets as int64, -100 where there is no real token."""
    return targets.long() if valid is None else targets.long().masked_fill(~valid, IGNORED)
