"""What a model gets right on held-out samples: sums over every target, however they were batched."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridlm.ablate.pack import marks
from hybridlm.ablate.results import Metrics
from hybridlm.compose.model import HybridLM
from hybridlm.ops.cross_entropy import IGNORED
from hybridlm.train.metrics import bits_per_byte
from hybridlm.train.samples import Batch, StepData, inputs_of

CHUNK = 16_384  # tokens of a row that are read at a time
EVAL_TOKENS = {"cpu": 16_384, "cuda": 131_072}  # of a batch of an evaluation, unless one sample has more

Sums = dict[str, float]
"""Of loss, right answers, what was asked, solved samples and samples, over batches."""


class HeldOut:
    """The first `count` held-out samples of a data module, in batches as it makes them, drawn once.

    bytes_per_token: of text; None: the samples are a task's, which has answers to be right about.
    """

    def __init__(self, data: StepData, count: int, device: torch.device, bytes_per_token: float | None = None) -> None:
        self.bytes_per_token = bytes_per_token
        self.batches: list[Batch] = []
        for batch in data.val_dataloader():
            if count <= 0:
                break
            self.batches.append({name: tensor[:count].to(device) for name, tensor in batch.items()})
            count -= len(batch["targets"])


def measure(model: HybridLM, held_out: HeldOut) -> Metrics:
    """loss, accuracy over targets and solved, the share of samples without a wrong answer; of text loss and bits per
    byte; of numbers the mean squared error as loss. The model answers as in evaluation, without dropout."""
    sums: Sums = {}
    for batch in held_out.batches:
        add(sums, model, batch)
    return metrics(sums, held_out)


@torch.no_grad()
def add(sums: Sums, model: HybridLM, batch: Batch) -> None:
    """Add what a model gets right in a batch, and what was asked."""
    model.eval()
    found = _numbers(model, batch) if batch["targets"].is_floating_point() else _answers(model, batch)
    for name, value in found.items():
        sums[name] = sums.get(name, 0.0) + float(value)


def metrics(sums: Sums, held_out: HeldOut) -> Metrics:
    """What `measure` gives, from the sums over all batches."""
    loss = sums["loss"] / max(1.0, sums["asked"])
    if held_out.bytes_per_token is not None:
        return {"loss": loss, "bits_per_byte": bits_per_byte(loss, held_out.bytes_per_token)}
    if "right" not in sums:
        return {"loss": loss}
    accuracy, solved = sums["right"] / max(1.0, sums["asked"]), sums["solved"] / max(1.0, sums["samples"])
    return {"loss": loss, "accuracy": accuracy, "solved": solved}


def _answers(model: HybridLM, batch: Batch) -> dict[str, Tensor | float]:
    """Sums over a batch whose targets are classes or tokens."""
    loss, right, asked, wrong = 0.0, 0.0, 0.0, torch.zeros(len(batch["targets"]), device=batch["targets"].device)
    for x, targets in _pieces(model, batch):
        here = targets != IGNORED
        logits, wanted = model.logits(x[here]).float(), targets[here]
        hits = (logits.argmax(dim=-1) == wanted) & ~logits.isnan().any(dim=-1)  # the first NaN would be the largest
        loss = loss + F.cross_entropy(logits, wanted, reduction="none").double().sum()
        right, asked = right + hits.sum(), asked + here.sum()
        wrong.index_add_(0, here.nonzero()[:, 0], (~hits).float())
    any_asked = (batch["targets"] != IGNORED).any(dim=1)
    solved = ((wrong == 0) & any_asked).sum()
    return {"loss": loss, "right": right, "asked": asked, "solved": solved, "samples": any_asked.sum()}


def _numbers(model: HybridLM, batch: Batch) -> dict[str, Tensor | float]:
    """Sums over a batch whose targets are numbers; NaN asks nothing."""
    error, asked = 0.0, 0.0
    for x, targets in _pieces(model, batch):
        real = ~targets.isnan()
        off = (model.logits(x).float() - targets.nan_to_num()) * real
        error, asked = error + off.double().square().sum(), asked + real.sum()
    return {"loss": error, "asked": asked}


def _pieces(model: HybridLM, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """x (b, t, d) after the final norm, and the targets there: all at once, or of a long sample piece by piece."""
    inputs, targets, given = inputs_of(batch), batch["targets"], marks(batch)
    length = inputs.shape[1]
    if length <= CHUNK:
        yield model.hidden(inputs, **given)[0], targets
        return
    state = model.init_state(len(inputs), max_length=length)
    for start in range(0, length, CHUNK):
        piece = slice(start, min(start + CHUNK, length))
        x, state = model.hidden(inputs[:, piece], state, **{name: mark[:, piece] for name, mark in given.items()})
        yield x, targets[:, piece]


def better(metric: str, value: float, bar: float) -> bool:
    """Whether a metric has got to a bar; NaN has not."""
    lower = metric in ("loss", "bits_per_byte")
    return not math.isnan(value) and (value <= bar if lower else value >= bar)
